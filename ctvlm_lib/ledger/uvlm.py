"""U-VLM's arms in the ledger: which measure stands beside which published number, checks and verdicts.

One cohort stands for both data sets: its 18 labels for CT-RATE's, lesions of three of its organs for AbdomenAtlas's.
Its reports are scored once, beside CT-RATE's. Beside what an arm said lies ``table.csv`` with every measure and its
interval; ``ctvlm verify --update`` writes it, ``ctvlm verify`` computes it again.
"""

import re
from pathlib import Path

import pandas as pd

from ctvlm_lib.alignment.arm_tables import name_and_seed
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.evaluate.paired import PairedDifference
from ctvlm_lib.experiments.uvlm_arms import PREFIX
from ctvlm_lib.experiments.uvlm_protocol import FILES, load
from ctvlm_lib.experiments.uvlm_tables import COLUMNS, TABLE, Store, measures_of
from ctvlm_lib.ledger import own_protocol
from ctvlm_lib.ledger.contrasts import Contrast
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Staged

PAPER, NAME = "uvlm", TABLE
_CLASSIFIED = {
    "None → Cls": "cls-none", "Seg(C) → Cls": "cls-C", "Seg(C+L) → Cls": "cls-CL", "Seg(F+L) → Cls": "cls-FL",
}  # fmt: skip
_DETECTED = {
    "U-VLM Seg(C+L)": "rep-CL-cls-skip", "U-VLM Seg(F+L)": "rep-FL-cls-skip", "nnU-Net Seg(C+L)": "seg-CL",
    "nnU-Net Seg(F+L)": "seg-FL",
}  # fmt: skip
LINES = {  # of table 5, counted from 1
    1: "rep-none", 2: "rep-cls", 3: "rep-CL", 4: "rep-FL", 5: "rep-C-cls", 6: "rep-CL-cls", 7: "rep-FL-cls",
    8: "rep-CL-cls-skip", 9: "rep-FL-cls-skip", 10: "rep-CL-cls-tokens", 11: "rep-FL-cls-tokens",
    12: "rep-CL-cls-lora", 14: "rep-FL-cls-lora", 16: "rep-CL-cls-tuned", 17: "rep-FL-cls-tuned",
}  # fmt: skip
_STANDS_FOR = {"pancreatic": "spleen", "kidney": "kidney", "liver": "liver"}


def quantity(cell: Published) -> Staged | None:
    """The measure of ours that stands beside a published number of tables 2 to 5; None if none does."""
    measure = cell.column.removesuffix(" (macro)")
    ours = None
    if cell.table == "T2" and cell.row.startswith("U-VLM"):
        ours = "rep-FL-cls-skip"
    elif cell.table == "T3" and cell.row in _DETECTED:
        organ = _STANDS_FOR[cell.group.split()[-2]]
        return Staged(PREFIX + _DETECTED[cell.row], f"{organ} lesions {measure}", percent=True)
    elif cell.table == "T4":
        ours = _CLASSIFIED.get(cell.row)
    elif cell.table == "T5":
        line = re.match(r"line (\d+)", cell.condition)
        ours = LINES.get(int(line[1])) if line else None
    if ours is None:
        return None
    abdomen = cell.group.startswith("AbdomenAtlas")
    if measure.startswith("BLEU"):
        return None if abdomen else Staged(PREFIX + ours, measure)
    return Staged(PREFIX + ours, f"{'lesions' if abdomen else 'labels'} {measure}")


def interval(rows: pd.DataFrame, wanted: Staged) -> Interval | None:
    """A measure of an arm's stored table, in the published unit; None if the arm has none."""
    return own_protocol.interval(rows, wanted.measure, wanted.percent)


def table_text(folder: Path) -> str:
    """The table that follows from what a folder's arm said, as the file holds it."""
    name, seed = name_and_seed(folder.name)
    return measures_of(Store((folder.parent,)), name, seed).to_csv(index=False, lineterminator="\n")


def write_table(folder: Path) -> Path:
    """Write the table that follows from what an arm said beside it, whole or not at all."""
    return own_protocol.write(table_text(folder), folder / NAME)


def compare(stored: str, again: str) -> list[str]:
    """What differs between a stored table and the one that follows now, a sentence each."""
    return own_protocol.compare(stored, again, NAME, COLUMNS, named=2)


def problems(record: dict, seed: int) -> list[str]:
    """What an arm's record lacks, or that can't be so."""
    wanted = ("profile", "hardware", "commit", "arm", "settings")
    return own_protocol.problems(record, seed, "uvlm_protocol", FILES, wanted)


def listed_contrasts() -> tuple[Contrast, ...]:
    """The protocol's contrasts, in the form that all are judged in."""
    return own_protocol.listed(load(), PAPER)


def difference(contrast: Contrast, store: Store) -> dict[int, PairedDifference]:
    """A contrast for each seed that both of its arms have: left minus right, in shares; p is of the draws."""
    pair = [f"{PREFIX}{side}" for side in (contrast.left, contrast.right)]
    return own_protocol.seed_by_seed(
        store.arms(), pair, lambda arm, seed: store.scores(arm, seed)[contrast.metric], load()["scoring"]["confidence"]
    )


def verdicts(store: Store | None = None, profile: str = "full") -> pd.DataFrame:
    """All contrasts, measured and judged; those whose arms or seeds aren't all there yet say so.

    Returns:
        :data:`ctvlm_lib.ledger.own_protocol.COLUMNS`: published and ours in points.
    """
    store, every = store or Store(), listed_contrasts()
    measured = {one.name: difference(one, store) for one in every}
    return own_protocol.judged(every, measured, load()["encoder"]["seeds"], profile)
