"""Which notebooks run at the same time: as many as asked for, within memory, none before those that it needs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from ctvlm_lib.notebook_list import Notebook

T = TypeVar("T")
LOOK_S = 0.5  # a wait without end isn't left for a Ctrl-C that another thread received, nor for any on Windows
MEMORY_GB = 4.0  # that the workbook may take in profile quick


def side_by_side(
    notebooks: Sequence[Notebook],
    jobs: int,
    work: Callable[[Notebook, threading.Event], T],
    memory_gb: float = MEMORY_GB,
) -> Iterator[tuple[Notebook, T]]:
    """Do some work for every notebook, several at a time, and give what comes of it as it comes.

    A notebook waits for those that it needs, and for room: what the ones at work took at their largest when they were
    measured. One alone always has room.

    Args:
        notebooks: in their order.
        jobs: how many at a time, at most.
        work: called in a thread with the notebook and an event that is set when everything has to end early.
        memory_gb: of all that run at a time.
    """
    waiting, running, stop = list(notebooks), {}, threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for notebook in _startable(waiting, running, jobs, memory_gb):
                    running[pool.submit(work, notebook, stop)] = notebook
                    waiting.remove(notebook)
                for future in wait(running, timeout=LOOK_S, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:  # leaving the pool waits for its threads
            stop.set()


def _startable(waiting: list[Notebook], running: dict[Future, Notebook], jobs: int, memory_gb: float) -> list[Notebook]:
    """The first of those waiting that may start now."""
    at_work, found = list(running.values()), []
    for notebook in waiting:
        together = [*at_work, *found]
        unmet = {other.number for other in (*at_work, *waiting)} & set(notebook.needs)
        room = sum(map(peak_gb, together)) + peak_gb(notebook) <= memory_gb
        if len(together) < jobs and not unmet and (room or not together):
            found.append(notebook)
    return found


def peak_gb(notebook: Notebook) -> float:
    """The memory that a notebook took when it was measured; half of the whole where it never was."""
    return float(notebook.content["metadata"].get("ctvlm", {}).get("peak_gb") or MEMORY_GB / 2)
