"""Abstention: which answers to give and which to refuse, by the reader's confidence or by the quality of the mask.

The contour paper leaves it for later: "integrating lightweight uncertainty estimation could allow the system to abstain
when the prompt is mis-aligned, further enhancing clinical safety" (contour.txt §5). Here a score ranks the answers, the
least trusted are refused first, and what is lost in answers (coverage) stands beside what is left of errors (risk). A
threshold is chosen on validation and then only applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput


@dataclass(frozen=True)
class Abstention:
    """What is left when a threshold is applied.

    Attributes:
        coverage: share of answers that are given, 0…1.
        risk: share of these that are wrong; NaN where none is given.
        refused: share of answers that are refused.
        refused_right: share of the right answers that are refused: what it costs.
        n: number of answers, given or refused.
        split: of the answers.
        answered: ``(n,)`` bool, in the order of the rows.
    """

    coverage: float
    risk: float
    refused: float
    refused_right: float
    n: int
    split: str
    answered: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Threshold:
    """Answers with at least this score are given.

    Attributes:
        value: inf refuses all, because no threshold reached the target.
        target_risk: share of errors that was aimed at.
        split: what it was chosen on; it refuses to be applied there.
        coverage, risk: reached on that split, where it looks better than it is.
    """

    value: float
    target_risk: float
    split: str
    coverage: float
    risk: float

    def apply(self, score: Sequence[float], right: Sequence[float], split: str) -> Abstention:
        """Refuse what lies below the threshold.

        Args:
            score: ``(n,)``, of the same kind as the threshold was chosen by.
            right: ``(n,)``, 1 where the answer is right, else 0.
            split: where the answers come from.

        Raises:
            BadInput: the split is the one that the threshold was chosen on, or unusable values.
        """
        if split == self.split:
            raise BadInput(
                f"the threshold was chosen on {self.split!r}, where it keeps its target by choice; apply it to 'test'"
            )
        score, right = _checked(score, right)
        given = score >= self.value
        risk = float(1 - right[given].mean()) if given.any() else float("nan")
        lost = float(right[~given].sum() / right.sum()) if right.sum() else 0.0
        return Abstention(float(given.mean()), risk, float(1 - given.mean()), lost, score.size, split, given)


def risk_coverage(score: Sequence[float], right: Sequence[float]) -> pd.DataFrame:
    """Risk at every coverage that a threshold can reach.

    Answers of the same score are given or refused together, so the curve doesn't depend on the order of rows.

    Args:
        score: ``(n,)``, higher is trusted more: confidence, or the mask's quality.
        right: ``(n,)``, 1 where the answer is right, else 0.

    Returns:
        One row for each different score, highest first: ``threshold``, ``n`` (answers given), ``coverage`` and
        ``risk`` (share of those given that are wrong). The last row gives all answers.

    Raises:
        BadInput: no answers, a missing score, or another number of scores than answers.

    Source: El-Yaniv & Wiener 2010, On the Foundations of Noise-free Selective Classification.
    """
    score, right = _checked(score, right)
    thresholds, block = np.unique(-score, return_inverse=True)  # highest first
    n = np.cumsum(np.bincount(block))
    wrong = np.cumsum(np.bincount(block, 1 - right))
    return pd.DataFrame({"threshold": -thresholds, "n": n, "coverage": n / score.size, "risk": wrong / n})


def area(score: Sequence[float], right: Sequence[float]) -> float:
    """Area under the risk–coverage curve: mean risk over all numbers of answers given, 1 to n; lower is better.

    Within a block of the same score it is the mean over all orders of the block, so that a reader who is equally sure
    of everything gets his share of errors: nothing is gained by a score that doesn't tell.

    Args and raises: as :func:`risk_coverage`.

    Source: Geifman, Uziel & El-Yaniv 2019, Bias-Reduced Uncertainty Estimation (AURC).
    """
    curve = risk_coverage(score, right)
    wrong = (curve["risk"] * curve["n"]).to_numpy()
    n = curve["n"].to_numpy()
    given = np.arange(1, n[-1] + 1)
    # in the mean over orders, errors grow evenly within a block: straight lines between the blocks' ends
    return float(np.mean(np.interp(given, np.r_[0, n], np.r_[0.0, wrong]) / given))


def choose_threshold(
    score: Sequence[float], right: Sequence[float], target_risk: float, split: str = "validation"
) -> Threshold:
    """The threshold that gives most answers with at most the target share of errors.

    It is the luckiest of many on this split: elsewhere expect more errors than the target, the more so the fewer
    patients there are here.

    Args:
        score, right: as for :func:`risk_coverage`.
        target_risk: 0…1.
        split: where the answers come from; "test" and "external" are refused.

    Raises:
        BadInput: a split that is scored, a target outside 0…1, or unusable values.
    """
    if split in ("test", "external"):
        raise BadInput(f"a threshold is chosen on 'validation', got {split!r}; what is tested on can't be tuned on")
    if not 0 <= target_risk <= 1:
        raise BadInput(f"a target risk is a share of errors between 0 and 1, got {target_risk:g}")
    curve = risk_coverage(score, right)
    kept = curve[curve["risk"] <= target_risk + 1e-12]
    if kept.empty:
        return Threshold(float("inf"), target_risk, split, 0.0, float("nan"))
    best = kept.iloc[-1]  # coverage grows along the curve
    return Threshold(float(best["threshold"]), target_risk, split, float(best["coverage"]), float(best["risk"]))


def _checked(score: Sequence[float], right: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    score, right = np.asarray(score, dtype=float), np.asarray(right, dtype=float)
    if score.ndim != 1 or score.shape != right.shape or not score.size:
        raise BadInput(f"give one score and one 0 or 1 for each answer, got {score.shape} and {right.shape}")
    if np.isnan(score).any():
        raise BadInput(
            f"{np.isnan(score).sum()} of {score.size} answers have no score; a reader without a confidence can't"
            " abstain by it: take the mask's quality, or leave the reader out"
        )
    if not ((right >= 0) & (right <= 1)).all():
        raise BadInput("right is 1 where an answer is right and 0 where it is wrong; give nothing else")
    return score, right
