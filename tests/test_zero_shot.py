"""Zero-shot detection: parity with scikit-learn and with labels.py, weights as repeated rows, paired draws."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.labels import choose_thresholds, score_labels
from ctvlm_lib.evaluate.zero_shot import MEASURES, Detection, Drawn, detection_scores, text_pairs, worded_scores

NAMES = ("mass", "cyst", "nodule")


def detections(n: int, seed: int, gain: float = 1.0) -> dict[str, Detection]:
    rng = np.random.default_rng(seed)
    truth = {name: rng.random(n) < 0.3 for name in NAMES}
    return {
        name: Detection(np.round(rng.normal(size=n) + gain * true, 1), true, np.arange(n))
        for name, true in truth.items()
    }


def matrix(found: dict[str, Detection], what: str) -> np.ndarray:
    return np.stack([getattr(one, what) for one in found.values()], axis=1)


def test_means_over_labels_are_those_of_labels_py():
    validation, test = detections(150, 0), detections(200, 1)
    found = detection_scores(validation, test, resamples=20)
    ids = [f"v{k}" for k in range(150)]
    at = choose_thresholds(matrix(validation, "score"), matrix(validation, "truth"), NAMES, ids)
    expected = score_labels(matrix(test, "score"), matrix(test, "truth"), at, [f"t{k}" for k in range(200)]).macro
    for measure in MEASURES:
        assert found[measure].value == pytest.approx(expected[measure])


def test_a_drawn_patient_counts_as_often_as_drawn():
    """Each draw's AUROC is scikit-learn's on the drawn rows."""
    rng, n = np.random.default_rng(3), 60
    patient = rng.integers(0, 20, n)
    patient[:20] = np.arange(20)
    truth = rng.random(n) < 0.4
    one = {"mass": Detection(np.round(rng.normal(size=n) + truth, 1), truth, patient)}
    found = detection_scores(detections(80, 0) | one, detections(20, 1) | one, resamples=30)  # labels are pooled
    alone = detection_scores(one, one, resamples=30)["AUROC"]
    from ctvlm_lib.evaluate.intervals import patient_draws

    for times, value in zip(patient_draws(20, 30, 0), alone.draws, strict=True):
        weight = times[patient]
        assert value == pytest.approx(roc_auc_score(truth, one["mass"].score, sample_weight=weight))
    assert found["AUROC"].labels == 3


def test_pseudo_values_have_the_value_as_their_mean_and_the_draws_spread():
    found = detection_scores(detections(150, 0), detections(200, 1))
    for measure in MEASURES:
        one = found[measure]
        assert one.each.mean() == pytest.approx(one.value, abs=0.01)
        assert one.each.std() / np.sqrt(200) == pytest.approx(one.draws.std(), rel=0.15)


def test_two_arms_are_compared_in_the_same_draws():
    validation = detections(150, 0)
    same = detection_scores(validation, detections(200, 1)), detection_scores(validation, detections(200, 1))
    nothing = same[0]["AUROC"].minus(same[1]["AUROC"])
    assert nothing.value == 0 and not nothing.draws.any() and nothing.p == 1
    better = detection_scores(detections(150, 0, 2.5), detections(200, 1, 2.5))["AUROC"].minus(same[0]["AUROC"])
    assert better.interval()[0] > 0 and better.p == pytest.approx(2 / 2001)


def test_the_order_of_patients_does_not_matter_to_the_value():
    validation, test = detections(150, 0), detections(200, 1)
    mixed = np.random.default_rng(0).permutation(200)
    turned = {n: Detection(d.score[mixed], d.truth[mixed], d.patient[mixed]) for n, d in test.items()}
    one, other = (detection_scores(validation, some, resamples=20) for some in (test, turned))
    for measure in MEASURES:
        assert one[measure].value == pytest.approx(other[measure].value)
        assert np.allclose(one[measure].draws, other[measure].draws)


def test_a_label_without_both_classes_is_in_no_mean():
    validation, test = detections(150, 0), detections(200, 1)
    test["cyst"] = Detection(test["cyst"].score, np.zeros(200, bool), np.arange(200))
    assert detection_scores(validation, test, resamples=5)["AUROC"].labels == 2


def test_the_pair_of_sentences():
    assert text_pairs(["Lung mass"]) == (["There is lung mass."], ["There is no lung mass."])
    cosines = np.array([[0.5, 0.1], [0.4, 0.3]])
    assert worded_scores(cosines).tolist() == [0.5, 0.1]
    assert np.allclose(worded_scores(cosines, "pair"), [0.1, -0.2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Detection(np.array([np.nan]), np.array([True]), np.array([0])), "aren't finite"),
        (lambda: Detection(np.zeros(2), np.zeros(3, bool), np.arange(2)), "give at least one, and one for each"),
        (lambda: detection_scores(detections(9, 0), {}), "give the same"),
        (lambda: worded_scores(np.zeros((2, 3)), "alone"), "wording is 'alone'"),
        (
            lambda: Drawn(0.0, np.zeros(3), np.zeros(2)).minus(Drawn(0.0, np.zeros(4), np.zeros(2))),
            "can be compared on the same labels",
        ),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
