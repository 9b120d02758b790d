"""Execute one notebook in this process's kernel; started by the runner as ``python -m ctvlm_lib.notebook_execution``.

A process of its own for each notebook gives its peak memory, and lets the runner end it with everything it started.
The job is a JSON file; the outcome is written beside it as ``<job>.outcome.json``.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from ctvlm_lib.errors import atomic_path
from ctvlm_lib.notebook_html import write_html
from ctvlm_lib.run import write_json

TAG = "paper"  # of the cells that run in this profile
KERNEL_START_S = 180  # a loaded machine can need a minute to start a kernel


def main(job_file: str) -> None:
    """Execute the notebook of a job file: ``{"source", "executed", "html", "parameters", "scratch"}``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # the kernel must be this interpreter's, whatever kernels the user has installed under the name python3
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["IPYTHONDIR"] = str(Path(job_file).parent / "ipython")  # no start-up files or history of the user's
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    outcome = execute(Path(job["source"]), Path(job["executed"]), job["parameters"], Path(job["scratch"]))
    if Path(job["executed"]).exists():
        write_html(Path(job["executed"]), Path(job["html"]))
    write_json(Path(job_file).with_suffix(".outcome.json"), outcome | {"peak_bytes": _peak_of_children()})


def execute(source: Path, executed: Path, parameters: dict, scratch: Path) -> dict:
    """Run a notebook with papermill; the executed copy gets its name when it is complete, also after a failing cell.

    Returns:
        ``{"failure": None}``, or ``{"failure": {"cell", "source", "error"}}`` with the cell's number in the source
        notebook, from 1. In profile ``paper`` only the cells that read the user's data run, if there are any.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    if parameters.get("profile") == "paper":
        source = _own_part(source, scratch)
    failure = None
    with atomic_path(executed) as partial:
        try:
            papermill.execute_notebook(
                source, partial, parameters=parameters, kernel_name="python3", cwd=scratch,
                progress_bar=False, start_timeout=KERNEL_START_S,
            )  # fmt: skip
        except PapermillExecutionError as error:
            cell = _cell_in_source(nbformat.read(source, as_version=4), error.cell_index, bool(parameters))
            failure = {"cell": cell, "source": error.source, "error": _last_line(error)}
        except Exception as error:  # the kernel died, or the notebook is no notebook: say so, keep what was saved
            cell, code = _unfinished_cell(partial, source, bool(parameters))
            remark = " (often the machine ran out of memory)" if type(error).__name__ == "DeadKernelError" else ""
            failure = {"cell": cell, "source": code, "error": f"{type(error).__name__}: {str(error).strip()}{remark}"}
            if not partial.exists():
                partial.write_bytes(source.read_bytes())
    return {"failure": failure}


def _last_line(error) -> str:
    message = (error.evalue or "").strip().splitlines()
    return f"{error.ename}: {message[0]}" if message else str(error.ename)


def _own_part(source: Path, scratch: Path) -> Path:
    """The notebook that profile ``paper`` runs: title, parameters and the cells tagged for it; the whole without any.

    The lessons on phantoms teach nothing new there, and take minutes.
    """
    import nbformat

    notebook = nbformat.read(source, as_version=4)
    tags = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    if not any(TAG in some for some in tags):
        return source
    notebook.cells = [c for k, c in enumerate(notebook.cells) if not k or tags[k] & {"parameters", TAG}]
    nbformat.write(notebook, scratch / source.name)
    return scratch / source.name


def _cell_in_source(notebook, index: int, parameters_injected: bool) -> int:
    """Return the number from 1 of the executed copy's cell ``index``: papermill puts one cell after the parameters."""
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    injected_before = parameters_injected and (not tagged or index > tagged[0])
    return index + 1 - injected_before


def _unfinished_cell(partial: Path, source: Path, parameters_injected: bool) -> tuple[int | None, str]:
    """Return number and code of the cell that was running when the kernel died: the last that papermill started."""
    import nbformat

    if not partial.exists():
        return None, ""
    last = None, ""
    original = nbformat.read(source, as_version=4)
    for index, cell in enumerate(nbformat.read(partial, as_version=4).cells):
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time"):
            last = _cell_in_source(original, index, parameters_injected), cell.source
    return last


def _end_with_parent() -> None:
    """End this process and the kernel when the runner is gone, even by kill -9: its end of our stdin closes then."""
    import psutil

    while os.read(0, 1):  # not sys.stdin: a thread waiting in it disturbs the interpreter's shutdown
        pass
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended by itself must not save the others
            process.kill()
    os._exit(1)


def _peak_of_children() -> int:
    """Return the largest resident memory of any process that ended under this one, bytes (0 where not known)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(sys.argv[1])
