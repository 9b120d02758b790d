"""The chat arms in the ledger: which measure stands beside which number of MedVista3D's Table 3, checks and verdicts.

Beside an arm's answers lies ``table.csv`` with every measure and its interval; ``ctvlm verify --update`` writes it,
``ctvlm verify`` computes it again from the answers.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.evaluate.paired import PairedDifference, paired_difference
from ctvlm_lib.experiments import chat_tables
from ctvlm_lib.experiments.chat_protocol import FILES, load
from ctvlm_lib.experiments.chat_records import TASKS
from ctvlm_lib.experiments.chat_tables import COLUMNS, KEY, NUMBERS, PREFIX, QUESTIONS, SPLITS, TABLE, folders
from ctvlm_lib.ledger import own_protocol
from ctvlm_lib.ledger.contrasts import Contrast
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Chat

PAPER, NAME = "medvista3d", TABLE
ROWS = {"CT-CHAT": f"{PREFIX}global", "MedVista3D-LLaVA": f"{PREFIX}full"}  # a published row: our arm


def quantity(cell: Published) -> Chat | None:
    """The measure of ours that stands beside a number of Table 3; None if none does."""
    task = cell.group.partition(": ")[2]
    if cell.table != "T3" or cell.row not in ROWS or task not in TASKS or cell.column not in COLUMNS:
        return None
    return Chat(ROWS[cell.row], task, cell.column)


def interval(rows: pd.DataFrame, wanted: Chat) -> Interval | None:
    """A measure of an arm's stored table; None if the arm wasn't asked for it.

    Args:
        rows: of :func:`ctvlm_lib.experiments.chat_tables.read_table`.
        wanted: which.
    """
    key = ("test", wanted.task, wanted.measure)
    return chat_tables.over_seeds([rows], *key[1:], split=key[0]) if key in rows.index else None


def table_text(folder: Path) -> str:
    """The table that follows from a folder's answers, as the file holds it."""
    return chat_tables.measures_of(folder).to_csv(index=False, lineterminator="\n")


def write_table(folder: Path) -> Path:
    """Write the table that follows from a folder's answers beside them, whole or not at all."""
    return own_protocol.write(table_text(folder), folder / NAME)


def compare(stored: str, again: str) -> list[str]:
    """What differs between a stored table and the one that the answers give now, a sentence each."""
    return own_protocol.compare(stored, again, NAME, [*KEY, *NUMBERS], named=3)


def problems(record: dict, seed: int) -> list[str]:
    """What an arm's record lacks, or that can't be so."""
    wanted = ("profile", "hardware", "commit", "finetuning", "rows", "weights", "encoder_sha256")
    return own_protocol.problems(record, seed, "chat_protocol", FILES, wanted)


def against_encoder(record: dict, folder: Path | None) -> list[str]:
    """Whether the shipped encoder, if it is there, is the one that the arm read."""
    name = record["finetuning"]["encoder"]
    if folder is None or not (folder / name).is_dir():
        return []
    shipped = checkpoints.record(name, folder)["weights"]["sha256"]
    if record.get("encoder_sha256") == shipped:
        return []
    return [f"record.json: read an encoder {name} with other weights than checkpoints/{name} has; run the arm again"]


def listed_contrasts() -> tuple[Contrast, ...]:
    """The protocol's contrasts, in the form that all are judged in."""
    return own_protocol.listed(load(), PAPER)


def difference(contrast: Contrast, roots: Sequence[str | Path] = (RESULTS,)) -> dict[int, PairedDifference]:
    """A contrast for each seed that both of its arms have: left minus right, in shares.

    Args:
        contrast: whose measure is a task and a text score, "long answer BLEU-1".
        roots: see :func:`ctvlm_lib.experiments.chat_tables.folders`.

    Raises:
        BadInput: another measure.
    """
    task, _, column = contrast.metric.rpartition(" ")
    if column not in COLUMNS:
        known = ", ".join(COLUMNS)
        raise BadInput(f"{contrast.metric!r} isn't a task and one of {known}, such as 'long answer BLEU-1'")
    there, found = folders(roots), {}
    both = [there.get(f"{PREFIX}{side}", {}) for side in (contrast.left, contrast.right)]
    for seed in sorted(set(both[0]) & set(both[1])):
        found[seed] = _paired([chat_tables.of_task(chat_tables.said(side[seed]), task) for side in both], column)
    return found


def verdicts(roots: Sequence[str | Path] = (RESULTS,), profile: str = "full") -> pd.DataFrame:
    """All contrasts, measured and judged; those whose arms or seeds aren't all there yet say so.

    Returns:
        :data:`ctvlm_lib.ledger.own_protocol.COLUMNS`: published and ours in points.
    """
    every = listed_contrasts()
    measured = {one.name: difference(one, roots) for one in every}
    return own_protocol.judged(every, measured, load()["training"]["seeds"], profile)


def holds(path: Path) -> str:
    """What a folder of questions holds, in words."""
    counted = [f"{len(chat_tables.questions(split, path.parent)):,} of {split}"
               for split in SPLITS if (path / f"{split}.npz").is_file()]  # fmt: skip
    return f"questions that the chat arms are asked: {', '.join(counted)}"


def _paired(sides: Sequence[pd.DataFrame], column: str) -> PairedDifference:
    """Left minus right of a text score, question by question."""
    fixed, scores = load()["scoring"], []
    for rows in sides:
        texts = chat_tables.statistics(rows, (column,))
        sums, of_sums = texts.sums(COLUMNS[column].metric)
        scores.append(dict(zip(rows["id"], sums, strict=True)))
    factor, patients = COLUMNS[column].factor, sides[0].set_index("id")["patient"]
    return paired_difference(
        *scores, patients, statistic_of_sums=lambda total: factor * of_sums(total), confidence=fixed["confidence"],
        resamples=fixed["resamples"],
    )  # fmt: skip


__all__ = ["QUESTIONS", "quantity", "interval", "table_text", "write_table", "compare", "problems", "against_encoder",
           "listed_contrasts", "difference", "verdicts", "holds"]  # fmt: skip
