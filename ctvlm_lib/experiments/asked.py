"""What was asked of a split, as a small file: stored answers are scored with it, and no patient has to be drawn.

The protocol's questions are balanced over the patients of all three splits together. Drawing those, or reading them
from the cache, and asking takes minutes and gigabytes; what scoring needs of it takes a few dozen kB. The hash of the
questions tells whether a file of answers is about them, so that neither can change without the other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import table_file
from ctvlm_lib.records.record import Record

COLUMNS = ("id", "patient", "kind", "form", "stratum", "region", "choices", "truth", "question")
# an id is its patient's part and, from the colon on, what is asked: the file keeps each once
_OF_PATIENT, _OF_QUESTION = ("head", "patient"), ("tail", "kind", "form", "stratum", "region")
_INNER = "\1"  # between the parts of one value; between values stands a zero


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions of a split in their fixed order.

    Attributes:
        table: ``COLUMNS``, one row for each question; ``stratum`` as of :func:`stratum`, ``region`` "" for none.
        names: of the split's patients, in their order; () where they weren't given.
        found: int8 ``(patients, 10)``: what each region shows, as :attr:`ctvlm_lib.alignment.scans.Scans.found`.
    """

    table: pd.DataFrame
    names: tuple[str, ...] = ()
    found: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of(cls, records: Sequence[Record], scans=None) -> "Asked":
        """Take the questions of records.

        Args:
            records: all of a split.
            scans: the split's :class:`~ctvlm_lib.alignment.scans.Scans`; None leaves patients and findings out.
        """
        rows = [
            (r.id, r.patient, r.kind, r.form, stratum(r), r.region or "", r.choices, r.answer, r.question)
            for r in records
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return cls(table) if scans is None else cls(table, tuple(scans.names), np.asarray(scans.found))

    @cached_property
    def digest(self) -> str:
        """Of what was asked, in order: ids, questions, choices and right answers."""
        rows = zip(*(self.table[name] for name in ("id", "question", "choices", "truth")), strict=True)
        said = ("\0".join((name, question, *choices, truth)) for name, question, choices, truth in rows)
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    @cached_property
    def questions(self) -> tuple:
        """One object for each question, with ``id``, ``kind``, ``question`` and ``choices`` as a Record has them."""
        return tuple(self.table.itertuples(index=False, name="Question"))


def stratum(record: Record) -> str:
    """ "named" or "unnamed": whether the words tell the region; "" where none is asked about."""
    return "" if record.region is None else "named" if record.names_region else "unnamed"


def path_of(split: str, results: str | Path = RESULTS) -> Path:
    """Where the questions of the protocol's "validation" or "test" lie beside the results."""
    return Path(results) / "questions" / f"{split}.npz"


def save(asked: Asked, path: str | Path) -> Path:
    """Write a split's questions as a compressed ``.npz``, whole or not at all; the same questions are the same bytes.

    Args:
        asked: with patients and findings.
        path: of the file.

    Raises:
        BadInput: patients and findings are missing, or a text holds a control character that the file needs.
    """
    if asked.found is None:
        raise BadInput("the questions come without their patients' findings; give the scans to Asked.of")
    table = asked.table
    texts = [*table["question"], *table["truth"], *table["id"], *(c for some in table["choices"] for c in some)]
    if any("\0" in text or _INNER in text for text in texts):
        raise BadInput("a text of the questions holds a zero or one byte; take control characters out of it")
    parts = table["id"].str.partition(":")
    table = table.assign(head=parts[0], tail=parts[1] + parts[2], choices=table["choices"].map(_INNER.join))
    columns = {"patient": _OF_PATIENT, "what": _OF_QUESTION, "question": ["question"], "choices": ["choices"],
               "truth": ["truth"]}  # fmt: skip
    arrays = {"names": table_file.packed(asked.names), "found": asked.found.astype(np.int8)}
    for name, of in columns.items():
        arrays |= table_file.coded(name, table[of[0]].str.cat([table[other] for other in of[1:]], sep=_INNER))
    return table_file.write(path, arrays)


def load(path: str | Path) -> Asked:
    """Read what :func:`save` wrote.

    Raises:
        BadInput: no such file, or a damaged one.
    """

    names = ("patient", "what", "question", "choices", "truth")

    def read(arrays: dict[str, np.ndarray]) -> Asked:
        table = pd.DataFrame({name: table_file.decoded(name, arrays) for name in names})
        for joined, parts in (("patient", _OF_PATIENT), ("what", _OF_QUESTION)):
            table[list(parts)] = table.pop(joined).str.split(_INNER, expand=True)
        table["id"] = table["head"] + table["tail"]
        table["choices"] = [tuple(one.split(_INNER)) if one else () for one in table["choices"]]
        return Asked(table[list(COLUMNS)], tuple(table_file.unpacked(arrays["names"])), arrays["found"])

    return table_file.read(path, read, "questions")
