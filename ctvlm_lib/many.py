"""Many cases through Dask: a bounded number under way, each told when it is done, none lost with a worker.

A case is small: paths and options. A worker reads it, writes its output and hands back a row of plain values, so that
neither the scheduler nor this process ever holds a volume: the scheduler knows of the cases under way, this process
keeps a row of each, some kB at most. When a worker is lost its case is done again by another one; one that costs four
workers is listed, and the rest is finished.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.made_once import sweep

Case = TypeVar("Case")


def run_all(
    cases: Sequence[Case], one: Callable[[Case], dict], blank: Callable[[Case], dict], table: Path, *,
    workers: int = 2, scheduler: str | None = None, say: Callable[[str], None] = print,
) -> list[dict]:  # fmt: skip
    """Do every case; one that fails is listed and the rest is finished.

    Args:
        cases: at least one; each is sent to a worker as it is, so it should be small.
        one: does a case in a worker and returns what is otherwise than in its blank row. What it raises becomes the
            row's error. It is sent along with every case, too.
        blank: a case's row as long as nothing was done, with ``case``, ``status`` ("failed") and ``error`` ("").
        table: gets all rows as CSV.
        workers: local processes.
        scheduler: address of a running Dask scheduler, instead of local processes.
        say: takes each line of progress.

    Returns:
        One row a case, in the order of ``cases``; besides what ``one`` says ``seconds``, and ``peak_mb``: the most
        memory that its worker has held so far.

    Raises:
        BadInput: no worker, a scheduler that doesn't answer or is lost, or a table that can't be written.
    """
    with atomic_path(table) as partial:  # an unwritable folder is found before anything is read
        sweep(table)
        with _client(min(workers, len(cases)), scheduler) as client:
            begun, rows = time.monotonic(), {}
            for number, found in _finished(client, cases, one, blank):
                rows[number] = found
                left = (time.monotonic() - begun) / len(rows) * (len(cases) - len(rows))
                problem = f": {found['error']}" if found["error"] else ""
                count = f"[{len(rows)}/{len(cases)}]"
                say(f"{count} {found['case']} {found['status']}{problem}  (about {left:.0f} s left)")
        ordered = [rows[number] for number in range(len(cases))]
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(ordered[0]))
            writer.writeheader()
            writer.writerows(ordered)
    return ordered


@contextmanager
def local_workers(count: int):
    """A Dask cluster of so many processes on this machine, which end with the block."""
    from dask.distributed import LocalCluster

    if count < 1:
        raise BadInput(f"a batch needs at least one worker, got {count}")
    # any free port for the dashboard: the usual one may be taken by another batch
    # and no log of the workers': at the end a heartbeat may find the scheduler gone, and a lost one is in the table
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0, "silence_logs": 50}
    with LocalCluster(n_workers=count, **options) as cluster:
        yield cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say who works."""
    parser.add_argument("--workers", type=int, default=2, help="processes for a batch (default: 2)")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler, instead of local processes")


def tell(rows: Sequence[dict], what: str, table: Path) -> int:
    """Print how many cases went well and why the others didn't; 0 = all did, 1 = some failed."""
    failed = [row for row in rows if row["status"] == "failed"]
    print(f"{len(rows) - len(failed)} of {len(rows)} cases {what}; table: {table}")
    for row in failed:
        print(f"failed: {row['case']}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def peak_mb() -> float:
    """The most memory that this process has held, MB."""
    try:  # the other way counts what the process that started this one held
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 1e6  # macOS tells what is held now


@contextmanager
def _client(count: int, scheduler: str | None):
    """A client of the running scheduler, or of local processes that end with the block."""
    from dask.distributed import Client

    if scheduler is None:
        with local_workers(count) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise BadInput(f"no Dask scheduler answers at {scheduler}: {error}; start one, or leave it out") from error
    with client:
        yield client


def _finished(client, cases: Sequence[Case], one, blank) -> Iterator[tuple[int, dict]]:
    """Number and row of each case as it is done; as many are under way as there are threads, and none waits behind
    another in a worker, which it would be lost with.
    """
    from dask.distributed import as_completed

    waiting, running, numbers = iter(enumerate(cases)), as_completed(), {}

    def fill() -> None:
        room = max(1, sum(client.nthreads().values())) - len(numbers)  # workers may have come or gone
        for number, case in islice(waiting, max(0, room)):
            future = client.submit(_guarded, case, one, blank, pure=False)
            numbers[future] = number
            running.add(future)

    try:
        fill()
        for future in running:
            number = numbers.pop(future)
            row = _row_of(future, blank(cases[number]))
            fill()  # only now: a row that lies in a worker would be lost with its next case, and be made again
            yield number, row
    except OSError as error:
        raise BadInput(f"the Dask scheduler is gone: {error}; the same command continues from there") from error


def _row_of(future, row: dict) -> dict:
    """What a worker handed back, or why there is nothing."""
    from dask.distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as lost:
        times, why = lost.allowed_failures + 1, "as happens when memory runs out"
        problem = f"its worker was lost {times} times, {why}; give it more, or try it alone"
    except Exception as error:  # a case that couldn't be sent, or a worker without this library
        if future.cancelled():
            raise ConnectionError("the connection was lost") from error
        problem = f"no worker could begin it: {type(error).__name__}: {error}"
    return row | {"error": problem} | _measured(None)


def _guarded(case: Case, one: Callable[[Case], dict], blank: Callable[[Case], dict]) -> dict:
    """Do a case in a worker; every failure becomes a row, so that the batch goes on."""
    begun, row = time.monotonic(), blank(case)
    try:
        row |= one(case)
    except BadInput as error:
        row["error"] = str(error)
    except Exception as error:  # a broken case must not stop the others; its kind is told
        row["error"] = f"{type(error).__name__}: {error}"
    return row | _measured(time.monotonic() - begun)


def _measured(seconds: float | None) -> dict:
    known = seconds is not None
    return {"seconds": round(seconds, 2) if known else "", "peak_mb": round(peak_mb()) if known else ""}
