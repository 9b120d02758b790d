"""Scores beside an arm's answers, so that the ledger is there at once: ``scores.csv`` in each arm's folder.

They are taken only while the file of answers is the one that they were computed from. ``ctvlm verify --update`` writes
them; ``ctvlm verify`` computes the closed accuracies again and compares the hash.
"""

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

from ctvlm_lib.errors import atomic_path
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.ledger.quantities import Score

FILE = "scores.csv"
COLUMNS = ("form", "metric", "kinds", "mean", "value", "low", "high", "n", "patients", "answers")


def read(folder: Path) -> dict[Score, Interval]:
    """Scores of an arm's folder; {} if there are none that can be read, or they belong to other answers."""
    from ctvlm_lib.experiments.vlm_arms import ARMS

    arm, path = name_of(folder), folder / FILE
    if arm not in ARMS or not path.is_file():
        return {}
    now = of_answers(folder)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {_score(arm, row): _interval(row) for row in rows if row["answers"] == now}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error):  # computed again from the answers
        return {}


def write(folder: Path, scores: Mapping[Score, Interval]) -> Path:
    """Store an arm's scores, whole or not at all."""
    now = of_answers(folder)
    with atomic_path(folder / FILE) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one, found in scores.items():
            numbers = (f"{value:.4f}" for value in (found.value, found.low, found.high))
            writer.writerow((one.form, one.metric, "+".join(one.kinds), "mean" if one.mean else "", *numbers, found.n,
                             found.patients, now))  # fmt: skip
    return folder / FILE


def of_answers(folder: Path) -> str:
    """Hash of the folder's answers on the test split, the first 16 hexadecimal digits."""
    return hashlib.sha256((folder / "test.npz").read_bytes()).hexdigest()[:16]


def name_of(folder: Path) -> str:
    """Name of a folder's arm."""
    from ctvlm_lib.alignment.arm_tables import name_and_seed

    return name_and_seed(folder.name)[0]


def _score(arm: str, row: Mapping[str, str]) -> Score:
    from ctvlm_lib.experiments.vlm_arms import ARMS, variant_of

    return Score(ARMS[arm].condition, ARMS[arm].decoder, variant_of(arm), row["form"], row["metric"],
                 tuple(filter(None, row["kinds"].split("+"))), row["mean"] == "mean")  # fmt: skip


def _interval(row: Mapping[str, str]) -> Interval:
    return Interval(float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]), int(row["patients"]))
