"""The table of answers: one row for each answered question; every score is computed from it.

Rows carry what the question was, under which condition and control it was asked, what was answered and how sure the
reader was. The file holds only what isn't in the records already, so that an arm's answers take a few dozen kB.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput, atomic_path
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
    table = _about(records)
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
        values, codes = np.unique(table[name].astype(str).to_numpy(dtype=object), return_inverse=True)
        arrays[f"{name}.codes"] = codes.astype(np.min_scalar_type(max(1, len(values) - 1)))
        arrays[f"{name}.values"] = _packed(values)
    confidence = table["confidence"].to_numpy(float)
    arrays["confidence"] = np.where(np.isnan(confidence), 255, np.nan_to_num(confidence) * _STEPS).round().astype("u1")
    arrays["records"] = _packed([_digest(records)])
    with atomic_path(path) as partial, open(partial, "wb") as file:
        _write_npz(file, arrays)
    return Path(path)


def load(path: str | Path, records: Sequence[Record]) -> pd.DataFrame:
    """Read what :func:`save` wrote.

    Args:
        path: of the file.
        records: the same as were given to :func:`save`.

    Raises:
        BadInput: a damaged file, or one about other records.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = _unpacked(arrays["records"])[0]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path.name} can't be read as a table of answers ({error}); make it again") from None
    if digest != _digest(records):
        raise BadInput(
            f"{path.name} holds answers to other records than these {len(records)}; give those that it was made with:"
            " the same protocol, split and profile"
        )
    table = _about([records[k] for k in arrays["place"]])
    for name in _STORED:
        table[name] = np.array(_unpacked(arrays[f"{name}.values"]), dtype=object)[arrays[f"{name}.codes"]]
    table["seed"] = table["seed"].astype(int)
    table["confidence"] = np.where(arrays["confidence"] == 255, np.nan, arrays["confidence"] / _STEPS)
    return table[list(COLUMNS)]


def _about(records: Sequence[Record]) -> pd.DataFrame:
    """What is known of each question from its record."""
    return pd.DataFrame(
        {
            "id": [r.id for r in records],
            "patient": [r.patient for r in records],
            "kind": [r.kind for r in records],
            "form": [r.form for r in records],
            "stratum": [stratum(r) for r in records],
            "region": [r.region or "" for r in records],
            "choices": [r.choices for r in records],
            "truth": [r.answer for r in records],
        }
    )


def stratum(record: Record) -> str:
    """ "named" or "unnamed": whether the words tell the region; "" where none is asked about."""
    return "" if record.region is None else "named" if record.names_region else "unnamed"


def _digest(records: Sequence[Record]) -> str:
    """Of what was asked, in order: ids, questions, choices and right answers."""
    said = ("\0".join((r.id, r.question, *r.choices, r.answer)) for r in records)
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _packed(values: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\0".join(values).encode(), dtype=np.uint8)


def _unpacked(array: np.ndarray) -> list[str]:
    return array.tobytes().decode().split("\0")


def _write_npz(file: io.IOBase, arrays: dict[str, np.ndarray]) -> None:
    """As ``np.savez_compressed``, without the time of day, so that the same answers are the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:  # it finds repeats that lie far apart
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            archive.writestr(entry, buffer.getvalue())
