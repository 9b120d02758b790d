"""Every number in the five papers' tables, as printed: ``paper_tables.csv``, one row a cell.

``contour.T1`` names a table; a cell of it is told apart by row, group, column and condition. Values stand in the
paper's own unit; a cell whose number is lost in the source text has none, and its note says so.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from ctvlm_lib.errors import BadInput

PATH = Path(__file__).with_name("paper_tables.csv")
PAPERS = {
    "contour": "Boundary guidance: contour prompts",
    "dualbox": "Dual-polarity boxes",
    "med3dvlm": "Med3DVLM",
    "medvista3d": "MedVista3D",
    "uvlm": "U-VLM",
}


@dataclass(frozen=True)
class Published:
    """One cell of a published table.

    Attributes:
        paper, table: as in ``contour.T1``. title: what the table shows.
        row, group, column, condition: which cell; ``group`` is the data set or task that columns share.
        value: as printed, None where the source text has lost it or the paper prints a dash.
        unit: of the value.
        best: whether the paper marks it, or says that it is the best of its column.
        note: what is odd or uncertain about it.
    """

    paper: str
    table: str
    title: str
    row: str
    group: str
    column: str
    condition: str
    value: float | None
    unit: str
    best: bool
    note: str

    @property
    def name(self) -> str:
        """Of its table, ``PAPER.TABLE``."""
        return f"{self.paper}.{self.table}"


@cache
def load(path: str | Path = PATH) -> tuple[Published, ...]:
    """Read all cells.

    Raises:
        BadInput: the file isn't there, has other columns, or a cell stands twice.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = tuple(_read(row) for row in rows)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{path.name} can't be read as published numbers ({error}); restore it") from None
    places = [(p.name, p.row, p.group, p.column, p.condition) for p in found]
    twice = next((place for place in places if places.count(place) > 1), None) if len({*places}) < len(places) else None
    if twice:
        raise BadInput(f"{path.name} has the cell {' | '.join(twice)} twice; keep one of them")
    return found


def names(cells: Iterable[Published] | None = None) -> tuple[str, ...]:
    """All tables, ``PAPER.TABLE``, in the file's order."""
    return tuple(dict.fromkeys(cell.name for cell in (load() if cells is None else cells)))


def table(name: str) -> tuple[Published, ...]:
    """The cells of one table.

    Raises:
        BadInput: no such table; the sentence names those that are like it.
    """
    there = names()
    by_lower = {known.lower(): known for known in there}
    known = by_lower.get(name.lower().replace("-", "."))
    if known is None:
        like = [by_lower[one] for one in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
        of_paper = [one for one in there if one.split(".")[0] == name.lower().split(".")[0]]
        offered = of_paper or like or there
        raise BadInput(f"no published table is called {name!r}; did you mean {', '.join(offered)}?")
    return tuple(cell for cell in load() if cell.name == known)


def _read(row: dict[str, str]) -> Published:
    return Published(
        paper=row["paper"], table=row["table"], title=row["table_title"], row=row["row"], group=row["group"],
        column=row["column"], condition=row["condition"], value=float(row["value"]) if row["value"] else None,
        unit=row["unit"], best=row["best"] == "1", note=row["note"],
    )  # fmt: skip
