"""Is one arm better than another on the same questions? Differences within patients, their interval, test and power.

Both arms answer the same questions of the same patients, so what makes a patient hard for both cancels out. The test
asks how often a difference as large as ours would come up if the two arms' names were swapped at random within
patients: it assumes nothing about how scores are distributed, and holds for accuracies and for corpus BLEU alike.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import bootstrap_of_sums, mean_of_sums, sums_of_patients

if TYPE_CHECKING:
    import pandas as pd

    Scores = Mapping[Hashable, float] | pd.Series | pd.DataFrame

EXACT = 12  # up to so many patients who differ, all 2^12 swaps are enumerated
_AT_ONCE = 2000  # swaps in one matrix product


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """Left minus right on the same questions.

    Attributes:
        value: the difference.
        low, high: interval over patients, at ``confidence``.
        p: two-sided, of the swaps; it is exact where all of them were enumerated.
        n, patients: questions and patients.
        left, right: the two sides' own values.
        differences: ``(P,)``, one a patient, with mean ``value`` (for a mean exactly, else but for the bias of the
            jackknife), on the scale of ``value``.
        exact: whether all swaps were enumerated.
        confidence: of the interval.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    patients: int
    left: float
    right: float
    differences: np.ndarray = field(repr=False)
    exact: bool = False
    confidence: float = 0.95

    def __str__(self) -> str:
        return (
            f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p = {self.p:.2g};"
            f" {self.n} questions to {self.patients} patients"
        )


def paired_difference(
    left: "Scores",
    right: "Scores",
    patients: "Mapping[Hashable, Hashable] | pd.Series",
    ids: Sequence[Hashable] | None = None,
    *,
    weights: Mapping[Hashable, float] | None = None,
    statistic_of_sums: Callable[[np.ndarray], np.ndarray] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    flips: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two arms question by question, patient by patient.

    Args:
        left, right: question id → score, higher is better; a dict or a Series. With ``statistic_of_sums``, id → the k
            sums that a question adds (a dict of vectors or a DataFrame).
        patients: question id → patient.
        ids: which questions; None takes all, and both sides must then have the same.
        weights: question id → weight, see :func:`equal_weights`; None: every question has the same.
        statistic_of_sums: from summed rows ``(…, k)`` to values ``(…)``, e.g. corpus BLEU; None takes means.
        confidence, resamples: of the interval, see :func:`ctvlm_lib.evaluate.intervals.patient_bootstrap`.
        flips: random swaps, where the patients who differ are too many to enumerate.
        seed: of the draws and swaps.

    Raises:
        BadInput: a question that one side, or the table of patients, doesn't have, or has twice; a score that isn't
            finite; weights together with ``statistic_of_sums``.

    Source: Good, Permutation, Parametric and Bootstrap Tests (2005), §3; Phipson & Smyth 2010 for the +1 of random
    swaps; Efron & Tibshirani, An Introduction to the Bootstrap (1993), §11 for pseudo-values.
    """
    sides, names = _matched(left, right, patients, ids)
    if statistic_of_sums is None:
        weight = np.ones(len(names)) if weights is None else np.array([weights[name] for name in names], dtype=float)
        sides = [np.stack([side * weight, weight], axis=1) for side in sides]
    elif weights is not None:
        raise BadInput("weights are for means; a statistic of sums weighs its questions by what they add")
    statistic = statistic_of_sums or mean_of_sums
    patient_of, k = dict(patients), sides[0].shape[1]
    owner = [patient_of[name] for name in names]
    both = np.concatenate(sides, axis=1)

    def difference(sums: np.ndarray) -> np.ndarray:
        return statistic(sums[..., :k]) - statistic(sums[..., k:])

    interval = bootstrap_of_sums(both, owner, difference, confidence=confidence, resamples=resamples, seed=seed)
    totals, _ = sums_of_patients(both, owner)
    if statistic_of_sums is None:  # each patient's share: means 0.02 if all patients' were alike and the value 0.02
        each = (totals[:, 0] - totals[:, 2]) / totals[:, 1].mean()
    else:
        each = _pseudo_values(totals, difference)
    p, exact = _swap_test(totals, difference, flips, seed)
    value_of = [float(statistic(totals[:, part].sum(axis=0))) for part in (slice(k), slice(k, None))]
    return PairedDifference(interval.value, interval.low, interval.high, p, interval.n, interval.patients, *value_of,
                            each, exact, confidence)  # fmt: skip


def equal_weights(groups: Mapping[Hashable, Hashable]) -> dict[Hashable, float]:
    """Question id → weight that gives every group (kind of question, patient) the same say, however many it has."""
    counts = Counter(groups.values())
    return {name: 1 / counts[group] for name, group in groups.items()}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p values of several tests, so that among all of them one is wrong by chance at most at the level.

    Args:
        p_values: 0…1, in any order.

    Returns:
        Adjusted values in the same order, none below its own and in the same order of size.

    Raises:
        BadInput: a value outside 0…1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, dtype=float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise BadInput(f"a p value lies between 0 and 1, got {p[~((p >= 0) & (p <= 1))][0]:g}; give p values")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def smallest_detectable_difference(differences: np.ndarray, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided test would find with this power, among patients who vary as these do.

        (z(1 − α/2) + z(power)) · sd / √patients        by the normal approximation, good from about 20 patients on

    It depends on the spread of the differences and not on their mean, so it may be told beside any result.

    Args:
        differences: ``(P,)``, one a patient, such as :attr:`PairedDifference.differences`.
        power: chance to find it, 0…1.
        alpha: level of the test.

    Returns:
        On the scale of ``differences``; NaN of fewer than two patients.

    Raises:
        BadInput: power or alpha outside 0…1.
    """
    for name, share in (("power", power), ("alpha", alpha)):
        if not 0 < share < 1:
            raise BadInput(f"{name} lies between 0 and 1, got {share:g}")
    differences = np.asarray(differences, dtype=float)
    if differences.size < 2:
        return float("nan")
    z = NormalDist().inv_cdf
    return float((z(1 - alpha / 2) + z(power)) * differences.std(ddof=1) / np.sqrt(differences.size))


def margin_tests(differences: np.ndarray, margin: float, flips: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Test a mean difference against ±margin, by flips of sign of the differences moved to each margin.

    Args:
        differences: ``(P,)``, one a patient.
        margin: positive, on their scale.
        flips, seed: of the random flips.

    Returns:
        p of "it isn't within ±margin" (two one-sided tests, the larger) and of "it isn't beyond" (two-sided). A small
        first one says on par, a small second one says different by more than the margin.

    Raises:
        BadInput: the margin isn't positive.

    Source: Schuirmann 1987 for the two one-sided tests.
    """
    if not margin > 0:
        raise BadInput(f"a margin is a positive difference, e.g. 0.02, got {margin:g}")
    d = np.asarray(differences, dtype=float)
    within = max(_one_sided(margin + d, flips, seed), _one_sided(margin - d, flips, seed))
    beyond = 2 * min(_one_sided(d - margin, flips, seed), _one_sided(-d - margin, flips, seed))
    return within, min(1.0, beyond)


def _matched(left, right, patients, ids) -> tuple[list[np.ndarray], list[Hashable]]:
    """Both sides' scores in the same order, and the questions' ids."""
    tables = {"left": _table(left, "left"), "right": _table(right, "right")}
    wanted = list(tables["left"]) if ids is None else list(ids)
    twice, count = next(iter(Counter(wanted).most_common(1)), ("", 0))
    if count > 1:
        raise BadInput(f"question {twice!r} stands {count} times among the ids; give each once")
    if ids is None:  # what only the right side has is missing on the left
        wanted += [name for name in tables["right"] if name not in tables["left"]]
    for side, table in (*tables.items(), ("table of patients", _table(patients, "patients"))):
        missing = [name for name in wanted if name not in table]
        if missing:
            raise BadInput(
                f"the {side} side lacks {len(missing)} of {len(wanted)} questions, the first is {missing[0]!r};"
                " compare arms on the same questions, or pass those that both have as ids"
                if side in tables
                else f"no patient is given for {len(missing)} of {len(wanted)} questions, the first is {missing[0]!r}"
            )
    return [np.array([table[name] for name in wanted], dtype=float) for table in tables.values()], wanted


def _table(side, name: str) -> dict:
    if not hasattr(side, "to_numpy"):
        return dict(side)
    twice = side.index[side.index.duplicated()]
    if len(twice):
        raise BadInput(f"{name} has question {twice[0]!r} more than once; take one condition, control and seed")
    return dict(zip(side.index, side.to_numpy(), strict=True))


def _pseudo_values(totals: np.ndarray, difference: Callable) -> np.ndarray:
    """The jackknife's: what each patient contributes, P times all of them less P − 1 times all but him."""
    everybody, patients = totals.sum(axis=0), len(totals)
    return patients * difference(everybody) - (patients - 1) * difference(everybody - totals)


def _swap_test(totals: np.ndarray, difference: Callable, flips: int, seed: int) -> tuple[float, bool]:
    """Share of swaps of the two sides within patients that give a difference as large; and whether all were tried."""
    k = totals.shape[1] // 2
    swap = np.roll(totals, k, axis=1) - totals  # what swapping a patient adds to the sums
    swap = swap[np.any(swap != 0, axis=1)]
    observed, base = abs(float(difference(totals.sum(axis=0)))), totals.sum(axis=0)
    least = observed - 1e-9 * max(1.0, observed)  # a swap that gives the same but for rounding counts

    def as_large(chosen: np.ndarray) -> int:
        return int(np.sum(np.abs(difference(base + chosen @ swap)) >= least))

    if len(swap) <= EXACT:
        chosen = (np.arange(2 ** len(swap))[:, None] >> np.arange(len(swap))) & 1
        return as_large(chosen.astype(float)) / len(chosen), True
    return (1 + sum(as_large(c) for c in _coins(flips, len(swap), seed))) / (1 + flips), False


def _one_sided(d: np.ndarray, flips: int, seed: int) -> float:
    """P that flipping signs gives a sum as large as that of ``d``: small if the mean is above 0."""
    least, total = d.sum() - 1e-9 * np.abs(d).sum(), d.sum()
    reached = sum(int(np.sum(total - 2 * (chosen @ d) >= least)) for chosen in _coins(flips, d.size, seed))
    return (1 + reached) / (1 + flips)


def _coins(flips: int, patients: int, seed: int):
    """Random swaps, ``(≤ _AT_ONCE, patients)`` of 0 and 1 at a time."""
    rng = np.random.default_rng((seed, 1))  # another stream than that of the interval's draws
    for first in range(0, flips, _AT_ONCE):
        yield rng.integers(0, 2, (min(_AT_ONCE, flips - first), patients)).astype(float)
