"""``sums.csv`` beside the results: which files are listed, each with its hash, so that nothing changes unseen."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ctvlm_lib.errors import BadInput, atomic_path

NAME = "sums.csv"
DERIVED = "scores.csv"  # follows from the answers and is written again by the ledger
_TEXTS = (".csv", ".json", ".toml")


def sha256_of(path: Path) -> str:
    """Hash of a file; of a text with the line ends that are committed, because a checkout may change them."""
    content = path.read_bytes()
    if path.suffix in _TEXTS:
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def of(folder: Path) -> dict[str, str]:
    """``folder/file`` → hash, for the files of one folder; hidden ones are none of the results."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {f"{folder.name}/{path.relative_to(folder).as_posix()}": sha256_of(path) for path in files}


def read(results: str | Path) -> dict[str, str]:
    """The list of a folder of results; {} where nothing is listed yet.

    Raises:
        BadInput: not such a list.
    """
    path = Path(results) / NAME
    if not path.is_file():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
        if rows[0] != ["path", "sha256"]:
            raise ValueError(f"its first line is {','.join(rows[0])!r}")
        listed = dict((name, value) for name, value in rows[1:])
        wrong = [f"{name},{value}" for name, value in listed.items() if not re.fullmatch("[0-9a-f]{64}", value)]
        if wrong or len(listed) < len(rows) - 1:
            raise ValueError(f"the line {wrong[0]!r}" if wrong else "a path stands twice")
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise BadInput(f"{NAME} isn't a list of path,sha256 ({error}); restore it, or list all again") from None
    return listed


def write(results: str | Path, listed: Mapping[str, str]) -> None:
    """Write the list, sorted, whole or not at all."""
    lines = ["path,sha256", *(f"{name},{value}" for name, value in sorted(listed.items()))]
    with atomic_path(Path(results) / NAME) as partial:
        partial.write_bytes(("\n".join(lines) + "\n").encode())


def of_folder(listed: Mapping[str, str], name: str) -> dict[str, str]:
    """The part of a list that is about one folder."""
    return {path: value for path, value in listed.items() if path.partition("/")[0] == name}


def differences(folder: Path, listed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What of a listed folder isn't as listed, a sentence each; and the names of files that came since.

    Args:
        folder: that is there.
        listed: of :func:`of_folder`.
    """
    there, told = of(folder), []
    for path, value in sorted(listed.items()):
        name = path.partition("/")[2]
        if path not in there:
            told.append(f"{name}: is listed in {NAME} and isn't there")
        elif there[path] != value:
            told.append(f"{name}: its sha256 is {there[path][:12]}… and {NAME} lists {value[:12]}…")
    return told, [path.partition("/")[2] for path in sorted(there.keys() - listed.keys())]
