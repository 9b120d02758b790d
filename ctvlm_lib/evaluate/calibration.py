"""Calibration: of the answers that a model is 80 % sure of, are 80 % right?

A confidence here is the probability that the model gives its own answer; right or wrong is what the metrics say. The
expected calibration error depends on the bins, so their kind is always named: bins of equal width leave most of a sure
model's answers in one bin, those of equal mass hold about the same number each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput

BINNINGS = ("equal mass", "equal width")


def reliability(
    confidence: Sequence[float], right: Sequence[float], bins: int = 10, binning: str = "equal mass"
) -> pd.DataFrame:
    """Confidence beside accuracy, bin by bin.

    Answers of the same confidence share a bin, so the table doesn't depend on the order of rows; of a coarse confidence
    there may be fewer bins than asked for, and their masses differ.

    Args:
        confidence: ``(n,)``, 0…1.
        right: ``(n,)``, 1 where the answer is right, else 0.
        bins: how many, at most.
        binning: "equal mass" or "equal width".

    Returns:
        One row for each bin that holds answers: ``low``, ``high`` (its edges), ``confidence`` and ``accuracy`` (means)
        and ``n``.

    Raises:
        BadInput: values outside 0…1, of different number, none, or an unknown binning.
    """
    confidence, right = _checked(confidence, right)
    edges = _edges(confidence, bins, binning)
    # a bin holds its upper edge; the first also its lower one
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    n = np.bincount(place, minlength=len(edges) - 1)
    kept = n > 0
    means = [np.bincount(place, values, minlength=n.size)[kept] / n[kept] for values in (confidence, right)]
    columns = {"low": edges[:-1][kept], "high": edges[1:][kept], "confidence": means[0], "accuracy": means[1]}
    return pd.DataFrame(columns | {"n": n[kept]})


def expected_calibration_error(
    confidence: Sequence[float], right: Sequence[float], bins: int = 10, binning: str = "equal mass"
) -> float:
    """Mean over the answers of the gap between their bin's confidence and its accuracy.

        Σ n_b / n · |accuracy_b − confidence_b|

    Chance alone makes it positive, the more so the fewer answers a bin holds: compare models on the same answers.

    Args and raises: as :func:`reliability`.

    Source: Naeini et al. 2015 (equal width); Nguyen & O'Connor 2015 (equal mass).
    """
    table = reliability(confidence, right, bins, binning)
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((table["n"] * gap).sum() / table["n"].sum())


def brier(confidence: Sequence[float], right: Sequence[float]) -> float:
    """Mean squared gap between confidence and right (1) or wrong (0): of the answer given, not over all choices.

    Raises:
        BadInput: as :func:`reliability`.

    Source: Brier 1950.
    """
    confidence, right = _checked(confidence, right)
    return float(np.mean((confidence - right) ** 2))


@dataclass(frozen=True)
class Temperature:
    """A temperature and where it comes from.

    Attributes:
        value: above 1 the model was too sure, below 1 not sure enough.
        split: what it was fitted on; it refuses to be applied there.
        n: number of answers that it was fitted on.
    """

    value: float
    split: str
    n: int

    def apply(self, scores: np.ndarray, split: str) -> np.ndarray:
        """Probabilities of the choices at this temperature.

        Args:
            scores: ``(n, choices)`` log-probabilities or logits; −inf where a question has fewer choices.
            split: where they come from.

        Returns:
            ``(n, choices)``, each row adds up to 1. The order of choices stays, and so does the answer.

        Raises:
            BadInput: the split is the one that the temperature was fitted on.
        """
        if split == self.split:
            raise BadInput(
                f"the temperature was fitted on {self.split!r}, where it looks better than it is; apply it to 'test'"
            )
        return np.exp(_log_softmax(np.asarray(scores, dtype=float) / self.value))


def fit_temperature(scores: np.ndarray, truth: Sequence[int], split: str = "validation") -> Temperature:
    """Choose the temperature under which the right choices are most probable.

    Args:
        scores: ``(n, choices)`` log-probabilities or logits; −inf where a question has fewer choices.
        truth: ``(n,)``, place of the right choice.
        split: "validation"; nothing is chosen on another.

    Raises:
        BadInput: another split, a truth that isn't one of the choices, or no scores.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, §4.2.
    """
    from scipy.optimize import minimize_scalar

    if split != "validation":
        raise BadInput(f"a temperature is fitted on 'validation', got {split!r}; what is tested on can't be tuned on")
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=int)
    if scores.ndim != 2 or not len(scores) or truth.shape != (len(scores),):
        raise BadInput(f"scores are (n, choices) with n right places, got {scores.shape} and {truth.shape}")
    rows = np.arange(len(scores))
    if truth.min() < 0 or truth.max() >= scores.shape[1] or not np.isfinite(scores[rows, truth]).all():
        raise BadInput("a right answer is none of its question's choices; give its place among those with a score")

    def loss(log_value: float) -> float:
        return -_log_softmax(scores / np.exp(log_value))[rows, truth].mean()

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6})
    return Temperature(float(np.exp(best.x)), split, len(scores))


def two_way(confidence: Sequence[float]) -> np.ndarray:
    """Log-probabilities of "right" and "wrong", for readers of whom only a confidence is known.

    Fitted with ``truth = 1 − right``, the temperature then moves a confidence towards or away from a half; with the
    scores of all choices, which is better, towards one over their number.

    Args:
        confidence: ``(n,)``, 0…1.

    Returns:
        ``(n, 2)``; confidences are kept 10⁻⁶ from 0 and 1, so that no answer is infinitely wrong.
    """
    sure = np.clip(np.asarray(confidence, dtype=float), 1e-6, 1 - 1e-6)
    return np.log(np.stack([sure, 1 - sure], axis=1))


def _edges(confidence: np.ndarray, bins: int, binning: str) -> np.ndarray:
    if bins < 1:
        raise BadInput(f"bins is a positive number, e.g. 10, got {bins}")
    if binning == "equal width":
        return np.linspace(0, 1, bins + 1)
    if binning != "equal mass":
        raise BadInput(f"no binning is called {binning!r}; choose one of {', '.join(BINNINGS)}")
    upper = -(-confidence.size * np.arange(1, bins + 1) // bins) - 1  # in whole numbers: shares would be rounded
    edges = np.unique(np.sort(confidence)[np.r_[0, np.maximum(upper, 0)]])
    return edges if edges.size > 1 else np.repeat(edges, 2)


def _checked(confidence: Sequence[float], right: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    confidence, right = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if confidence.ndim != 1 or confidence.shape != right.shape or not confidence.size:
        raise BadInput(f"give one confidence and one 0 or 1 for each answer, got {confidence.shape} and {right.shape}")
    for name, values in (("confidence", confidence), ("right", right)):
        if not ((values >= 0) & (values <= 1)).all():
            raise BadInput(f"{name} lies between 0 and 1 and is never missing; leave out answers without a confidence")
    return confidence, right


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
