"""An output that is made once: kept while its inputs and options are the same, taken up where a killed process left it.

Beside the output lies a note that says what it was made from. Before the output is begun the note says so, so that one
that was killed between output and note is known as our own and made again; a file of another's is never replaced.
"""

import glob
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ctvlm_lib import __version__
from ctvlm_lib.errors import BadInput, atomic_path


def make_once(
    target: Path, note: Path, key: str, make: Callable[[], dict], force: bool = False,
    check: Callable[[bool], None] | None = None,
) -> tuple[str, dict]:  # fmt: skip
    """Make an output, or keep the one that was made from the same.

    Args:
        target: the output, a file or a folder.
        note: JSON beside it.
        key: of :func:`key_of`.
        make: writes ``target`` whole or not at all; returns plain values that go into the note.
        force: replace an existing one.
        check: refuses other targets that can't be written; called with whether an existing one may be replaced.

    Returns:
        "kept" or "done", and what the note holds.

    Raises:
        BadInput: there is a target that was made from something else, and no force.
    """
    kept = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    if target.exists() and kept.get("key") == key and not force:
        return "kept", kept
    replaces = force or "begun" in kept
    if check:
        check(replaces)
    if target.exists() and not replaces:
        raise BadInput(f"{target} exists already; choose another output, or replace it with --force")
    sweep(target)
    sweep(note)
    write_note(note, {"begun": key})
    try:
        made = {"key": key, **make()}
    except BaseException:
        write_note(note, kept)  # an older output is still what its note says
        raise
    write_note(note, made)
    return "done", made


def key_of(paths: Sequence[Path], *options) -> str:
    """What an output depends on: options, the inputs' places, sizes and times of change, and this library's version."""
    inputs = []
    for path in (path.resolve() for path in paths):  # the same file, however it is spelt
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        inputs += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.sha256(json.dumps([*options, inputs, __version__]).encode()).hexdigest()


def sweep(target: Path) -> None:
    """Remove what a process that was killed has half-written of this output."""
    for stale in target.parent.glob(f".*.partial.{glob.escape(target.name)}"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def write_note(path: Path, content: dict) -> None:
    """Write a note, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def safe_name(*parts: str) -> str:
    """A name for an output without suffix: what no file system takes in a name becomes ``-``."""
    return "_".join(re.sub(r'[\s\\/:*?"<>|]', "-", part) for part in parts)
