"""Renew the outputs kept in the notebooks' folder, only where that says something new; ``make notebooks``.

A committed notebook is shown as executed at profile quick. Rewriting all of them after each run would bury real
changes under megabytes of pictures, so a notebook is rewritten only if its source has changed since its outputs were
made, if an output marked ``nbval-check-output`` has changed, or if it has no outputs yet.
"""

import hashlib
import json
from pathlib import Path

from ctvlm_lib import notebook_outputs as outputs
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.notebook_facts import copy_pictures, renew_takes, update_readme, without_takes
from ctvlm_lib.run import PROJECT, run_folder

LIMIT_BYTES = 400_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
RUN_METADATA = ("papermill", "execution", "ExecuteTime")


def store(out_dir: str | Path | None = None, notebooks_dir: str | Path | None = None, profile: str = "quick") -> list:
    """Copy outputs from the executed copies of a run into the notebooks' folder where they say something new.

    Sources, cell ids and tags stay those of the notebook in the folder; the cell that papermill injected, run times,
    widget state and paths don't come along.

    Returns:
        One line for each notebook: what was done and why.
    """
    folder = run_folder(profile, out_dir or "")
    lines = []
    for path in sorted(Path(notebooks_dir or PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        executed_file = outputs.executed_path(folder, path.stem)
        state = outputs.load_state(folder, path.stem[:2])
        if not state or not executed_file.exists():
            lines.append(f"{path.stem}: left as it is, no complete run in {folder}")
            continue
        executed = _matching_cells(kept, json.loads(executed_file.read_text(encoding="utf-8")))
        if executed is None:
            lines.append(f"{path.stem}: left as it is, it was changed after it ran; run it again")
            continue
        reason = _reason(kept, executed)
        if reason:
            _renew(kept, executed, state)
            copy_pictures(kept["metadata"]["ctvlm"], folder, path.stem[:2], PROJECT)
            lines.append(f"{path.stem}: renewed, {reason}" + _write(path, kept))
        else:
            lines.append(f"{path.stem}: unchanged")
    if lines and notebooks_dir is None and update_readme(PROJECT / "README.md", PROJECT / "notebooks"):
        lines.append("README.md: table of notebooks renewed")
    if not lines:
        raise BadInput(f"no notebooks in {notebooks_dir or PROJECT / 'notebooks'}; give their folder with --notebooks")
    return lines


def _matching_cells(kept: dict, executed: dict) -> list | None:
    """Return the executed copy's cells that belong to those of the notebook, None if the sources differ."""
    cells = [c for c in executed["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
    same = [_bare(c) for c in cells] == [_bare(c) for c in kept["cells"]]
    return cells if same else None


def _reason(kept: dict, executed: list) -> str:
    """Say why the outputs should be renewed; empty if they needn't."""
    code = [(old, new) for old, new in zip(kept["cells"], executed, strict=True) if old["cell_type"] == "code"]
    if not any(old.get("outputs") for old, _ in code):
        return "it had no outputs"
    if kept["metadata"].get("ctvlm", {}).get("outputs_of") != source_hash(kept):
        return "its source has changed"
    for old, new in code:
        checked = "nbval-check-output" in old["metadata"].get("tags", [])
        if checked and _stripped(old.get("outputs", []), None) != _stripped(new["outputs"], None):
            return "a checked output has changed"
    return ""


def source_hash(notebook: dict) -> str:
    """Return a hash of the cells' types, sources and tags, kept beside the outputs to tell whether they are current."""
    cells = [[c["cell_type"], _bare(c), c["metadata"].get("tags", [])] for c in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def _renew(kept: dict, executed: list, state: dict) -> None:
    """Put the outputs of the executed cells into the notebook, numbered as if nothing had been injected."""
    count = 0
    for old, new in zip(kept["cells"], executed, strict=True):
        for name in RUN_METADATA:
            old["metadata"].pop(name, None)
        if old["cell_type"] == "code":
            count += 1
            old["execution_count"] = count
            old["outputs"] = _stripped(new["outputs"], count)
    for name in ("papermill", "widgets"):
        kept["metadata"].pop(name, None)
    about = kept["metadata"].setdefault("ctvlm", {})
    about["outputs_of"] = source_hash(kept)
    about["seconds"] = round(state["seconds"])
    about["peak_gb"] = round(state["peak_bytes"] / 1e9, 1)
    for cell in kept["cells"][:3]:
        cell["source"] = renew_takes(_text(cell["source"]), about["seconds"], about["peak_gb"])


def _stripped(outputs_: list, count: int | None) -> list:
    """Return outputs without what changes from run to run: counts, stream chunks, views of widgets without state."""
    result: list[dict] = []
    for output in json.loads(json.dumps(outputs_)):
        if "execution_count" in output:
            output["execution_count"] = count
        output.get("data", {}).pop(WIDGET_VIEW, None)
        for name in RUN_METADATA:
            output.get("metadata", {}).pop(name, None)
        last = result[-1] if result else {}
        if output["output_type"] == "stream":
            output["text"] = _text(output["text"])
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] += output["text"]
                continue
        result.append(output)
    return result


def _bare(cell: dict) -> str:
    """A cell's source without the "Takes" line, which storing renews."""
    return without_takes(_text(cell["source"]))


def _text(source: str | list) -> str:
    return source if isinstance(source, str) else "".join(source)


def _write(path: Path, notebook: dict) -> str:
    """Write the notebook as Jupyter does (lines as lists) and return remarks about its size and paths."""
    import nbformat

    text = nbformat.writes(nbformat.from_dict(notebook), version=4) + "\n"
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
    remarks = ""
    if len(text.encode()) > LIMIT_BYTES:
        remarks += f"; it has {len(text.encode()) / 1e3:.0f} kB, more than the {LIMIT_BYTES / 1e3:.0f} kB allowed"
    if str(PROJECT) in text or str(Path.home()) + "/" in text:
        remarks += "; an output holds a path of this machine"
    return remarks
