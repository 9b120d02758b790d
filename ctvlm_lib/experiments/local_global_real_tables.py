"""Measures of an arm on a user's CT-RATE and RadGenome-ChestCT, from what it said; the cohort's, in the same table.

Thresholds come from the held-out patients of the training split. Intervals draw patients, who may have several scans.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.zero_shot import MEASURES, WORDINGS, Detection, Drawn, detection_scores, worded_scores
from ctvlm_lib.experiments.local_global import Said
from ctvlm_lib.experiments.local_global_tables import GROUNDING, READINGS, RESAMPLES, RETRIEVAL

Truth = Mapping[str, np.ndarray]


def table(tuned: Said, tuned_truth: Truth, said: Said, truth: Truth) -> tuple[pd.DataFrame, list[str]]:
    """All that is measured on test, with the columns of :func:`ctvlm_lib.experiments.local_global_tables.measures_of`.

    Args:
        tuned, tuned_truth: of validation: thresholds.
        said, truth: of test.

    Returns:
        The table, and what couldn't be measured, a sentence each.
    """
    rows, notes = [], {}
    for wording, reading in product(WORDINGS, READINGS[: 1 + bool(said.cut_out.size)]):
        found = dict(placed(said, truth))
        for scope in ("global", "local"):
            try:
                found |= detected(tuned, tuned_truth, said, truth, scope, reading, wording)
            except BadInput as problem:
                notes[f"{scope} detection isn't measured: {problem}"] = True
        for measure, one in found.items():
            low, high = one.interval()
            rows.append(
                {"split": "test", "reading": reading, "wording": wording, "measure": measure,
                 "labels": one.labels or "", "patients": len(one.each), "value": one.value, "low": low, "high": high}
            )  # fmt: skip
    return pd.DataFrame(rows).round({"value": 6, "low": 6, "high": 6}), list(notes)


def detected(
    tuned: Said, tuned_truth: Truth, said: Said, truth: Truth, scope: str, reading: str, wording: str
) -> dict[str, Drawn]:
    """Measures of zero-shot detection, "global AUROC" … "local precision".

    Args:
        tuned, tuned_truth: of validation. said, truth: of test.
        scope: "global" or "local".
        reading: of regions, one of :data:`ctvlm_lib.experiments.local_global_tables.READINGS`.
        wording: one of :data:`ctvlm_lib.evaluate.zero_shot.WORDINGS`.

    Raises:
        BadInput: no label has both classes in both splits.
    """
    both = [
        (_volumes if scope == "global" else _regions)(one, true, reading, wording)
        for one, true in ((tuned, tuned_truth), (said, truth))
    ]
    there = [name for name in both[0] if name in both[1]]
    if not there:
        raise BadInput("no label is known in validation and in test; give the table of labels, or more volumes")
    drawn = detection_scores(*({name: one[name] for name in there} for one in both), resamples=RESAMPLES)
    return {f"{scope} {measure}": drawn[measure] for measure in MEASURES}


def placed(said: Said, truth: Truth) -> dict[str, Drawn]:
    """Recall of reports, and of regions' sentences if any region has one."""
    found = {name: _share(k - said.report[0][:, None], truth["patient"]) for name, k in RETRIEVAL.items()}
    if np.isfinite(said.sentence).any():
        found |= {name: _share(k - said.sentence, truth["patient"]) for name, k in GROUNDING.items()}
    return found


def _volumes(said: Said, truth: Truth, _: str, wording: str) -> dict[str, Detection]:
    given, known = worded_scores(said.volume, wording), np.flatnonzero(truth["labelled"])
    names = truth["label_names"] if len(known) else ()
    return {
        str(name): Detection(given[known, k], truth["labels"][known, k], truth["patient"][known])
        for k, name in enumerate(names)
    }


def _regions(said: Said, truth: Truth, reading: str, wording: str) -> dict[str, Detection]:
    given = worded_scores(said.region if reading == READINGS[0] else said.cut_out, wording)
    names, found = list(truth["label_names"]), {}
    for k, (region, label) in enumerate(truth["local_labels"]):
        who = np.flatnonzero(np.isfinite(given[:, k]) & truth["labelled"])
        if len(who):
            true = truth["labels"][who, names.index(label)]
            found[f"{region}: {label}"] = Detection(given[who, k], true, truth["patient"][who])
    return found


def _share(inside: np.ndarray, patient: np.ndarray) -> Drawn:
    """Share of the rows that are there whose place is among the first, patients drawn.

    Args:
        inside: ``(n, rows)``: places that are left to the last that counts, NaN where there is no row.
        patient: int ``(n,)``.
    """
    there, hits = np.isfinite(inside), np.clip(np.nan_to_num(inside), 0, 1)
    right, all_ = (np.bincount(patient, some.sum(axis=1)) for some in (hits * there, there))
    return Drawn.of(lambda times: (times @ right) / np.maximum(times @ all_, 1e-9), len(right), RESAMPLES)
