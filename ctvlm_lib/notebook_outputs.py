"""What a notebook has left in a run's folder, and whether that is still valid."""

import contextlib
import json
import shutil
from pathlib import Path

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.run import file_hash, write_json

HALF_WRITTEN = ".*partial.*"  # names of errors.atomic_path and of folders that a model is written into


def executed_path(folder: Path, name: str) -> Path:
    """Return where the executed copy lies."""
    return folder / "notebooks" / f"{name}.ipynb"


def html_path(folder: Path, name: str) -> Path:
    """Return where the executed copy lies as HTML."""
    return folder / "html" / f"{name}.html"


def outputs(folder: Path, number: str, own_folder: bool = True) -> list[Path]:
    """List what a notebook has written: executed copy, HTML, tables, figures and, if asked, its folder ``NN/``."""
    patterns = [f"{kind}/{number}_*" for kind in ("notebooks", "html", "tables", "figures")]
    if own_folder:
        patterns.append(f"{number}/**/*")
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def tables(folder: Path, number: str) -> dict[str, str]:
    """Return the hash of every table of a notebook, {path in the run's folder: sha256}."""
    there = [path for path in sorted(folder.glob(f"tables/{number}_*.csv")) if path.is_file()]
    return {f"tables/{path.name}": file_hash(path) for path in there}


def remove(folder: Path, number: str, own_folder: bool) -> None:
    """Remove a notebook's outputs and its state; its folder ``NN/`` only if asked.

    The state goes first: a run killed in between finds no state and runs the notebook.
    Before an ordinary run ``NN/`` stays, since long steps keep there what lets them continue.
    """
    _state_file(folder, number).unlink(missing_ok=True)
    for path in outputs(folder, number, own_folder=False):
        path.unlink(missing_ok=True)
    if own_folder:
        shutil.rmtree(folder / number, ignore_errors=True)


def save_state(folder: Path, number: str, key: str, measured: dict) -> dict:
    """Record that a notebook ran to its end; written after all its outputs, so that it vouches for them."""
    state = {
        "key": key,
        "seconds": measured["seconds"],
        "peak_bytes": measured["peak_bytes"],
        "tables": tables(folder, number),
        "files": [path.relative_to(folder).as_posix() for path in outputs(folder, number)],
    }
    write_json(_state_file(folder, number), state)
    return state


def load_state(folder: Path, number: str) -> dict:
    """Return the state of a notebook's last complete run, ``{}`` if there is none that can be read."""
    with contextlib.suppress(OSError, *NOT_JSON):
        state = json.loads(_state_file(folder, number).read_text(encoding="utf-8"))
        if isinstance(state, dict) and isinstance(state.get("files"), list) and isinstance(state.get("tables"), dict):
            return state
    return {}


def is_current(folder: Path, number: str, key: str) -> bool:
    """Say whether the last run had this key and everything it left is there, the tables unchanged."""
    state = load_state(folder, number)
    return (
        state.get("key") == key
        and all((folder / str(name)).exists() for name in state["files"])
        and tables(folder, number) == state["tables"]
    )


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written; call it with the folder's lock held.

    Only where notebooks write: an arm that is being trained writes beside them, and holds no lock.
    """
    kinds = ("notebooks", "html", "tables", "figures", "report", "state")
    places = (".", *kinds, "[0-9][0-9]/**")
    for partial in sorted({path for place in places for path in folder.glob(f"{place}/{HALF_WRITTEN}")}):
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
    shutil.rmtree(folder / "state" / "scratch", ignore_errors=True)


def _state_file(folder: Path, number: str) -> Path:
    return folder / "state" / f"{number}.json"
