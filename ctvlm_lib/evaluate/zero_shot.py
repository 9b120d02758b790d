"""Zero-shot detection: an image vector against "There is X.", alone or against "There is no X."; with intervals.

A label's score is the cosine with the affirming sentence, or how much nearer the image lies to it than to the denying
one, as CT-CLIP has it. A text tower that hardly tells the two sentences apart makes the second score noise. AUROC needs
no threshold; F1, accuracy and precision take one from validation for each label
(:mod:`ctvlm_lib.evaluate.labels`). All are means over the labels. "Weighted F1" is what follows CT-CLIP's evaluation:
the two classes within a label, weighted by their size.

Intervals draw whole patients with replacement; a threshold stays what it is. Two arms' difference is taken in the same
draws, so that a patient who is hard for both counts on both sides.

Source: medvista3d.txt §4.2, tables 1 and 2; CT-CLIP (arXiv 2403.17834) for the pair of sentences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import patient_draws
from ctvlm_lib.evaluate.labels import choose_thresholds

WORDINGS = ("affirmed", "pair")
MEASURES = ("AUROC", "F1 of both classes", "accuracy", "precision")  # in the papers' table: AUC, F1, ACC, Precision


@dataclass(frozen=True, eq=False)
class Detection:
    """One label's scores in a split.

    Attributes:
        score: ``(n,)``, higher means present.
        truth: bool ``(n,)``.
        patient: int ``(n,)``: whose rows they are, numbers from 0 within the split.
    """

    score: np.ndarray
    truth: np.ndarray
    patient: np.ndarray

    def __post_init__(self) -> None:
        sizes = {len(self.score), len(self.truth), len(self.patient)}
        if len(sizes) != 1 or not len(self.score):
            raise BadInput(f"scores, truth and patients have {sorted(sizes)} rows; give at least one, and one for each")
        if not np.isfinite(self.score).all():
            raise BadInput(f"{(~np.isfinite(self.score)).sum()} scores aren't finite; leave such rows out and say so")


Detections = Mapping[str, Detection]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A mean over labels, and its values over drawn patients.

    Attributes:
        value: of all patients.
        draws: ``(resamples,)``: of the same patients in each draw for any model.
        each: ``(patients,)``: each patient's share, the jackknife's pseudo-value; their mean is about ``value``.
        labels: over how many labels the mean goes; of other statistics 0.
    """

    value: float
    draws: np.ndarray = field(repr=False)
    each: np.ndarray = field(repr=False)
    labels: int = 0

    @classmethod
    def of(cls, statistic: Callable[[np.ndarray], np.ndarray], patients: int, resamples=2000, seed=0, labels=0):
        """Draw patients for a statistic of how often each is drawn.

        Args:
            statistic: ``(m, patients)`` → ``(m,)``.
            patients: how many there are.
            resamples, seed: of the draws, the same for any statistic.
            labels: over how many labels it is a mean.
        """
        one_left_out = 1.0 - np.eye(patients)
        times = np.concatenate([np.ones((1, patients)), one_left_out, patient_draws(patients, resamples, seed)])
        values = statistic(times)
        value, without = float(values[0]), values[1 : 1 + patients]
        return cls(value, values[1 + patients :], patients * value - (patients - 1) * without, labels)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Percentiles of the draws."""
        low, high = np.quantile(self.draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Two-sided: twice the smaller share of draws on one side of 0, of a difference."""
        less = min((self.draws <= 0).sum(), (self.draws >= 0).sum())
        return float(min(1.0, 2 * (less + 1) / (len(self.draws) + 1)))

    def minus(self, other: "Drawn") -> "Drawn":
        """The difference, draw by draw; both must come from the same patients.

        Raises:
            BadInput: another number of draws or of labels.
        """
        if len(self.draws) != len(other.draws) or self.labels != other.labels:
            raise BadInput("two arms can be compared on the same labels, patients and number of draws only")
        return Drawn(self.value - other.value, self.draws - other.draws, self.each - other.each, self.labels)


def worded_scores(cosines: np.ndarray, wording: str = "affirmed") -> np.ndarray:
    """Scores of labels from an image's cosines with both sentences.

    Args:
        cosines: ``(2, …)``: with the affirming and with the denying sentence.
        wording: one of WORDINGS: "affirmed", the first alone; "pair", the first less the second. The probability of the
            affirming one of a pair is its sigmoid after division by τ, in the same order.

    Raises:
        BadInput: an unknown wording.
    """
    if wording not in WORDINGS:
        raise BadInput(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
    return cosines[0] if wording == "affirmed" else cosines[0] - cosines[1]


def detection_scores(
    validation: Detections, test: Detections, *, resamples: int = 2000, seed: int = 0, rule: str = "closest to (0,1)"
) -> dict[str, Drawn]:
    """Score labels with thresholds from validation.

    Args:
        validation, test: label → scores; the same labels. Of other patients.
        resamples, seed: of the draws.
        rule: of the thresholds, see :func:`ctvlm_lib.evaluate.labels.choose_thresholds`.

    Returns:
        MEASURES → mean over the labels that have both classes in each of the two.

    Raises:
        BadInput: other labels, or none with both classes.
    """
    if list(validation) != list(test):
        raise BadInput(f"validation has the labels {', '.join(validation)} and test {', '.join(test)}; give the same")
    usable = [name for name in test if _both(test[name].truth) and _both(validation[name].truth)]
    if not usable:
        raise BadInput("no label has both classes in validation and in test; take more patients")
    patients = 1 + max(int(test[name].patient.max()) for name in test)
    at = {name: _threshold(validation[name], name, rule) for name in usable}
    found = {}
    for measure in MEASURES:

        def mean(times: np.ndarray, measure: str = measure) -> np.ndarray:
            return sum(_MEASURED[measure](test[name], at[name], times) for name in usable) / len(usable)

        found[measure] = Drawn.of(mean, patients, resamples, seed, len(usable))
    return found


def _both(truth: np.ndarray) -> bool:
    return bool(truth.any() and not truth.all())


def _threshold(on: Detection, name: str, rule: str) -> float:
    chosen = choose_thresholds(on.score[:, None], on.truth[:, None], [name], list(on.patient), rule)
    return chosen.values[0]


def _cells(one: Detection, threshold: float, times: np.ndarray) -> np.ndarray:
    """Hits, false alarms, misses and rightly absent ``(4, m)``, for each row of how often each patient is drawn."""
    true, called = one.truth.astype(float), (one.score >= threshold).astype(float)
    cells = np.stack([true * called, (1 - true) * called, true * (1 - called), (1 - true) * (1 - called)], axis=1)
    of_patient = np.zeros((times.shape[1], 4))
    np.add.at(of_patient, one.patient, cells)
    return (times @ of_patient).T


def _f1(one: Detection, threshold: float, times: np.ndarray) -> np.ndarray:
    hit, false, missed, right = _cells(one, threshold, times)
    wrong = false + missed
    of_present, of_absent = _share(2 * hit, 2 * hit + wrong), _share(2 * right, 2 * right + wrong)
    return _share(of_present * (hit + missed) + of_absent * (right + false), hit + wrong + right)


def _accuracy(one: Detection, threshold: float, times: np.ndarray) -> np.ndarray:
    hit, false, missed, right = _cells(one, threshold, times)
    return _share(hit + right, hit + false + missed + right)


def _precision(one: Detection, threshold: float, times: np.ndarray) -> np.ndarray:
    hit, false, *_ = _cells(one, threshold, times)
    return _share(hit, hit + false)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part of a whole, 0 of nothing, as scikit-learn with ``zero_division=0``."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def area(one: Detection, times: np.ndarray) -> np.ndarray:
    """AUROC with a weight for each row: the share of weighted pairs in which the positive scores higher, ties half.

    Pairs are counted once for each two patients, and what each weighs in a draw follows in one product of matrices.
    All sums are of halves, and exact in 32 bits, too, up to eight million pairs of one patient. A draw without one of
    the classes has no area; 0.5 stands for it, which is rare and favours nobody.
    """
    patients, (absent, present) = times.shape[1], (np.flatnonzero(one.truth == known) for known in (False, True))
    higher, other = one.score[present, None], one.score[absent]
    of_two = one.patient[present, None] * patients + one.patient[absent]
    won = np.bincount(of_two.ravel(), ((higher > other) + 0.5 * (higher == other)).ravel(), patients**2)
    of_patient = [np.bincount(one.patient[rows], minlength=patients) for rows in (present, absent)]
    pairs = np.prod([times @ count for count in of_patient], axis=0, dtype=float)
    above = np.einsum("ij,ij->i", times.astype(np.float32) @ won.reshape(patients, -1).astype(np.float32), times)
    return np.divide(above, pairs, out=np.full(len(pairs), 0.5), where=pairs > 0)


_MEASURED = dict(zip(MEASURES, (lambda one, _, times: area(one, times), _f1, _accuracy, _precision), strict=True))


def text_pairs(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The two sentences of each label, as CT-CLIP words them: "There is …" and "There is no …"."""
    low = [label[0].lower() + label[1:] for label in labels]
    return [f"There is {label}." for label in low], [f"There is no {label}." for label in low]
