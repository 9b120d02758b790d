"""The table of answers: one row for each answered question; every score is computed from it.

Rows carry what the question was, under which condition and control it was asked, what was answered and how sure the
reader was. The file holds only what isn't in the records already, so that an arm's answers take a few dozen kB.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import table_file
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.records.record import Record

COLUMNS = (
    "id", "patient", "kind", "form", "stratum", "region", "condition", "control", "seed", "marked", "answer", "choices",
    "truth", "confidence",
)  # fmt: skip
AS_ASKED = "as asked"  # the control that changes nothing
_STORED = ("condition", "control", "seed", "marked", "answer")
_STEPS = 250  # a confidence is stored to 1/250; 255 stands for none


def answer_table(
    records: Sequence[Record],
    answers: Sequence[str],
    confidence: Sequence[float] | None = None,
    *,
    condition: str,
    control: str = AS_ASKED,
    seed: int = 0,
    marked: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """Put a reader's answers beside their questions.

    Args:
        records: what was asked.
        answers: the reader's words, one each; "" for none.
        confidence: the reader's, 0…1, NaN where it has none; None: it has none.
        condition, control: under which it was asked.
        seed: of the reader's training.
        marked: the structure that the prompt was on, None or "" where nothing was drawn; None: the record's region
            unless the condition is "none".

    Returns:
        A table with ``COLUMNS``; ``stratum`` is "named" or "unnamed", "" where a question isn't about a region.

    Raises:
        BadInput: answers or confidences of another number than the records, or a confidence outside 0…1.
    """
    confidence = [float("nan")] * len(records) if confidence is None else list(confidence)
    if marked is None:
        marked = [None if condition == "none" else record.region for record in records]
    for what, values in (("answers", answers), ("confidences", confidence), ("marked structures", marked)):
        if len(values) != len(records):
            raise BadInput(f"{len(records)} questions got {len(values)} {what}; give one for each, '' for none")
    known = np.array(confidence, dtype=float)
    if np.any((known < 0) | (known > 1 + 1e-6)):
        raise BadInput(f"a confidence lies between 0 and 1, got {known.min():g} to {known.max():g}; give probabilities")
    table = Asked.of(records).table
    table["condition"], table["control"], table["seed"] = condition, control, seed
    table["marked"], table["answer"], table["confidence"] = [m or "" for m in marked], list(answers), known
    return table[list(COLUMNS)]


def save(table: pd.DataFrame, records: Sequence[Record], path: str | Path) -> Path:
    """Write a table's answers as a compressed ``.npz``, whole or not at all.

    Args:
        table: with ``COLUMNS``.
        records: all that could be asked, in a fixed order, e.g. those of the protocol's test split. The file holds
            places in this list, and its hash.
        path: of the file.

    Raises:
        BadInput: a row about another record, or columns that are missing.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BadInput(f"the table of answers lacks {', '.join(missing)}; make it with answer_table")
    place = {record.id: k for k, record in enumerate(records)}
    unknown = [name for name in table["id"] if name not in place]
    if unknown:
        raise BadInput(f"{unknown[0]} was answered but is none of the {len(records)} records; give the same records")
    arrays = {"place": table["id"].map(place).to_numpy(np.int32)}
    for name in _STORED:
        arrays |= table_file.coded(name, table[name].astype(str))
    confidence = table["confidence"].to_numpy(float)
    arrays["confidence"] = np.where(np.isnan(confidence), 255, np.nan_to_num(confidence) * _STEPS).round().astype("u1")
    arrays["records"] = table_file.packed([Asked.of(records).digest])
    return table_file.write(path, arrays)


def load(path: str | Path, records: Sequence[Record] | Asked) -> pd.DataFrame:
    """Read what :func:`save` wrote.

    Args:
        path: of the file.
        records: the same as were given to :func:`save`, or what :func:`ctvlm_lib.experiments.asked.load` read of them.

    Raises:
        BadInput: a damaged file, or one about other records.
    """
    asked = records if isinstance(records, Asked) else Asked.of(records)
    digest, place, confidence, stored = table_file.read(path, _unpacked, "answers")
    if digest != asked.digest:
        raise BadInput(
            f"{Path(path).name} holds answers to other records than these {len(records)}; give those that it was made"
            " with: the same protocol, split and profile"
        )
    if place.max(initial=0) >= len(asked.table) or place.min(initial=0) < 0:
        raise BadInput(f"{Path(path).name} answers a question that there isn't; make it again")
    table = asked.table.iloc[place].reset_index(drop=True)
    for name in _STORED:
        table[name] = stored[name]
    table["confidence"] = np.where(confidence == 255, np.nan, confidence / _STEPS)
    return table[list(COLUMNS)]


def _unpacked(arrays: dict[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Hash of the records, which of them was answered, the confidences, and the other columns, all of one length."""
    stored = {name: table_file.decoded(name, arrays) for name in _STORED}
    stored["seed"] = stored["seed"].astype(int)
    place, confidence = arrays["place"], arrays["confidence"]
    if {one.shape for one in (confidence, *stored.values())} != {(len(place),)} or place.dtype.kind not in "iu":
        raise ValueError("its columns have different lengths")
    return table_file.unpacked(arrays["records"])[0], place, confidence, stored
