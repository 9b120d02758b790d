"""The cases of a batch: rows of a CSV, or folders that each hold a ``ct.nii.gz``."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume.read import stem

CT = "ct.nii.gz"  # in a case's folder
Case = TypeVar("Case")


def is_batch(source: Path) -> bool:
    """Whether a path is a CSV, or a folder of case folders."""
    return source.suffix.lower() == ".csv" or (source.is_dir() and any(source.glob(f"*/{CT}")))


def list_cases(
    source: Path, needed: Sequence[str], optional: Sequence[str], of_row: Callable[[int, dict], Case],
    of_folder: Callable[[Path], Case], output_name: Callable[[Case], str], beside: str = "",
) -> list[Case]:  # fmt: skip
    """List the cases of a CSV or of a folder of case folders.

    Args:
        source: the CSV, or the folder.
        needed: columns of the CSV without which there is no case. optional: further columns that it may have.
        of_row: makes a case of a line's number and its cells, stripped.
        of_folder: makes a case of its ``ct.nii.gz``.
        output_name: under which a case's output is stored.
        beside: what a case's folder must hold else, in words.

    Raises:
        BadInput: a column is missing or misspelt, a row is incomplete, or two cases would write to one output.
    """
    try:
        if source.suffix.lower() == ".csv":
            cases = [of_row(number, cells) for number, cells in _rows(source, needed, optional)]
        else:
            cases = [of_folder(ct) for ct in sorted(source.glob(f"*/{CT}"))]
    except UnicodeDecodeError:
        raise BadInput(f"{source.name} is not UTF-8 text; save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{source} can't be read as a CSV: {reason}; give a file of cases") from error
    if not cases:
        raise BadInput(f"{source} holds no cases; a case is a row of the CSV, or a folder with {CT}{beside}")
    _check_outputs(source, [output_name(case) for case in cases])
    return cases


def name_of(cells: dict, ct: Path) -> str:
    """What a row calls its case, or else its file."""
    return cells.get("name") or stem(ct)


def _rows(source: Path, needed: Sequence[str], optional: Sequence[str]) -> list[tuple[int, dict]]:
    with open(source, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        lacking, unknown = set(needed) - columns, columns - {*needed, *optional}
        if lacking or unknown:
            wrong = f"lacks {sorted(lacking)}" if lacking else f"has unknown columns {sorted(map(str, unknown))}"
            raise BadInput(
                f"{source.name} {wrong}; the columns are {', '.join(needed)} and, if wished,"
                f" {', '.join(sorted(optional))}"
            )
        rows = []
        for number, row in enumerate(reader, start=2):
            cells = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
            if not all(cells[key] for key in needed):
                raise BadInput(f"{source.name} line {number} needs {_and(needed)}")
            rows.append((number, cells))
        return rows


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _check_outputs(source: Path, outputs: list[str]) -> None:
    seen: dict[str, str] = {}
    for output in outputs:
        folded = output.casefold()  # macOS and Windows hold A and a for one name
        if folded in seen:
            first = min(seen[folded], output)
            raise BadInput(f"{source.name} has several cases for the output {first}; give each row its own name")
        seen[folded] = output
