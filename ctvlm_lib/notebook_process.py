"""Run one notebook in a child process and watch it: seconds, peak memory, a clean end."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ctvlm_lib.run import PROJECT, write_json

SAMPLE_S = 0.25  # how often memory is looked at; shorter peaks of a single process are caught by the child's own record


def run_notebook(
    job: dict, log: Path, scratch: Path, variables: dict[str, str], on_tick: Callable[[float, int], None]
) -> dict:
    """Execute a notebook in a process of its own and measure it.

    Args:
        job: ``source``, ``executed``, ``html`` (paths) and ``parameters``, see ``notebook_execution``.
        log: file for what the process and its kernel write to their streams.
        scratch: an empty folder, the notebook's working directory; removed afterwards.
        variables: added to the environment of the process.
        on_tick: called with (seconds so far, bytes in use now) a few times a second.

    Returns:
        ``{"failure", "seconds", "peak_bytes"}``; ``failure`` is None or ``{"cell", "source", "error"}``.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "work").mkdir(parents=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    job_file = scratch / "job.json"
    write_json(job_file, {name: value if isinstance(value, dict) else str(value) for name, value in job.items()}
               | {"scratch": str(scratch / "work")})  # fmt: skip
    begun = time.monotonic()
    try:
        code, peak = _watch(job_file, log, scratch, variables, lambda used: on_tick(time.monotonic() - begun, used))
        outcome = _outcome(job_file, code, log)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "failure": outcome["failure"],
        "seconds": round(time.monotonic() - begun, 1),
        "peak_bytes": max(peak, outcome.get("peak_bytes", 0)),
    }


def _watch(
    job_file: Path, log: Path, scratch: Path, variables: dict, on_tick: Callable[[int], None]
) -> tuple[int, int]:
    """Start the child and wait for it; return its exit code and the most memory its process tree held, bytes."""
    # the kernel inherits PYTHONPATH: notebooks find the library whatever the working directory is
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ctvlm_lib.notebook_execution", str(job_file)]
    peak, family = 0, set()
    with open(log, "wb") as stream:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, cwd=scratch / "work",
            env=os.environ | {"PYTHONPATH": path} | variables, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(timeout=SAMPLE_S), peak
                there = _family(child.pid)
                family.update(there)
                used = sum(map(_resident, there))
                peak = max(peak, used)
                on_tick(used)
        finally:
            _end(child, family)


def _family(pid: int) -> list:
    """A process and all below it, as psutil knows them."""
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _resident(process) -> int:
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _end(child: subprocess.Popen, family: set) -> None:
    """Make sure that neither the child nor a kernel of its outlives this call (Ctrl-C, an error here).

    ``family`` are the processes seen below it: where the child alone was killed, they can't be found any more.
    """
    import psutil

    if child.poll() is None:
        family = family.union(_family(child.pid))
    for process in family:
        with contextlib.suppress(psutil.Error):  # ended by itself; a number that was given anew isn't touched
            process.kill()
    child.wait()
    if child.stdin:
        child.stdin.close()


def _outcome(job_file: Path, code: int, log: Path) -> dict:
    outcome_file = job_file.with_suffix(".outcome.json")
    if outcome_file.exists():
        return json.loads(outcome_file.read_text(encoding="utf-8"))
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {words[-1]}" if words else ""
    reason = f"the notebook's process ended early with code {code}{last}"
    if code == -9:
        reason += " (killed; often the machine ran out of memory)"
    return {"failure": {"cell": None, "source": "", "error": reason}}
