"""Cases in a process of their own: a reader that crashes, hangs or takes all memory ends there and not here."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import psutil

from fuzz.case import FAULT, SECONDS, Bench, Outcome, limit_memory

WALL_SECONDS = 60.0  # for a case that waits and doesn't compute
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
              "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip


class Worker:
    """A process that has imported everything and forks one that runs case after case; where that ends, the next one.

    Args:
        home: folder for the files of the cases.
        log: what the readers print goes there.
    """

    def __init__(self, home: Path, log: Path) -> None:
        self.home, self.log = home, log
        self.started = 0  # processes that ran cases
        with open(log, "wb") as sink:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "fuzz.worker", str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=sink, text=True, env=os.environ | ONE_THREAD,
            )  # fmt: skip
        self._ready()

    def run(self, target: str, number: int, seed: int) -> Outcome:
        """One case; a process that died or hangs is replaced."""
        print(json.dumps([target, number, seed]), file=self._nursery.stdin, flush=True)
        before, begun, hung = _cpu(self._pid), time.monotonic(), ""
        while not select.select([self._nursery.stdout], [], [], 0.2)[0]:
            used, wall = _cpu(self._pid) - before, time.monotonic() - begun
            if not hung and (used > 2 * SECONDS or wall > WALL_SECONDS):  # the worker itself tells of what takes less
                hung = f"hung: stopped after {used:.0f} s of computing, {wall:.0f} s in all"
                os.kill(self._pid, signal.SIGKILL)
        answer = self._answer()
        if "died" not in answer:
            return Outcome(**answer)
        self._ready()
        return Outcome(target, number, seed, FAULT, "see --replay", hung or f"the process ended with {answer['died']}")

    def close(self) -> None:
        """End the processes."""
        self._nursery.stdin.close()
        self._nursery.wait()

    def _ready(self) -> None:
        answer = self._answer()
        if "ready" not in answer:
            self._nursery.kill()
            raise RuntimeError(f"the good files can't be made or aren't read; the end of {self.log} says which")
        self._pid = answer["ready"]
        self.started += 1

    def _answer(self) -> dict:
        line = self._nursery.stdout.readline()
        if not line:
            raise RuntimeError(f"the campaign's own process ended; {self.log} says why")
        return json.loads(line)


def _cpu(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def main(home: Path) -> None:
    """The nursery: imports, then forks a process for the cases until one of them ends in peace."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print isn't an answer
    from fuzz.targets import warm_up

    warm_up()
    while True:
        pid = os.fork()
        if pid == 0:
            serve(home, answers)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        print(json.dumps({"died": f"signal {-code}" if code < 0 else f"code {code}"}), file=answers, flush=True)


def serve(home: Path, answers: TextIO) -> None:
    """Read cases, write outcomes, one JSON a line."""
    from fuzz.targets import TARGETS

    bench = Bench(home)
    for target in TARGETS.values():
        bench.check(target)
    limit_memory()
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    while line := sys.stdin.readline():
        name, number, seed = json.loads(line)
        outcome = bench.run(TARGETS[name], number, seed)
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
