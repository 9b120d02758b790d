"""Calibration: the bins, the error, and a temperature that is fitted where it may be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.calibration import (
    BINNINGS,
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability,
    two_way,
)


def simulated(n: int = 400, seed: int = 0, sharpen: float = 1.0):
    """Confidences of a reader who is right as often as he says, sharpened or not."""
    rng = np.random.default_rng(seed)
    honest = rng.uniform(0.3, 0.98, n)
    right = (rng.random(n) < honest).astype(float)
    odds = (honest / (1 - honest)) ** sharpen
    return odds / (1 + odds), right


def plain_error(confidence, right, edges):
    total = 0.0
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = [j for j, c in enumerate(confidence) if (low < c <= high) or (k == 0 and c == low)]
        if inside:
            gap = abs(np.mean([right[j] for j in inside]) - np.mean([confidence[j] for j in inside]))
            total += len(inside) / len(confidence) * gap
    return total


def test_error_equals_a_plain_loop():
    confidence, right = simulated()
    ordered = np.sort(confidence)
    mass = [ordered[0], *(ordered[40 * k - 1] for k in range(1, 11))]  # 400 different values: 40 in each bin
    assert expected_calibration_error(confidence, right, 10, "equal width") == pytest.approx(
        plain_error(confidence, right, np.linspace(0, 1, 11))
    )
    assert expected_calibration_error(confidence, right, 10, "equal mass") == pytest.approx(
        plain_error(confidence, right, mass)
    )
    assert set(reliability(confidence, right, 10)["n"]) == {40}


@pytest.mark.parametrize("binning", BINNINGS)
def test_bins_share_out_all_answers(binning):
    confidence, right = simulated(317)
    table = reliability(confidence, right, 7, binning)
    assert table["n"].sum() == 317 and (table["n"] > 0).all()
    assert ((table["low"] <= table["confidence"]) & (table["confidence"] <= table["high"])).all()
    assert (table["n"] * table["accuracy"]).sum() == pytest.approx(right.sum())


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40), st.data()
)
@settings(max_examples=50, deadline=None)
def test_order_of_rows_does_not_matter_even_with_ties(rows, data):
    shuffled = data.draw(st.permutations(rows))
    for binning in BINNINGS:
        one, other = (expected_calibration_error(*zip(*r, strict=True), 4, binning) for r in (rows, shuffled))
        assert one == pytest.approx(other) and 0 <= one <= 1


def test_an_honest_reader_is_calibrated_and_a_boaster_is_not():
    honest, boaster = (simulated(5000, sharpen=s) for s in (1.0, 3.0))
    assert expected_calibration_error(*honest) < 0.03 < 0.08 < expected_calibration_error(*boaster)
    assert brier(*honest) < brier(*boaster)


def test_brier_by_hand():
    assert brier([1, 0.5, 0.2], [1, 0, 1]) == pytest.approx((0 + 0.25 + 0.64) / 3)
    assert expected_calibration_error([0.8] * 5, [1, 1, 1, 1, 0]) == pytest.approx(0)


def test_temperature_undoes_a_known_sharpening():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4000, 4))
    p = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    truth = (rng.random(4000)[:, None] > p.cumsum(1)).sum(1)
    fitted = fit_temperature(2.5 * honest, truth)
    assert fitted.value == pytest.approx(2.5, rel=0.08) and (fitted.split, fitted.n) == ("validation", 4000)
    applied = fitted.apply(2.5 * honest, "test")
    assert np.allclose(applied.sum(1), 1) and (applied.argmax(1) == honest.argmax(1)).all()

    def loss(value):  # a plain loop's likelihood over a grid finds no better one
        scaled = 2.5 * honest / value
        return np.mean([np.log(np.exp(row).sum()) - row[t] for row, t in zip(scaled, truth, strict=True)])

    assert loss(fitted.value) <= min(loss(v) for v in (1.5, 2.0, 2.4, 2.6, 3.0, 4.0)) + 1e-9


def test_questions_with_fewer_choices_are_padded_with_minus_infinity():
    scores, truth = np.array([[2.0, 1.0, -np.inf], [0.0, 1.0, 2.0], [1.0, 0.0, -np.inf]]), [0, 2, 1]
    fitted = fit_temperature(scores, truth)
    applied = fitted.apply(scores, "test")
    assert np.isfinite(fitted.value) and (applied[[0, 2], 2] == 0).all()
    with pytest.raises(BadInput, match="none of its question's choices"):
        fit_temperature(scores, [2, 2, 1])


def test_a_bare_confidence_can_be_cooled_down_too():
    confidence, right = simulated(4000, sharpen=3.0)
    half = 2000
    fitted = fit_temperature(two_way(confidence[:half]), 1 - right[:half])
    assert fitted.value == pytest.approx(3, rel=0.15)
    cooled = fitted.apply(two_way(confidence[half:]), "test")[:, 0]
    before, after = (expected_calibration_error(c, right[half:]) for c in (confidence[half:], cooled))
    assert after < before / 2


def test_a_temperature_is_fitted_on_validation_and_not_applied_there():
    with pytest.raises(BadInput, match="fitted on 'validation', got 'test'"):
        fit_temperature(np.zeros((3, 2)), [0, 1, 0], "test")
    fitted = fit_temperature(np.array([[1.0, 0], [0, 1], [1, 0]]), [0, 1, 1])
    with pytest.raises(BadInput, match="looks better than it is"):
        fitted.apply(np.zeros((1, 2)), "validation")


@pytest.mark.parametrize(
    ("confidence", "right", "options", "said"),
    [
        ([], [], {}, "one confidence"),
        ([0.5], [1, 0], {}, "one confidence"),
        ([1.5], [1], {}, "confidence lies"),
        ([float("nan")], [1], {}, "never missing"),
        ([0.5], [2], {}, "right lies"),
        ([0.5], [1], {"bins": 0}, "positive number"),
        ([0.5], [1], {"binning": "quantile"}, "equal mass, equal width"),
    ],
)
def test_what_cannot_be_binned_is_refused(confidence, right, options, said):
    with pytest.raises(BadInput, match=said):
        reliability(confidence, right, **options)
