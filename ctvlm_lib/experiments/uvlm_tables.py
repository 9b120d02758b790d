"""Tables of U-VLM's arms, from what they said: findings called, lesions of three organs, wording, overlap.

Every measure is a function of how often each patient is drawn, so that two arms are compared on the same draws.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.damaged import read_csv
from ctvlm_lib.evaluate.abnormalities import labels_of_report
from ctvlm_lib.evaluate.labels import choose_thresholds
from ctvlm_lib.evaluate.text import text_statistics
from ctvlm_lib.evaluate.zero_shot import Detection, Drawn, area
from ctvlm_lib.experiments.stored_arms import StoredArms
from ctvlm_lib.experiments.uvlm_arms import CLS, PREFIX, REP, SEG
from ctvlm_lib.experiments.uvlm_said import ORGANS, read_said
from ctvlm_lib.records.report import LABELS
from ctvlm_lib.segment.class_maps import ClassMap

Statistic = Callable[[np.ndarray], np.ndarray]  # of how often each is drawn, (m, n) → (m,)
SHARES = ("F1", "precision", "recall")
BLEU = tuple(f"BLEU-{n}" for n in (1, 2, 3, 4))
TABLE = "table.csv"  # beside what an arm said: what follows from it
COLUMNS = ["split", "measure", "patients", "value", "low", "high"]
_OF_ORGAN = {organ: [k for k, name in enumerate(LABELS) if name.lower().startswith(organ)] for organ in ORGANS}


class Store(StoredArms):
    """Stored arms of U-VLM and their scores."""

    prefix = PREFIX

    def said(self, arm: str, seed: int, split: str) -> dict[str, np.ndarray]:
        """What an arm said of a split, see :func:`ctvlm_lib.experiments.uvlm.ask`.

        Raises:
            BadInput: it isn't stored.
        """
        return self._read(self.folder(arm, seed) / f"{split}.npz")

    def truth(self, split: str) -> dict[str, np.ndarray]:
        """What is true of a split: ``labels`` ``(n, 18)`` and ``report``, n texts.

        Raises:
            BadInput: it isn't stored.
        """
        return self._read(self.truth_file(split))

    def scores(self, arm: str, seed: int) -> dict[str, Drawn]:
        """Every measure of an arm on the test split, "labels F1" … "BLEU-mean", "Dice of lesions".

        Raises:
            BadInput: it isn't stored.
        """
        key = (arm, seed)
        if key not in self._kept:
            what = self.record(arm, seed)["arm"]
            measured = {SEG: self._of_masks, CLS: self._of_logits, REP: self._of_reports}[what["stage"]]
            self._kept[key] = measured(arm, seed, what)
        return self._kept[key]

    def everything_called(self) -> dict[str, Drawn]:
        """Every F1, precision and recall on the test split of calling every label for everybody: a floor of F1.

        A threshold for the best F1 comes to this where scores tell nothing, and it is high where findings are frequent.

        Raises:
            BadInput: what is true of the split isn't stored.
        """
        truth = self.truth("test")["labels"].astype(bool)
        every = np.ones_like(truth)
        return _shares("labels", every, truth) | _lesion_scores(organ_lesions(every), organ_lesions(truth))

    def _of_masks(self, arm: str, seed: int, what: dict) -> dict[str, Drawn]:
        said = self.said(arm, seed, "test")
        lesions = ClassMap.of("phantom", what["granularity"]).lesions
        anatomy = said["dice"].shape[1] - len(lesions)
        found = {"Dice of anatomy": _dice(said["dice"][:, :anatomy])}
        if not lesions:
            return found
        found["Dice of lesions"] = _dice(said["dice"][:, anatomy:])
        tuned = self.said(arm, seed, "validation")["lesion"].astype(float)
        known = organ_lesions(self.truth("validation")["labels"])[: len(tuned)]
        called = _called(tuned, known, said["lesion"].astype(float), ORGANS)
        return found | _lesion_scores(called, organ_lesions(self.truth("test")["labels"]))

    def _of_logits(self, arm: str, seed: int, _: dict) -> dict[str, Drawn]:
        tuned, said = (self.said(arm, seed, split)["logits"] for split in ("validation", "test"))
        known, truth = (self.truth(split)["labels"].astype(bool) for split in ("validation", "test"))
        found = _shares("labels", _called(tuned, known, said, LABELS), truth)
        organs = [np.stack([one[:, of].max(axis=1) for of in _OF_ORGAN.values()], axis=1) for one in (tuned, said)]
        called = _called(organs[0], organ_lesions(known), organs[1], ORGANS)
        found |= _lesion_scores(called, organ_lesions(truth))
        areas = {"labels": (said, truth), "lesions": (organs[1], organ_lesions(truth))}
        return found | {f"{what} AUROC": _mean_area(*pair) for what, pair in areas.items()}

    def _of_reports(self, arm: str, seed: int, _: dict) -> dict[str, Drawn]:
        said, truth = self.said(arm, seed, "test")["report"], self.truth("test")
        called = np.array([read_labels(text) for text in said])
        found = _shares("labels", called, truth["labels"].astype(bool))
        found |= _lesion_scores(organ_lesions(called), organ_lesions(truth["labels"]))
        return found | {name: Drawn.of(one, len(said)) for name, one in bleu_of(said, truth["report"]).items()}

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        if path not in self._kept:
            self._kept[path] = read_said(path)
        return self._kept[path]


def measures_of(store: Store, arm: str, seed: int) -> pd.DataFrame:
    """All that is measured of an arm on the test split: COLUMNS, shares 0…1."""
    rows = []
    for measure, one in store.scores(arm, seed).items():
        low, high = one.interval()
        rows.append({"split": "test", "measure": measure, "patients": len(one.each), "value": one.value, "low": low,
                     "high": high})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).round({"value": 6, "low": 6, "high": 6})


def read_table(folder: Path) -> pd.DataFrame:
    """An arm's stored table, by measure."""
    return read_csv(folder / TABLE, COLUMNS).set_index("measure").sort_index()


def read_labels(text: str) -> list[bool]:
    """What a written report affirms, in the order of ``LABELS``; an empty one affirms nothing."""
    return list(labels_of_report(text).values()) if text.strip() else [False] * len(LABELS)


def organ_lesions(labels: np.ndarray) -> np.ndarray:
    """bool ``(n, 3)``: whether any lesion of each of ORGANS is among the labels ``(n, 18)``."""
    return np.stack([labels[:, of].astype(bool).any(axis=1) for of in _OF_ORGAN.values()], axis=1)


def f1_of(called: np.ndarray, truth: np.ndarray, times: np.ndarray, measure: str = "F1") -> np.ndarray:
    """F1, precision or recall for draws of patients, plain mean over the labels; 0 where a label has no value.

    Args:
        called, truth: bool ``(n, labels)``.
        times: ``(m, n)``, how often each patient is drawn.
        measure: one of SHARES.

    Returns:
        ``(m,)``.
    """
    right, said, true = (times @ one.astype(float) for one in (called & truth, called, truth))
    of = {"F1": (2 * right, said + true), "precision": (right, said), "recall": (right, true)}[measure]
    return np.divide(of[0], of[1], out=np.zeros_like(right), where=of[1] > 0).mean(axis=1)


def _called(tuned: np.ndarray, known: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What is called at thresholds that gave the best F1 on validation."""
    chosen = choose_thresholds(tuned, known, names, [f"validation {k}" for k in range(len(tuned))], rule="best F1")
    return scores >= np.array(chosen.values)


def _shares(what: str, called: np.ndarray, truth: np.ndarray) -> dict[str, Drawn]:
    return {
        f"{what} {name}": Drawn.of(partial(f1_of, called, truth, measure=name), len(truth), labels=truth.shape[1])
        for name in SHARES
    }


def _lesion_scores(called: np.ndarray, truth: np.ndarray) -> dict[str, Drawn]:
    found = _shares("lesions", called, truth)
    for k, organ in enumerate(ORGANS):
        found |= _shares(f"{organ} lesions", called[:, [k]], truth[:, [k]])
    return found


def _mean_area(scores: np.ndarray, truth: np.ndarray) -> Drawn:
    """Mean AUROC of the labels that some have and some don't; it needs no threshold, and guessing has 0.5."""
    patients = np.arange(len(truth))
    mixed = [j for j in range(truth.shape[1]) if truth[:, j].any() and not truth[:, j].all()]
    each = [Detection(scores[:, j], truth[:, j], patients) for j in mixed]
    return Drawn.of(lambda times: np.mean([area(one, times) for one in each], axis=0), len(truth), labels=len(each))


def _dice(dice: np.ndarray) -> Drawn:
    return Drawn.of(partial(mean_dice, dice), len(dice))


def bleu_of(said: Sequence[str], truth: Sequence[str]) -> dict[str, Statistic]:
    """BLEU-1 to BLEU-4 of a whole corpus and their mean, 0…1, each for draws of texts ``(m, n)``."""
    found = text_statistics(list(said), list(truth), metrics=list(BLEU))
    sums: Mapping[str, tuple[np.ndarray, Callable]] = {name: found.sums(name) for name in BLEU}

    def score(names: Sequence[str], times: np.ndarray) -> np.ndarray:
        return np.mean([sums[name][1](times @ sums[name][0]) / 100 for name in names], axis=0)

    wanted = {name: (name,) for name in BLEU} | {"BLEU-mean": BLEU}
    return {name: partial(score, of) for name, of in wanted.items()}


def mean_dice(dice: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean over classes of their mean over those who have them, for draws; NaN where nobody drawn has any.

    Args:
        dice: ``(n, classes)``, NaN where a class isn't there.
        times: ``(m, n)``, how often each is drawn.
    """
    count = times @ np.isfinite(dice)
    each = np.divide(times @ np.nan_to_num(dice), count, out=np.zeros(count.shape), where=count > 0)
    there = (count > 0).sum(axis=1)
    return np.divide(each.sum(axis=1), there, out=np.full(len(times), np.nan), where=there > 0)
