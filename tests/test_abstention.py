"""Abstention: the curve, its area, and thresholds that are chosen on one split and applied to another."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abstention import area, choose_threshold, risk_coverage

COARSE = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=25)


def plain_area(right_in_order) -> float:
    """Mean over all numbers of answers given of the share that is wrong."""
    risks = [np.mean([1 - r for r in right_in_order[:k]]) for k in range(1, len(right_in_order) + 1)]
    return float(np.mean(risks))


def test_curve_by_hand():
    curve = risk_coverage([0.9, 0.2, 0.9, 0.5], [1, 0, 0, 1])
    assert curve["threshold"].tolist() == [0.9, 0.5, 0.2] and curve["n"].tolist() == [2, 3, 4]
    assert curve["coverage"].tolist() == [0.5, 0.75, 1.0]
    assert curve["risk"].tolist() == pytest.approx([1 / 2, 1 / 3, 2 / 4])


def test_curve_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    score, right = rng.random(80).round(1), (rng.random(80) < 0.6).astype(float)
    for row in risk_coverage(score, right).itertuples():
        given_ = [r for s, r in zip(score, right, strict=True) if s >= row.threshold]
        assert (row.n, row.risk) == (len(given_), pytest.approx(1 - np.mean(given_)))


@given(COARSE, st.data())
@settings(max_examples=50, deadline=None)
def test_order_of_rows_does_not_matter(rows, data):
    shuffled = data.draw(st.permutations(rows))
    one, other = (risk_coverage(*zip(*r, strict=True)) for r in (rows, shuffled))
    assert one.equals(other)
    assert area(*zip(*rows, strict=True)) == pytest.approx(area(*zip(*shuffled, strict=True)))


def test_area_without_ties_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    score, right = rng.permutation(50), (rng.random(50) < 0.7).astype(float)
    assert area(score, right) == pytest.approx(plain_area(right[np.argsort(-score)]))


def test_area_with_ties_is_the_mean_over_the_orders_of_the_block():
    score, right = np.array([3, 2, 2, 2, 2, 1]), np.array([1, 1, 0, 1, 0, 0.0])
    orders = [plain_area([right[0], *(right[1 + k] for k in order), right[5]]) for order in permutations(range(4))]
    assert area(score, right) == pytest.approx(np.mean(orders))


@given(st.lists(st.booleans(), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_score_that_tells_nothing_gains_nothing(right):
    assert area([0.5] * len(right), right) == pytest.approx(1 - np.mean(right))


def test_a_good_score_beats_a_useless_one_and_that_a_misleading_one():
    rng = np.random.default_rng(2)
    right = (rng.random(300) < 0.7).astype(float)
    good, useless, bad = (area(s, right) for s in (right + 0.1 * rng.random(300), rng.random(300), -right))
    assert good < useless < bad


def test_threshold_gives_most_answers_at_its_target():
    score, right = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 1]
    chosen = choose_threshold(score, right, 0.2)
    assert (chosen.value, chosen.coverage, chosen.risk) == (0.5, 1.0, pytest.approx(0.2))
    strict = choose_threshold(score, right, 0.05)
    assert (strict.value, strict.coverage, strict.risk, strict.split) == (0.8, pytest.approx(0.4), 0, "validation")


@given(COARSE, st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_no_other_threshold_gives_more_at_the_target(rows, target):
    score, right = map(np.array, zip(*rows, strict=True))
    chosen = choose_threshold(score, right, target)
    for value in np.unique(score):
        kept = score >= value
        if 1 - right[kept].mean() <= target:
            assert kept.mean() <= chosen.coverage + 1e-12


def test_threshold_is_applied_to_another_split_only():
    chosen = choose_threshold([0.9, 0.8, 0.3], [1, 1, 0], 0.1)
    result = chosen.apply([0.85, 0.95, 0.1, 0.2], [1, 0, 1, 0], "test")
    assert (result.coverage, result.risk, result.refused, result.refused_right) == (0.5, 0.5, 0.5, 0.5)
    assert result.answered.tolist() == [True, True, False, False] and (result.n, result.split) == (4, "test")
    assert chosen.apply([chosen.value], [1], "test").coverage == 1  # the threshold itself is high enough
    with pytest.raises(BadInput, match="chosen on 'validation'"):
        chosen.apply([0.5], [1], "validation")
    for split in ("test", "external"):
        with pytest.raises(BadInput, match="can't be tuned on"):
            choose_threshold([0.5], [1], 0.1, split)


def test_a_target_out_of_reach_refuses_everything():
    chosen = choose_threshold([0.9, 0.8], [0, 0], 0.1)
    result = chosen.apply([0.99, 0.5], [1, 0], "test")
    assert chosen.value == np.inf and (result.coverage, result.refused, result.refused_right) == (0, 1, 1)
    assert np.isnan(result.risk)


def test_on_new_patients_the_target_is_kept_about():
    """Chosen on 4,000 answers, applied to 4,000 others of the same reader: within two points."""
    rng = np.random.default_rng(3)
    score = rng.random(8000)
    right = (rng.random(8000) < 0.5 + 0.5 * score).astype(float)
    chosen = choose_threshold(score[:4000], right[:4000], 0.1)
    result = chosen.apply(score[4000:], right[4000:], "test")
    assert result.risk == pytest.approx(0.1, abs=0.02) and 0.2 < result.coverage < 0.6


@pytest.mark.parametrize(
    ("score", "right", "said"),
    [
        ([], [], "one score"),
        ([1.0], [1, 0], "one score"),
        ([float("nan"), 1], [1, 0], "1 of 2 answers have no score"),
        ([0.5], [3], "1 where an answer is right"),
    ],
)
def test_what_cannot_be_ranked_is_refused(score, right, said):
    with pytest.raises(BadInput, match=said):
        risk_coverage(score, right)
    with pytest.raises(BadInput, match="share of errors"):
        choose_threshold([0.5], [1], 5)
