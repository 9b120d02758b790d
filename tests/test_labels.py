"""Many labels: scores as scikit-learn's and a plain loop's, and thresholds that can't be chosen on what is scored."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.labels import MEASURES, RULES, choose_thresholds, flattered, score_labels

NAMES = ("Lung nodule", "Consolidation", "Emphysema")


def drawn(n=60, labels=3, seed=0, signal=1.0, share=0.3):
    """Scores that tell a little about the truth; every label has both classes."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, labels)) < share).astype(int)
    truth[0], truth[1] = 1, 0
    return np.round(rng.normal(size=(n, labels)) + signal * truth, 2), truth


def split(which, seed, **options):
    scores, truth = drawn(seed=seed, **options)
    return scores, truth, [f"{which}{k}" for k in range(len(scores))]


@pytest.fixture
def chosen():
    scores, truth, ids = split("v", 1)
    return choose_thresholds(scores, truth, NAMES, ids)


def test_means_are_scikit_learn_s(chosen):
    scores, truth, ids = split("t", 2)
    found = score_labels(scores, truth, chosen, ids)
    called = scores >= np.array(chosen.values)
    for name, function in (
        ("F1", metrics.f1_score),
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
    ):
        assert found.macro[name] == pytest.approx(function(truth, called, average="macro", zero_division=0))
        assert found.weighted[name] == pytest.approx(function(truth, called, average="weighted", zero_division=0))
    for way, means in (("macro", found.macro), ("weighted", found.weighted)):
        assert means["AUROC"] == pytest.approx(metrics.roc_auc_score(truth, scores, average=way))
    assert found.macro["accuracy"] == pytest.approx(metrics.accuracy_score(truth.ravel(), called.ravel()))
    assert found.table["positives"].tolist() == truth.sum(axis=0).tolist() and found.notes == ()


def test_every_row_is_what_a_plain_loop_counts(chosen):
    scores, truth, ids = split("t", 3)
    for k, row in enumerate(score_labels(scores, truth, chosen, ids).table.to_dict("records")):
        pairs = [(score >= chosen.values[k], true == 1) for score, true in zip(scores[:, k], truth[:, k], strict=True)]
        hit, extra, missed, right_no = (pairs.count(c) for c in ((1, 1), (1, 0), (0, 1), (0, 0)))
        assert row["precision"] == pytest.approx(hit / (hit + extra))
        assert row["recall"] == pytest.approx(hit / (hit + missed))
        assert row["F1"] == pytest.approx(2 * hit / (2 * hit + extra + missed))
        assert row["accuracy"] == pytest.approx((hit + right_no) / len(pairs))
        both = (hit + missed) * row["F1"] + (extra + right_no) * 2 * right_no / (2 * right_no + extra + missed)
        assert row["F1 of both classes"] == pytest.approx(both / len(pairs))
        wins = [(a > b) + (a == b) / 2 for a in scores[truth[:, k] == 1, k] for b in scores[truth[:, k] == 0, k]]
        assert row["AUROC"] == pytest.approx(np.mean(wins))


def _cost(score, true, at, rule):
    called = score >= at
    if rule == "best F1":
        return -metrics.f1_score(true, called, zero_division=0)
    return math.hypot(called[true == 0].mean(), 1 - called[true == 1].mean())


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 30), signal=st.sampled_from([-1.0, 0.0, 2.0]))
@settings(max_examples=10)
def test_no_other_threshold_does_better_on_validation(rule, seed, n, signal):
    scores, truth = drawn(n, 1, seed, signal)
    (at,) = choose_thresholds(scores, truth, NAMES[:1], range(n), rule).values
    score, true = scores[:, 0], truth[:, 0]
    best = min(_cost(score, true, other, rule) for other in [*score, math.inf])
    assert _cost(score, true, at, rule) == pytest.approx(best, abs=1e-12)
    assert not any(other > at and _cost(score, true, other, rule) < best + 1e-12 for other in score)


def test_a_point_on_a_straight_piece_of_the_roc_curve_can_be_the_nearest():
    scores, truth = np.array([[3.0], [3.0], [1.0], [1.0]]), np.array([[1], [0], [1], [0]])
    assert choose_thresholds(scores, truth, NAMES[:1], range(4)).values == (3.0,)


@pytest.mark.parametrize("rule", RULES)
def test_scores_on_another_scale_give_the_same_calls(rule):
    scores, truth, ids = split("v", 4)
    test, true, others = split("t", 5)
    plain, steep = (
        score_labels(change(test), true, choose_thresholds(change(scores), truth, NAMES, ids, rule), others)
        for change in (lambda x: x, lambda x: np.exp(3 * x))
    )
    assert plain.macro == pytest.approx(steep.macro)


@pytest.mark.parametrize(
    ("rule", "measure"), [("best F1", "F1"), ("closest to (0,1)", "F1"), ("closest to (0,1)", "accuracy")]
)
def test_thresholds_chosen_on_test_flatter_scores_that_tell_nothing(rule, measure):
    """Thirty cohorts of scores without any signal: what is gained is the threshold's fit to the test split's noise."""
    gains = []
    for seed in range(30):
        scores, truth, ids = split("v", seed, n=40, labels=1, signal=0.0, share=0.4)
        test, true, others = split("t", 1000 + seed, n=40, labels=1, signal=0.0, share=0.4)
        honest = score_labels(test, true, choose_thresholds(scores, truth, NAMES[:1], ids, rule), others)
        gains.append(flattered(test, true, NAMES[:1], rule).macro[measure] - honest.macro[measure])
    assert np.mean(gains) > 2 * np.std(gains) / len(gains) ** 0.5  # two standard errors
    assert np.mean(gains) > 0.02


def test_the_best_f1_of_the_scored_split_is_never_below_the_honest_one():
    for seed in range(10):
        scores, truth, ids = split("v", seed)
        test, true, others = split("t", 50 + seed)
        honest = score_labels(test, true, choose_thresholds(scores, truth, NAMES, ids, "best F1"), others)
        own = flattered(test, true, NAMES, "best F1")
        assert (own.table["F1"] >= honest.table["F1"] - 1e-12).all()
        assert own.table["AUROC"].tolist() == honest.table["AUROC"].tolist()
        assert "chosen on 'test' itself" in own.notes[0]


def test_thresholds_are_never_applied_where_they_were_chosen(chosen):
    scores, truth, ids = split("v", 1)
    others = [f"t{k}" for k in range(len(ids))]
    with pytest.raises(BadInput, match="chosen on 'validation', where they flatter"):
        score_labels(scores, truth, chosen, others, split="validation")
    with pytest.raises(BadInput, match="chosen on 1 of these ids, v7 among them"):
        score_labels(scores, truth, chosen, [*others[1:], "v7"])
    with pytest.raises(BadInput, match="make them with choose_thresholds"):
        score_labels(scores, truth, [0.5] * 3, others)
    for held_out in ("test", "external"):
        with pytest.raises(BadInput, match="what is tested on can't be tuned on"):
            choose_thresholds(scores, truth, NAMES, ids, split=held_out)


def test_a_label_with_one_class_has_no_auroc_and_is_no_part_of_the_means(chosen):
    scores, truth, ids = split("t", 6)
    truth[:, 1] = 0
    found = score_labels(scores, truth, chosen, ids)
    assert found.one_class == ("Consolidation",) and "Consolidation; means are over 2 labels" in found.notes[0]
    assert math.isnan(found.table["AUROC"][1]) and found.table["AUROC"].notna().sum() == 2
    for name in MEASURES:
        assert found.macro[name] == pytest.approx(found.table[name][[0, 2]].mean())
        assert found.weighted[name] == pytest.approx(
            np.average(found.table[name][[0, 2]], weights=truth[:, [0, 2]].sum(0))
        )
    nothing = score_labels(scores, np.zeros_like(truth), chosen, ids)
    assert all(math.isnan(value) for value in [*nothing.macro.values(), *nothing.weighted.values()])
    assert nothing.one_class == NAMES


def test_a_label_with_one_class_on_validation_is_called_as_seen_there():
    scores, truth, ids = split("v", 7)
    truth[:, 0], truth[:, 1] = 1, 0
    thresholds = choose_thresholds(scores, truth, NAMES, ids)
    assert thresholds.values[:2] == (-math.inf, math.inf) and thresholds.one_class == NAMES[:2]
    found = score_labels(*split("t", 8)[:2], thresholds, split("t", 8)[2])
    assert found.table["recall"].tolist()[:2] == [1, 0] and "no threshold was chosen: Lung nodule" in found.notes[0]


def test_unusable_arrays_are_refused():
    scores, truth, ids = split("v", 9)
    wrong = scores.copy()
    wrong[3, 1] = np.nan
    for call, words in (
        (lambda: choose_thresholds(scores[:, 0], truth, NAMES, ids), r"give both as \(n, labels\)"),
        (lambda: choose_thresholds(scores, truth[:5], NAMES, ids), r"give both as \(n, labels\)"),
        (lambda: choose_thresholds(scores, truth, NAMES[:2], ids), "2 different names for 3 labels"),
        (lambda: choose_thresholds(scores, truth, NAMES, ids[:4]), "4 ids for 60 rows"),
        (lambda: choose_thresholds(wrong, truth, NAMES, ids), "1 of 180 scores aren't finite"),
        (lambda: choose_thresholds(scores, truth * 2, NAMES, ids), "other values than 0 and 1"),
        (lambda: choose_thresholds(scores, truth, NAMES, ids, rule="Youden"), "no rule is called 'Youden'"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
