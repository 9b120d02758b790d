"""The local–global arms in the ledger: which measure stands beside which published number, checks and verdicts.

Beside an arm's scores lies ``table.csv`` with every measure and its interval; ``ctvlm verify --update`` writes it,
``ctvlm verify`` computes it again from the scores.
"""

from pathlib import Path

import pandas as pd

from ctvlm_lib.alignment.arm_tables import name_and_seed
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.evaluate.paired import PairedDifference
from ctvlm_lib.evaluate.zero_shot import Drawn
from ctvlm_lib.experiments.local_global import PREFIX
from ctvlm_lib.experiments.local_global_protocol import FILES, load
from ctvlm_lib.experiments.local_global_tables import READINGS, TABLE, Store, measures_of
from ctvlm_lib.ledger import own_protocol
from ctvlm_lib.ledger.contrasts import Contrast
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Aligned

PAPER = "medvista3d"
NAME = TABLE
COLUMNS = ["split", "reading", "wording", "measure", "labels", "patients", "value", "low", "high"]
ROWS = {  # a published row: (arm, how it is asked about regions)
    "CLIP": ("global", READINGS[1]),
    "fVLM (reimplemented)": ("local", READINGS[0]),
    "MedVista3D-ViT": ("full", READINGS[0]),
    "Global Alignment": ("global", READINGS[0]),
    "+ Local Alignment": ("box", READINGS[0]),
    "+ Mask Pooling": ("unified", READINGS[0]),
    "+ Global Semantic Alignment": ("global-semantic", READINGS[0]),
    "+ Local Semantic Alignment": ("full", READINGS[0]),
    "mask pooling before 1st block": ("full-block1", READINGS[0]),
    "mask pooling before 2nd block": ("full-block2", READINGS[0]),
    "mask pooling before 12th block": ("full", READINGS[0]),
}
_MEASURES = {"AUC": "AUROC", "F1 (weighted)": "F1 of both classes", "accuracy": "accuracy", "precision": "precision"}


def quantity(cell: Published) -> Aligned | None:
    """The measure of ours that stands beside a published number of tables 1, 2, 4 and 5; None if none does."""
    found = ROWS.get(cell.row.removesuffix(" (cumulative)"))
    if found is None or cell.table not in ("T1", "T2", "T4", "T5"):
        return None
    arm, reading = found
    split = "external" if cell.table == "T2" else "test"
    if "grounding" in cell.group:
        return Aligned(f"{PREFIX}{arm}", f"grounding top-{cell.column.removeprefix('R@')}", split, percent=True)
    if "retrieval" in cell.group:
        return Aligned(f"{PREFIX}{arm}", cell.column, split, percent=True)
    scope = "local" if "local" in cell.group else "global"
    reading = reading if scope == "local" else READINGS[0]
    return Aligned(f"{PREFIX}{arm}", f"{scope} {_MEASURES[cell.column]}", split, reading)


def interval(rows: pd.DataFrame, wanted: Aligned) -> Interval | None:
    """A measure of an arm's stored table, in the published unit; None if the arm wasn't asked for it.

    Args:
        rows: of :func:`ctvlm_lib.experiments.local_global_tables.read_table`.
        wanted: which.
    """
    key = (wanted.split, wanted.reading, wanted.wording, wanted.measure)
    return own_protocol.interval(rows, key, wanted.percent)


def table_text(folder: Path) -> str:
    """The table that follows from a folder's scores and what is true of the splits, as the file holds it."""
    name, seed = name_and_seed(folder.name)
    return measures_of(Store((folder.parent,)), name, seed).to_csv(index=False, lineterminator="\n")


def write_table(folder: Path) -> Path:
    """Write the table that follows from a folder's scores beside them, whole or not at all."""
    return own_protocol.write(table_text(folder), folder / NAME)


def compare(stored: str, again: str) -> list[str]:
    """What differs between a stored table and the one that the scores give now, a sentence each."""
    return own_protocol.compare(stored, again, NAME, COLUMNS, named=4)


def problems(record: dict, seed: int) -> list[str]:
    """What an arm's record lacks, or that can't be so."""
    wanted = ("profile", "hardware", "commit", "recipe")
    return own_protocol.problems(record, seed, "local_global_protocol", FILES, wanted)


def listed_contrasts() -> tuple[Contrast, ...]:
    """The protocol's contrasts, in the form that all are judged in."""
    return own_protocol.listed(load(), PAPER)


def difference(contrast: Contrast, store: Store) -> dict[int, PairedDifference]:
    """A contrast for each seed that both of its arms have: left minus right, in shares; p is of the draws."""
    split = "external" if contrast.metric.startswith("external ") else "test"
    measure = contrast.metric.removeprefix("external ")

    def score(arm: str, seed: int) -> Drawn:
        # a global model is asked about a region as the paper asks it: with the region cut out of the volume
        cut = measure.startswith("local ") and store.said(arm, seed, split).cut_out.size > 0
        return store.scores(arm, seed, split, READINGS[bool(cut)])[measure]

    pair = [f"{PREFIX}{side}" for side in (contrast.left, contrast.right)]
    return own_protocol.seed_by_seed(store.arms(), pair, score, load()["scoring"]["confidence"])


def verdicts(store: Store | None = None, profile: str = "full") -> pd.DataFrame:
    """All contrasts, measured and judged; those whose arms or seeds aren't all there yet say so.

    Returns:
        :data:`ctvlm_lib.ledger.own_protocol.COLUMNS`: published and ours in points.
    """
    store, every = store or Store(), listed_contrasts()
    measured = {one.name: difference(one, store) for one in every}
    return own_protocol.judged(every, measured, load()["training"]["seeds"], profile)
