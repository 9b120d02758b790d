"""Intervals over patients: what the same models would score on other patients of the same kind.

The answers of one patient aren't independent: who lies prone or has a rare finding is hard in every question. So whole
patients are drawn with replacement and all their rows come along. Means need each patient's sums only, and so does
anything that is computed from sums (accuracy, corpus BLEU from its counts of n-grams), which takes one matrix product
for all draws; other statistics are computed draw by draw.

The seeds of training are no patients: :func:`over_seeds` shows them as points with their range.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ctvlm_lib.errors import BadInput


@dataclass(frozen=True)
class Interval:
    """A value and what it would be on other patients.

    Attributes:
        value: the statistic of all rows.
        low, high: percentiles of its values over the drawn patients; NaN where there is one patient only.
        n, patients: number of rows and of patients.
        confidence: share of such intervals that hold the true value, 0…1.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}; {self.n} rows of {self.patients} patients)"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class OverSeeds:
    """One value for each seed of training, and their range; an interval over patients belongs to a seed.

    Attributes:
        intervals: (seed, interval over patients), by seed.
        low, high: smallest and largest of the seeds' values: a range of points, no interval.
    """

    intervals: tuple[tuple[int, Interval], ...]
    low: float
    high: float

    @property
    def values(self) -> tuple[float, ...]:
        """The points, by seed."""
        return tuple(interval.value for _, interval in self.intervals)

    @property
    def mean(self) -> float:
        """Mean of the points, to sort a table by."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        points = ", ".join(f"{value:.3f}" for value in self.values)
        return f"{points} (range {self.low:.3f} to {self.high:.3f} of {len(self.values)} seeds)"


def patient_bootstrap(
    values: Sequence | np.ndarray,
    patients: Sequence[Hashable],
    statistic: str | Callable[[np.ndarray], float] = "mean",
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over patients drawn with replacement.

    Args:
        values: ``(n,)`` or ``(n, …)``, one row for each answer.
        patients: n names, which row is whose.
        statistic: "mean"; or a function from the drawn rows, those of a patient as often as he was drawn, to a number.
            It gets row numbers if ``values`` is ``np.arange(n)``.
        confidence: of the interval, 0…1.
        resamples: how often the patients are drawn.
        seed: of the draws; the same patients and seed give the same draws whatever the values.

    Raises:
        BadInput: no rows, another number of patients than rows, a value or a statistic that isn't finite, or an
            impossible option.

    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), §3.8 (the clusters are drawn) and §5.3.1.
    """
    if isinstance(statistic, str):
        if statistic != "mean":
            raise BadInput(f"statistic is 'mean' or a function of the drawn rows, got {statistic!r}")
        return bootstrap_of_sums(_with_ones(values), patients, mean_of_sums, confidence=confidence,
                                 resamples=resamples, seed=seed)  # fmt: skip
    values, (order, start, of) = np.asarray(values), _grouped(patients, len(values))
    rows = np.split(order, start[1:])
    times = patient_draws(len(rows), resamples, seed).astype(int)
    drawn = [statistic(values[np.concatenate([rows[k] for k in np.repeat(np.arange(len(rows)), t)])]) for t in times]
    return _interval(float(statistic(values)), np.array(drawn, dtype=float), of, confidence)


def bootstrap_of_sums(
    sums: np.ndarray,
    patients: Sequence[Hashable],
    statistic_of_sums: Callable[[np.ndarray], np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The same for what is computed from sums over rows, all draws at once.

    Args:
        sums: ``(n, k)``, what each row adds; for BLEU-4 the matches and totals of four orders and two lengths.
        patients: n names.
        statistic_of_sums: from summed rows ``(…, k)`` to values ``(…)``; :func:`mean_of_sums` gives a mean.
        confidence, resamples, seed: as for :func:`patient_bootstrap`.

    Raises:
        BadInput: as for :func:`patient_bootstrap`.
    """
    totals, of = sums_of_patients(sums, patients)
    drawn = statistic_of_sums(patient_draws(len(totals), resamples, seed) @ totals)
    return _interval(float(statistic_of_sums(totals.sum(axis=0))), np.asarray(drawn, dtype=float), of, confidence)


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    """Sum of values over sum of weights: ``(…, 2)`` → ``(…)``."""
    return sums[..., 0] / sums[..., 1]


def sums_of_patients(sums: np.ndarray, patients: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of each patient.

    Args:
        sums: ``(n, k)``.
        patients: n names.

    Returns:
        ``(P, k)`` float64, patients in the order of their names; and which patient each row is, ``(n,)``.

    Raises:
        BadInput: no rows, another number of patients than rows, or a value that isn't finite.
    """
    sums = np.asarray(sums, dtype=float)
    order, start, of = _grouped(patients, len(sums))
    wrong = np.flatnonzero(~np.isfinite(sums).all(axis=tuple(range(1, sums.ndim))))
    if wrong.size:
        raise BadInput(
            f"row {wrong[0]} of {len(sums)} has no value ({wrong.size} have none); score it as wrong or leave it out,"
            " and say which"
        )
    return np.add.reduceat(sums[order], start, axis=0), of


def patient_draws(patients: int, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each patient is drawn: ``(resamples, patients)`` float64, read-only; a row adds up to ``patients``.

    Raises:
        BadInput: fewer than one draw.
    """
    if resamples < 1:
        raise BadInput(f"resamples is a positive number of draws, e.g. 2000, got {resamples}")
    return _drawn(patients, resamples, seed)


@lru_cache(maxsize=4)  # a table asks for the same ones again and again
def _drawn(patients: int, resamples: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, patients, (resamples, patients))
    drawn += patients * np.arange(resamples)[:, None]  # a range of numbers for each draw, so that one count does all
    times = np.bincount(drawn.ravel(), minlength=resamples * patients).reshape(resamples, patients).astype(float)
    times.setflags(write=False)
    return times


def over_seeds(intervals_by_seed: Mapping[int, Interval]) -> OverSeeds:
    """Show the seeds of training as points with their range.

    A handful of seeds says how much training alone moves the value, not how it is distributed; and pooling their
    answers would count each patient several times. So nothing is pooled.

    Raises:
        BadInput: no seed.
    """
    if not intervals_by_seed:
        raise BadInput("there is no seed to show; give {seed: interval}")
    intervals = tuple(sorted(intervals_by_seed.items()))
    values = [interval.value for _, interval in intervals]
    return OverSeeds(intervals, min(values), max(values))


def _with_ones(values: Sequence | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise BadInput(f"a mean takes one value a row, got an array of shape {values.shape}; give (n,)")
    return np.stack([values, np.ones_like(values)], axis=1)


def _grouped(patients: Sequence[Hashable], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows sorted by patient, where each patient begins there, and each row's patient."""
    if len(patients) != rows:
        raise BadInput(f"{rows} rows have {len(patients)} patients; give the patient of each row")
    if not rows:
        raise BadInput("there are no rows to score; give at least one answer")
    _, of = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(of, kind="stable")
    return order, np.flatnonzero(np.diff(of[order], prepend=-1)), of


def _interval(value: float, drawn: np.ndarray, of: np.ndarray, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise BadInput(f"confidence lies between 0 and 1, e.g. 0.95, got {confidence:g}")
    if not (np.isfinite(value) and np.isfinite(drawn).all()):
        raise BadInput(
            f"the statistic has no value in {np.sum(~np.isfinite(drawn))} of {drawn.size} draws of the patients;"
            " take one that is defined for any of them, or more patients"
        )
    patients = int(of.max()) + 1
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    if patients == 1:  # the only draw there is says nothing of other patients
        low = high = np.nan
    return Interval(value, float(low), float(high), of.size, patients, confidence)
