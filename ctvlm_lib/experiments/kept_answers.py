"""Answers of a long asking, kept batch by batch, so that a run that is killed goes on from there."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import atomic_path
from ctvlm_lib.records.record import Record


class Said(NamedTuple):
    """An answer with its confidence 0…1 or NaN, and the region that its picture marked, "" for none."""

    answer: str
    confidence: float
    marked: str


class KeptAnswers:
    """A folder with a file for each batch of questions, written whole or not at all.

    Whoever names the folder says by it who was asked and how; a batch is only read back for the very same questions.

    Args:
        folder: made when the first batch is kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def read(self, records: Sequence[Record]) -> list[Said] | None:
        """The answers to a batch's questions; None where they weren't kept, or can't be read any more."""
        try:
            kept = json.loads(self._file(records).read_text(encoding="utf-8"))
            said = [Said(str(text), math.nan if sure is None else float(sure), str(on)) for text, sure, on in kept]
        except (OSError, TypeError, *NOT_JSON):
            return None
        return said if len(said) == len(records) else None

    def write(self, records: Sequence[Record], said: Sequence[Said]) -> None:
        """Keep a batch; floats come back as the same floats.

        Raises:
            BadInput: the folder can't be written to.
        """
        rows = [(one.answer, None if math.isnan(one.confidence) else float(one.confidence), one.marked) for one in said]
        with atomic_path(self._file(records)) as partial:
            partial.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    def _file(self, records: Sequence[Record]) -> Path:
        asked = [(one.id, one.question, one.choices) for one in records]
        name = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.json"
