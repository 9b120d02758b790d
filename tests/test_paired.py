"""Paired differences: the test keeps its level, finds what it should, and equals brute force."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.paired import (
    equal_weights,
    holm,
    margin_tests,
    paired_difference,
    smallest_detectable_difference,
)

LIGHT = {"resamples": 20}  # where only p is looked at


def answers(patients: int, gain: float = 0.0, seed: int = 0, most: int = 8):
    """Two arms' right and wrong answers to 1…most questions a patient, who is hard or easy for both."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    rates = rng.beta(3, 2, patients)[of]
    left, right = ((rng.random(of.size) < np.clip(rates + g, 0, 1)).astype(float) for g in (gain, 0.0))
    return tuple(dict(enumerate(values.tolist())) for values in (left, right, of))


def test_value_is_the_difference_of_the_two_means():
    left, right, patients = answers(30, 0.1)
    found = paired_difference(left, right, patients)
    assert found.value == pytest.approx(np.mean(list(left.values())) - np.mean(list(right.values())))
    assert found.value == pytest.approx(found.left - found.right) and found.low < found.value < found.high
    assert found.differences.shape == (30,) and found.differences.mean() == pytest.approx(found.value)
    assert (found.n, found.patients, found.exact) == (len(left), 30, False)


@pytest.mark.parametrize(("patients", "seed"), [(2, 0), (5, 1), (8, 2), (10, 3)])
def test_exact_p_equals_brute_force(patients, seed):
    left, right, owner = answers(patients, 0.2, seed)
    each = [sum(left[k] - right[k] for k in left if owner[k] == patient) for patient in range(patients)]
    swaps = [abs(sum(s * d for s, d in zip(signs, each, strict=True))) for signs in product((1, -1), repeat=patients)]
    found = paired_difference(left, right, owner, **LIGHT)
    assert found.exact and found.p == pytest.approx(np.mean(np.array(swaps) >= abs(sum(each)) - 1e-9))


def test_random_swaps_come_near_the_exact_p(monkeypatch):
    left, right, patients = answers(11, 0.15, 4)
    exact = paired_difference(left, right, patients, **LIGHT)
    monkeypatch.setattr("ctvlm_lib.evaluate.paired.EXACT", 0)
    drawn = paired_difference(left, right, patients, **LIGHT)
    assert exact.exact and not drawn.exact and 0 < exact.p < 1
    assert drawn.p == pytest.approx(exact.p, abs=0.02)  # four standard deviations of 10,000 coins


LEVELS = (0.05, 0.2, 0.5, 0.8)


def off(p: np.ndarray, level: float) -> float:
    """How many standard deviations more cohorts than the level's share have a p up to it."""
    return ((p <= level).mean() - level) / np.sqrt(level * (1 - level) / p.size)


def test_p_is_uniform_where_the_arms_are_alike():
    def of_scores(seed):
        rng = np.random.default_rng((seed, 9))
        left, right, patients = answers(40, 0, seed)
        scored = [{k: v + rng.random() for k, v in side.items()} for side in (left, right)]
        return paired_difference(*scored, patients, flips=400, seed=seed, **LIGHT).p

    p = np.array([of_scores(seed) for seed in range(500)])
    assert all(abs(off(p, level)) < 4 for level in LEVELS), [off(p, level) for level in LEVELS]


def test_p_keeps_its_level_for_right_and_wrong():
    """Counts tie, and ties count against us: fewer large p than a uniform one has, never more small ones."""
    p = np.array([paired_difference(*answers(40, 0, s), flips=400, seed=s, **LIGHT).p for s in range(500)])
    assert all(off(p, level) < 4 for level in LEVELS) and off(p, 0.05) > -4


def test_identical_arms_differ_by_nothing():
    left, _, patients = answers(20)
    found = paired_difference(left, left, patients)
    assert (found.value, found.low, found.high, found.p, found.exact) == (0, 0, 0, 1, True)


def test_swapping_the_arms_swaps_the_sign():
    left, right, patients = answers(25, 0.1, 3)
    there, back = paired_difference(left, right, patients), paired_difference(right, left, patients)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.p == back.p


def test_p_cannot_fall_below_one_over_the_swaps():
    ids = range(40)
    found = paired_difference({k: 1.0 for k in ids}, {k: 0.0 for k in ids}, {k: k for k in ids}, flips=99, **LIGHT)
    assert found.p == 1 / 100 and found.value == 1


def test_pairing_narrows_the_interval():
    """What is hard for both cancels out: against two independent intervals."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=80)
    left = {k: level[k] + 0.1 * rng.normal() for k in range(80)}
    right = {k: level[k] + 0.1 * rng.normal() for k in range(80)}
    found = paired_difference(left, right, {k: k for k in left})
    assert found.high - found.low < 0.3 * 2 * 1.96 * level.std() / np.sqrt(80)


def test_equal_weights_give_every_kind_the_same_say():
    left, right = {"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 0.0, "c": 0.0}
    patients, kinds = {"a": 1, "b": 2, "c": 3}, {"a": "size", "b": "size", "c": "location"}
    assert paired_difference(left, right, patients).value == pytest.approx(2 / 3)
    assert paired_difference(left, right, patients, weights=equal_weights(kinds)).value == pytest.approx(1 / 2)


def test_a_corpus_score_is_compared_as_a_corpus_score():
    """Matches over lengths: the difference is that of the two corpora, and its p that of brute force."""
    rng = np.random.default_rng(2)
    length = rng.integers(2, 9, 16)
    sides = [{k: np.array([rng.binomial(length[k], rate), length[k]]) for k in range(16)} for rate in (0.7, 0.4)]
    patients = {k: k // 2 for k in range(16)}

    def score(sums):
        return (sums[..., 0] / sums[..., 1]) ** 2

    found = paired_difference(*sides, patients, statistic_of_sums=score)
    left, right = (np.array([side[k] for k in range(16)]) for side in sides)
    assert found.value == pytest.approx(score(left.sum(0)) - score(right.sum(0)))
    reached = []
    for swap in product((False, True), repeat=8):
        swapped = np.repeat(swap, 2)[:, None]
        ours, theirs = np.where(swapped, right, left), np.where(swapped, left, right)
        reached.append(abs(score(ours.sum(0)) - score(theirs.sum(0))) >= abs(found.value) - 1e-9)
    assert found.exact and found.p == pytest.approx(np.mean(reached))
    assert found.differences.mean() == pytest.approx(found.value, abs=0.02)  # but for the jackknife's bias
    half = 1.96 * found.differences.std(ddof=1) / np.sqrt(8)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.35)  # two estimates of one spread, 8 patients


def test_tables_of_pandas_do_as_well():
    left, right, patients = answers(15, 0.1)
    plain = paired_difference(left, right, patients, **LIGHT)
    series = paired_difference(pd.Series(left)[::-1], pd.Series(right), pd.Series(patients), **LIGHT)
    assert (series.value, series.p, series.low) == pytest.approx((plain.value, plain.p, plain.low))


def test_questions_that_one_side_lacks_are_named():
    left, right, patients = {"q1": 1, "q2": 0}, {"q1": 1, "q3": 0}, {"q1": "a", "q2": "b", "q3": "b"}
    with pytest.raises(BadInput, match="right side lacks 1 of 3 questions, the first is 'q2'|left side lacks .* 'q3'"):
        paired_difference(left, right, patients)
    with pytest.raises(BadInput, match="left side lacks 1 of 1 questions, the first is 'q3'"):
        paired_difference(left, right, patients, ["q3"])
    with pytest.raises(BadInput, match="no patient is given .* 'q1'"):
        paired_difference(left, right, {}, ["q1"])
    with pytest.raises(BadInput, match="'q1' stands 2 times"):
        paired_difference(left, right, patients, ["q1", "q1"])
    with pytest.raises(BadInput, match="more than once; take one condition"):
        paired_difference(pd.Series([1, 0], ["q1", "q1"]), right, patients, ["q1"])
    assert paired_difference(left, right, patients, ["q1"]).n == 1


def test_holm_equals_a_plain_loop():
    p = [0.01, 0.04, 0.03, 0.005, 0.04]
    order, largest, plain = sorted(range(5), key=lambda k: p[k]), 0.0, [0.0] * 5
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (5 - rank) * p[k]))
        plain[k] = largest
    assert holm(p).tolist() == pytest.approx(plain) and plain == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.09])
    assert holm([]).size == 0 and holm([0.3]).tolist() == [0.3]
    with pytest.raises(BadInput, match="between 0 and 1"):
        holm([0.1, 1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p):
    adjusted, p = holm(p), np.array(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, p.size * p) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    """The size is computed from one cohort's spread, then tried on 400 others."""
    rng, spread = np.random.default_rng(0), 0.3
    cohort = rng.normal(size=60)
    size = smallest_detectable_difference(spread * cohort / cohort.std(ddof=1))
    zero, patients = dict.fromkeys(range(60), 0.0), {k: k for k in range(60)}
    cohorts = [dict(enumerate(rng.normal(size, spread, 60))) for _ in range(400)]
    found = [paired_difference(c, zero, patients, flips=400, seed=s, **LIGHT).p <= 0.05 for s, c in enumerate(cohorts)]
    assert 0.72 < np.mean(found) < 0.87, np.mean(found)


def test_detectable_size_shrinks_with_the_root_of_the_patients():
    d = np.random.default_rng(1).normal(size=100)
    assert smallest_detectable_difference(np.tile(d, 4)) == pytest.approx(
        smallest_detectable_difference(d) / 2, rel=0.01
    )
    assert smallest_detectable_difference(d) == pytest.approx(2.8016 * d.std(ddof=1) / 10, rel=1e-4)
    assert smallest_detectable_difference(d, alpha=0.01) > smallest_detectable_difference(d)
    assert np.isnan(smallest_detectable_difference(d[:1]))
    with pytest.raises(BadInput, match="power lies between"):
        smallest_detectable_difference(d, power=80)


def test_margin_tests_tell_on_par_from_different():
    noise = np.random.default_rng(0).normal(0, 0.02, 200)
    noise -= noise.mean()
    within, beyond = margin_tests(noise, 0.02)
    assert within < 0.001 and beyond == 1
    within, beyond = margin_tests(noise - 0.05, 0.02)
    assert within > 0.99 and beyond < 0.001
    within, beyond = margin_tests(noise + 0.02, 0.02)  # just on the margin: neither
    assert within == pytest.approx(0.5, abs=0.05) and beyond > 0.5
    with pytest.raises(BadInput, match="positive difference"):
        margin_tests(noise, 0)
