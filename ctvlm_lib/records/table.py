"""What the readers of the data sets share: tables with checked columns, files that may not be there, and the result.

A published data set is rarely there as a whole. A row whose volume isn't there is listed, never answered with another
sample: the released loaders of M3D, Med3DVLM and RadGenome-ChestCT draw another one (or noise), and nobody notices.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.record import Record

SPLITS = ("train", "validation", "test")
_CELL_LIMIT = 16_000_000  # characters; csv's own limit of 131,072 is below some reports


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """What a reader found in a folder.

    Attributes:
        dataset: name of the data set.
        folder: where it lies; the paths of the records are relative to it.
        records: one for each question that can be asked with the files that are there.
        missing: path of each file that the tables name and that isn't there → how many records wait for it.
        unreadable: path of each file that is there and can't be read → why.
        notes: what else is worth knowing, one sentence each.
    """

    dataset: str
    folder: Path
    records: list[Record]
    missing: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n  ".join([f"Reading({self.dataset}: {self._size()}", *self._faults(), *self.notes]) + ")"

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Records per (split, kind)."""
        return dict(Counter((record.split, record.kind) for record in self.records))

    def _size(self) -> str:
        if not self.records:
            return "no records"
        splits = Counter(record.split for record in self.records)
        patients = len({record.patient for record in self.records})
        volumes = len({record.volume for record in self.records})
        shares = ", ".join(f"{name} {splits[name]}" for name in SPLITS if name in splits)
        return f"{plural(len(self.records), 'record')} ({shares}) on {plural(volumes, 'volume')} of " + plural(
            patients, "patient"
        )

    def _faults(self) -> Iterator[str]:
        if self.missing:
            first = next(iter(self.missing))
            waiting = plural(sum(self.missing.values()), "record")
            yield f"not there: {plural(len(self.missing), 'file')} that {waiting} refer to, e.g. {first}"
        if self.unreadable:
            first, reason = next(iter(self.unreadable.items()))
            yield f"unreadable: {plural(len(self.unreadable), 'file')}, e.g. {first} ({reason})"


class Files:
    """Which of the files that the tables name lie in a folder.

    Args:
        folder: the data set's folder.
        check: called with the path of each file when it is first asked for; its BadInput makes the file unreadable.
            Without it only empty files are found.
    """

    def __init__(self, folder: Path, check: Callable[[Path], object] | None = None) -> None:
        self.folder = folder
        self.missing: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}
        self._check = check
        self._known: dict[tuple[str, ...], str | None] = {}

    def find(self, *candidates: str, count: int = 1) -> str | None:
        """Give the first candidate that is there and readable.

        Args:
            candidates: posix paths relative to the folder, the preferred one first; it stands in ``missing``.
            count: how many records depend on it.

        Raises:
            BadInput: a candidate leads out of the folder.
        """
        if candidates not in self._known:
            self._known[candidates] = next((path for path in candidates if self._usable(path)), None)
        found = self._known[candidates]
        if found is None and not any(path in self.unreadable for path in candidates):
            self.missing[candidates[0]] += count
        return found

    def _usable(self, relative: str) -> bool:
        path = self.folder / inside(relative)
        if not path.is_file():
            return False
        try:
            if path.stat().st_size == 0:
                raise BadInput("the file is empty; fetch it again")
            if self._check:
                self._check(path)
        except BadInput as problem:
            self.unreadable[relative] = str(problem)
            return False
        return True


def make_record(refused: dict[str, str], where: str, **contents) -> Record | None:
    """Make a plain record without distractor, or note in ``refused`` why the row at ``where`` makes none."""
    plain = {"mask": None, "region": None, "distractor": None, "choices": (), "names_region": False, "style": "plain"}
    try:
        return Record(**plain | contents)
    except BadInput as problem:
        refused[where] = str(problem)
        return None


def refused_note(refused: dict[str, str]) -> list[str]:
    """One sentence on the rows that made no record, with the first as an example."""
    for where, reason in refused.items():
        return [f"{plural(len(refused), 'row')} left out, e.g. {where}: {reason}"]
    return []


def rows(path: Path, required: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV row by row, cells stripped, "nan" as empty.

    Args:
        path: a CSV in UTF-8 whose first line names the columns.
        required: columns that must be there; others are given as they are.
        delimiter: what separates the cells.

    Yields:
        The number of the line at which the row ends, and the row.

    Raises:
        BadInput: no such file, not text, a column is missing, a row has too many or too few cells.
    """
    csv.field_size_limit(_CELL_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            check_columns(path, reader.fieldnames or [], required)
            for row in reader:
                if None in row or None in row.values():
                    raise BadInput(
                        f"{path.name}, line {reader.line_num}: the row doesn't have as many cells as the header"
                        f" ({len(reader.fieldnames)}); fetch the file again, or mend its quotes"
                    )
                yield reader.line_num, {name: _cell(value) for name, value in row.items()}
    except FileNotFoundError:
        raise BadInput(f"there is no {path.name} in {path.parent}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path.name} is not a readable CSV in UTF-8: {error}; fetch it again") from error


def _cell(value: str) -> str:
    value = value.strip()
    return "" if value.lower() == "nan" else value


def check_columns(path: Path, found: list[str], required: tuple[str, ...]) -> None:
    """Raise BadInput if a required column isn't there; the sentence lists what is."""
    lacking = [name for name in required if name not in found]
    if lacking:
        raise BadInput(
            f"{path.name} has no column {some(lacking)}; its columns are {some(found, 24)};"
            " is it the data set's own file?"
        )


def by_key(
    path: Path, required: tuple[str, ...], key: str, delimiter: str = ","
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Read a CSV whose ``key`` column must be unique.

    Returns:
        key → row, and notes: a row that repeats another word for word is kept once and said.

    Raises:
        BadInput: as :func:`rows`; an empty key, or two rows with one key that say different things.
    """
    table: dict[str, dict[str, str]] = {}
    repeated = 0
    for line, row in rows(path, (key, *required), delimiter):
        name = row[key]
        if not name:
            raise BadInput(f"{path.name}, line {line}: the column {key} is empty")
        if name in table and table[name] != row:
            raise BadInput(
                f"{path.name}, line {line}: {key} {name} is there twice with different contents; remove the wrong row"
            )
        repeated += name in table
        table[name] = row
    return table, [f"{path.name}: {plural(repeated, 'row')} repeated word for word, kept once"] if repeated else []


def read_json(path: Path, kind: type) -> object:
    """Read a JSON file whose outermost value is of type ``kind`` (dict or list), or raise BadInput."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"there is no {path.name} in {path.parent}") from None
    except (OSError, *NOT_JSON) as error:
        raise BadInput(f"{path.name} is not readable JSON: {error}; fetch it again") from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise BadInput(f"{path.name} holds a {type(content).__name__} where {expected} is expected")
    return content


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path, or BadInput if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}; give the folder that the data set was unpacked into")
    return folder


def wanted_splits(split: str | None, there: tuple[str, ...]) -> tuple[str, ...]:
    """The splits to read: the one asked for, or all that the data set has.

    Raises:
        BadInput: the data set has no such split.
    """
    if split is None:
        return there
    if split not in there:
        raise BadInput(f"{split!r} is no split of this data set; choose one of {', '.join(there)}")
    return (split,)


def inside(relative: str) -> str:
    """A relative posix path that stays in its folder, or BadInput."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BadInput(f"the table names the file {relative!r}; a path within the data set's folder is expected")
    return str(path)


def crossing_note(records: list[Record]) -> list[str]:
    """Say whether the published splits cut through patients."""
    homes: dict[str, set[str]] = {}
    for record in records:
        homes.setdefault(record.patient, set()).add(record.split)
    crossing = sorted(patient for patient, splits in homes.items() if len(splits) > 1)
    if not crossing:
        return []
    return [
        f"the published splits share {plural(len(crossing), 'patient')} ({some(crossing, 3)}): split anew by patient"
    ]


def plural(count: int, noun: str) -> str:
    """Give "1 file", "2 files"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def some(items, limit: int = 6) -> str:
    """The first few items as text, and how many there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:limit]) + (f" … ({len(items)} in all)" if len(items) > limit else "")
