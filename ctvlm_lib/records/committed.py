"""No score on the test split without a committed protocol.

What may still be changed after the test split was scored isn't a protocol. So whoever scores asks here first: the
protocol and the list of contrasts have to stand in the last commit as they stand on disk.
"""

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol

ROOT = protocol.PATH.resolve().parents[1]
FILES = (protocol.PATH, ROOT / "ctvlm_lib" / "ledger" / "contrasts.csv")


@dataclass(frozen=True)
class Committed:
    """What a score was computed under: the protocol's version, a hash of its files, and the commit ("" without git)."""

    version: int
    sha256: str
    commit: str


def as_it_stands(files: tuple[Path, ...] = FILES) -> Committed:
    """Version and hash of the protocol on disk, committed or not.

    Raises:
        BadInput: a file is missing.
    """
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise BadInput(f"there is no {path.name}; the test split is scored under a committed protocol only")
        digest.update(path.read_bytes())
    return Committed(protocol.load(files[0]).content["version"], digest.hexdigest(), "")


def check_committed(files: tuple[Path, ...] = FILES) -> Committed:
    """Refuse to go on unless the protocol is committed as it stands.

    In a copy without git, such as a downloaded archive, there is no history to look at; the files' hash in the result
    is then all that ties the two together.

    Args:
        files: the protocol first; then what else must not change.

    Raises:
        BadInput: a file is missing, not in the last commit, or changed since.
    """
    standing = as_it_stands(files)
    home = files[0].resolve().parent
    if _git(home, "rev-parse", "--is-inside-work-tree") != "true":
        return standing
    for path in files:
        if _git(home, "ls-files", "--error-unmatch", str(path)) is None:
            raise BadInput(f"{path.name} isn't in the repository yet; commit it before the test split is scored")
        if _git(home, "status", "--porcelain", "--", str(path)):
            raise BadInput(
                f"{path.name} differs from the last commit; commit the change, with a new version and the reason,"
                " before the test split is scored"
            )
    return replace(standing, commit=_git(home, "rev-parse", "HEAD") or "")


def recorded(
    splits: Iterable[str], key: str = "protocol", files: tuple[Path, ...] = FILES, version: int | None = None
) -> dict:
    """What a record says of the protocol, which has to be committed before any but validation patients are asked.

    Args:
        splits: that are asked.
        key: under which it stands in the record.
        files: of the protocol. version: of a protocol that is not the first file; None takes that one's.

    Returns:
        key → version and hash; {} where validation patients alone are asked, or nobody.

    Raises:
        BadInput: as :func:`check_committed`.
    """
    if not set(splits) - {"validation"}:
        return {}
    under = check_committed(files)
    return {key: {"version": under.version if version is None else version, "sha256": under.sha256}}


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None if it isn't there, or says no."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
