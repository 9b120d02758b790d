"""Scores of many labels at once: F1, precision, recall, accuracy and AUROC, with thresholds chosen on other patients.

A threshold that is chosen on the patients that are scored afterwards flatters: it has been fitted to their noise.
Public evaluations of CT-RATE's labels do just that. So a :class:`Thresholds` knows the split and the patients that it
was chosen on, and no function here applies it to them, but for :func:`flattered`, which shows what it would gain.

"Weighted F1" has two meanings in print. Here ``weighted["F1"]`` is the mean over labels, each with the weight of its
positives, as scikit-learn's for many labels. What follows CT-CLIP's evaluation weights the two classes *within* a label
and then takes the plain mean over labels: that is ``macro["F1 of both classes"]``, and much higher where positives are
rare, because it rewards what is rightly called absent.

Sources: peers' evaluation code at fVLM d768ec1, "following CT-CLIP's evaluation protocol"; scikit-learn's metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput

RULES = ("closest to (0,1)", "best F1")
MEASURES = ("F1", "precision", "recall", "accuracy", "F1 of both classes", "AUROC")
HELD_OUT = ("test", "external")


@dataclass(frozen=True)
class Thresholds:
    """One threshold a label: called present from it on.

    Attributes:
        names: of the labels.
        values: ``(labels,)``; inf where the split has no positive, -inf where it has no negative.
        rule: one of ``RULES``.
        split, ids: the rows that they were chosen on, where they must not be applied.
        one_class: labels that had a single class there, so that nothing could be chosen.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    rule: str
    split: str
    ids: frozenset = field(repr=False)
    one_class: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelScores:
    """Scores of one split.

    Attributes:
        table: one row a label: ``label``, ``threshold``, ``n``, ``positives``, then ``MEASURES``, shares 0…1.
        macro: measure → plain mean over the labels that have both classes.
        weighted: measure → mean over the same labels, each with the weight of its positives.
        one_class: labels with a single class in the split: AUROC is NaN, and no mean holds them.
        split: which.
        notes: what has to be said beside the numbers.
    """

    table: pd.DataFrame
    macro: dict[str, float]
    weighted: dict[str, float]
    one_class: tuple[str, ...]
    split: str
    notes: tuple[str, ...]


def choose_thresholds(
    scores: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    ids: Sequence,
    rule: str = "closest to (0,1)",
    split: str = "validation",
) -> Thresholds:
    """Choose a threshold for each label on validation.

    Candidates are the scores themselves, and inf, at which nothing is called; of equally good ones the highest counts.

    Args:
        scores: ``(n, labels)``, higher means present.
        truth: ``(n, labels)``, 0 or 1.
        names: of the labels.
        ids: ``(n,)`` of the rows, better of the patients: none of them may be scored with these thresholds.
        rule: "closest to (0,1)", the point of the ROC curve nearest to its best corner, or "best F1".
        split: where the rows come from; "test" and "external" are refused.

    Raises:
        BadInput: a split that is scored, an unknown rule, or unusable arrays.

    Source: CT-CLIP's rule, closest to (0,1), which looks for it on the test split.
    """
    if split in HELD_OUT:
        raise BadInput(f"thresholds are chosen on 'validation', got {split!r}; what is tested on can't be tuned on")
    return _chosen(*_checked(scores, truth, names, ids), tuple(names), ids, rule, split)


def score_labels(
    scores: np.ndarray, truth: np.ndarray, thresholds: Thresholds, ids: Sequence, split: str = "test"
) -> LabelScores:
    """Score every label at thresholds from other patients.

    Precision is 0 where nothing is called present, as in scikit-learn with ``zero_division=0``.

    Args:
        scores, truth: ``(n, labels)``, in the order of ``thresholds.names``.
        thresholds: of :func:`choose_thresholds`.
        ids: ``(n,)`` of the rows, of the same kind as the thresholds'.
        split: where the rows come from.

    Raises:
        BadInput: the thresholds were chosen on this split or on some of these rows, or unusable arrays.
    """
    if not isinstance(thresholds, Thresholds):
        raise BadInput(f"thresholds are {type(thresholds).__name__}; make them with choose_thresholds on validation")
    scores, truth = _checked(scores, truth, thresholds.names, ids)
    if split == thresholds.split:
        raise BadInput(f"the thresholds were chosen on {split!r}, where they flatter; score another split with them")
    common = thresholds.ids & set(ids)
    if common:
        raise BadInput(
            f"the thresholds were chosen on {len(common)} of these ids, {min(common, key=str)} among them; score"
            f" rows that aren't in {thresholds.split!r}"
        )
    return _scored(scores, truth, thresholds, split, ())


def flattered(
    scores: np.ndarray, truth: np.ndarray, names: Sequence[str], rule: str = "closest to (0,1)", split: str = "test"
) -> LabelScores:
    """What the numbers would be with thresholds chosen on the rows that are scored. For contrast only, not for a table.

    Args:
        scores, truth, names, rule: as for :func:`choose_thresholds`.
        split: where the rows come from.

    Source: peers' way, see the module.
    """
    ids = range(len(scores))
    own = _chosen(*_checked(scores, truth, names, ids), tuple(names), ids, rule, split)
    return _scored(
        np.asarray(scores, float), np.asarray(truth), own, split, (f"thresholds chosen on {split!r} itself",)
    )


def _chosen(scores, truth, names: tuple[str, ...], ids: Sequence, rule: str, split: str) -> Thresholds:
    if rule not in RULES:
        raise BadInput(f"no rule is called {rule!r}; choose one of {', '.join(RULES)}")
    find = _closest if rule == RULES[0] else _best_f1
    values, one_class = [], []
    for name, score, true in zip(names, scores.T, truth.T, strict=True):
        if true.min() == true.max():
            one_class.append(name)
            values.append(-math.inf if true[0] else math.inf)  # it calls what it has seen
        else:
            values.append(find(score, true))
    return Thresholds(names, tuple(values), rule, split, frozenset(ids), tuple(one_class))


def _closest(score: np.ndarray, true: np.ndarray) -> float:
    """The point of the ROC curve that is nearest to no false positives and no false negatives."""
    from sklearn.metrics import roc_curve

    # points on a straight piece of the curve may be nearest, so none is dropped
    false_positive, true_positive, at = roc_curve(true, score, drop_intermediate=False)
    return float(at[np.argmin(np.hypot(false_positive, 1 - true_positive))])


def _best_f1(score: np.ndarray, true: np.ndarray) -> float:
    from sklearn.metrics import precision_recall_curve

    precision, recall, at = precision_recall_curve(true, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return float(at[::-1][np.argmax(f1[:-1][::-1])])  # the last point of the curve has no threshold


def _scored(scores, truth, thresholds: Thresholds, split: str, notes: tuple[str, ...]) -> LabelScores:
    called = scores >= np.array(thresholds.values)
    rows = [
        {"label": name, "threshold": thresholds.values[k], "n": len(truth), "positives": int(truth[:, k].sum())}
        | _measures(scores[:, k], called[:, k], truth[:, k])
        for k, name in enumerate(thresholds.names)
    ]
    table = pd.DataFrame(rows)
    both = table[(table["positives"] > 0) & (table["positives"] < table["n"])]
    one_class = tuple(table["label"][~table.index.isin(both.index)])
    macro = {name: float(both[name].mean()) for name in MEASURES}
    weight = both["positives"] / max(1, both["positives"].sum())
    weighted = {name: float((both[name] * weight).sum()) if len(both) else math.nan for name in MEASURES}
    return LabelScores(table, macro, weighted, one_class, split, notes + _notes(one_class, thresholds, len(both)))


def _measures(score: np.ndarray, called: np.ndarray, true: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    # each an array for absent, present
    precision, recall, f1, n = precision_recall_fscore_support(true, called.astype(int), labels=[0, 1], zero_division=0)
    area = roc_auc_score(true, score) if n.all() else math.nan
    found = (f1[1], precision[1], recall[1], np.mean(called == true), np.average(f1, weights=n), area)
    return {name: float(value) for name, value in zip(MEASURES, found, strict=True)}


def _notes(one_class: tuple[str, ...], thresholds: Thresholds, counted: int) -> tuple[str, ...]:
    """Sentences on what the means leave out and what couldn't be chosen."""
    notes = []
    if one_class:
        notes.append(
            f"single class here, so AUROC isn't defined: {', '.join(one_class)}; means are over {counted} labels"
        )
    if thresholds.one_class:
        notes.append(
            f"single class in {thresholds.split!r}, so no threshold was chosen: {', '.join(thresholds.one_class)}"
        )
    return tuple(notes)


def _checked(scores, truth, names: Sequence[str], ids: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of one shape, finite, 0 or 1; a name for each column, an id for each row."""
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    if scores.ndim != 2 or scores.shape != truth.shape or not scores.size:
        raise BadInput(f"scores are {scores.shape} and truth {truth.shape}; give both as (n, labels)")
    if len(names) != scores.shape[1] or len(set(names)) != len(names):
        raise BadInput(f"{len(set(names))} different names for {scores.shape[1]} labels; name each column once")
    if len(ids) != len(scores):
        raise BadInput(f"{len(ids)} ids for {len(scores)} rows; give one for each")
    if not np.isfinite(scores).all():
        raise BadInput(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores aren't finite; leave such rows out")
    if not np.isin(truth, (0, 1)).all():
        raise BadInput("truth holds other values than 0 and 1; give 1 where a label is true")
    return scores, truth.astype(int)
