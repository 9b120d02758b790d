"""Kill a command at random moments, start it again, and compare what it leaves with what an undisturbed one leaves."""

import contextlib
import csv
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ctvlm_lib.run import PROJECT

KINDS = {  # what is killed, and the exit codes that the command may then end with; 1: it goes on, a notebook failed
    "all at once": {-signal.SIGKILL},
    "the command": {-signal.SIGKILL},
    "SIGTERM": {-signal.SIGTERM},
    "Ctrl-C": {130, -signal.SIGINT, 1},  # 1: while Python itself was starting
    "a notebook's process": {1},
    "a kernel": {1},
}
TAG = "CTVLM_KILL_TEST"  # in the environment of everything that a command starts, orphans included
GONE_S = 20  # how long orphans may take to notice, on a busy machine


FREEZE = """import os, signal, sys
left, folder = int(os.environ["CTVLM_KILL_CHANGE"]), os.environ["CTVLM_KILL_FOLDER"]
def hook(event, arguments):
    global left
    if event == "os.rename" and str(arguments[0]).startswith(folder):
        left -= 1
        if left == 0:
            try:
                file = os.open(os.environ["CTVLM_KILL_FROZEN"], os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.write(file, str(os.getpid()).encode())
            os.kill(os.getpid(), signal.SIGSTOP)
if left:
    sys.addaudithook(hook)
"""  # sitecustomize.py of all that is started: the first process about to give its n-th file its name stops


@dataclass(frozen=True)
class Moment:
    """When and what to kill.

    Attributes:
        kind: one of KINDS.
        cpu_s: processor seconds after the start, of all processes: a busy machine doesn't shift them.
        change: or before, when some process is about to give its n-th file its name; 0: by time alone.
        wait: let everything end before the next start; otherwise that comes at once.
    """

    kind: str
    cpu_s: float
    change: int
    wait: bool

    @classmethod
    def draw(cls, rng: random.Random, span_s: float, kinds: Sequence[str], changes: int = 12) -> "Moment":
        """A moment within the time that an undisturbed run takes; of three, one is put on the writing of a file."""
        change = rng.randint(1, changes) if rng.random() < 1 / 3 else 0
        return cls(rng.choice(kinds), rng.uniform(0, span_s), change, rng.random() < 0.5)


class Killer:
    """Starts a command again and again and kills it.

    Args:
        command: words after ``python``.
        folder: that it writes to; looked at for files that are being written.
        log: gets what it prints.
        environment: besides the present one.
    """

    def __init__(self, command: Sequence[str], folder: Path, log: Path, environment: dict[str, str] | None = None):
        self.command, self.folder, self.log = [sys.executable, *command], folder, log
        self.token = secrets.token_hex(8)
        self.hooks = log.parent / f"{log.stem}-hooks"
        self.hooks.mkdir(parents=True)
        (self.hooks / "sitecustomize.py").write_text(FREEZE, encoding="utf-8")
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.hooks), str(PROJECT)]), TAG: self.token,
            "CTVLM_KILL_FOLDER": str(folder),
        } | (environment or {})  # fmt: skip
        self.kills: list[Moment] = []
        self.faults: list[str] = []
        self.cpu_s = 0.0  # of the last start that wasn't killed

    def once(self, moment: Moment | None = None, limit_s: float = 900) -> int | None:
        """Start the command; kill it at a moment. Return its exit code if it ended by itself before, else None."""
        with open(self.log, "a", encoding="utf-8") as stream:
            stream.write(f"---- {moment or 'undisturbed'}\n")
            stream.flush()
            begun_at, used = stream.tell(), _cpu_of_ended()
            frozen = self.hooks / f"frozen-{secrets.token_hex(4)}"
            environment = self.environment | {"CTVLM_KILL_CHANGE": str(moment.change if moment else 0),
                                              "CTVLM_KILL_FROZEN": str(frozen)}  # fmt: skip
            process = subprocess.Popen(self.command, cwd=self.log.parent, env=environment, stdout=stream,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            try:
                killed = self._kill_at(process, moment, frozen) if moment else None
                code = process.wait(timeout=limit_s)
            finally:
                if process.poll() is None:
                    self._end_all(process)
        self._check(killed, code, begun_at)
        self.cpu_s = _cpu_of_ended() - used
        return None if killed else code

    def _kill_at(self, process: subprocess.Popen, moment: Moment, frozen: Path) -> Moment | None:
        """Wait for the moment and kill; None if the command ended before."""
        while not frozen.exists() and _cpu_of(process.pid) < moment.cpu_s:
            if process.poll() is not None:
                return None
            time.sleep(0.02)
        stopped = ""
        try:
            frozen.touch(exist_ok=False)  # from here on nobody stops any more
        except FileExistsError:
            while not (stopped := frozen.read_text(encoding="utf-8")):
                time.sleep(0.01)
            with contextlib.suppress(psutil.Error):
                while psutil.Process(int(stopped)).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0.01)
        victims = self._victims(process, moment.kind)
        if not victims and moment.kind in ("a notebook's process", "a kernel"):  # none is there yet, or any more
            moment = replace(moment, kind="the command")
            victims = self._victims(process, moment.kind)
        how = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(moment.kind, signal.SIGKILL)
        for one in victims:
            with contextlib.suppress(psutil.Error):
                one.send_signal(how)
        if stopped:  # now it may go on, or notice that it shall end
            with contextlib.suppress(psutil.Error):
                psutil.Process(int(stopped)).resume()
        if victims:
            self.kills.append(moment if stopped else replace(moment, change=0))
            return moment
        return None

    def _victims(self, process: subprocess.Popen, kind: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            whole = psutil.Process(process.pid)
            below = whole.children(recursive=True)
            if kind == "all at once":
                return [whole, *below]
            if kind in ("a notebook's process", "a kernel"):
                word = "ctvlm_lib.notebook_execution" if kind != "a kernel" else "ipykernel_launcher"
                return [one for one in below if word in one.cmdline()][:1]
            return [whole]
        return []

    def _check(self, killed: Moment | None, code: int, begun_at: int) -> None:
        """Note what must not be: an odd exit code, a traceback, a process that stays."""
        said = self.log.read_bytes()[begun_at:].decode(errors="replace")
        if killed and code not in KINDS[killed.kind] and code != 0:  # 0: it was ending just then
            self.faults.append(f"{killed}: exit code {code}: {said[-600:]}")
        if "Traceback" in said and not (killed and killed.kind == "Ctrl-C" and "KeyboardInterrupt" in said):
            self.faults.append(f"{killed}: a traceback: {said[-1500:]}")
        if killed is None or killed.wait:
            self.wait_until_gone(str(killed))

    def wait_until_gone(self, after: str = "") -> None:
        """Wait until nothing is left of what was started; who stays is noted and killed."""
        end = time.monotonic() + GONE_S
        while (there := self.survivors()) and time.monotonic() < end:
            time.sleep(0.1)
        for one in there:
            with contextlib.suppress(psutil.Error):
                self.faults.append(f"{after}: {one.pid} {' '.join(one.cmdline())[:200]} was still there")
                one.kill()

    def survivors(self) -> list[psutil.Process]:
        """Processes that a command of this killer has started, directly or not."""
        there = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if one.status() != psutil.STATUS_ZOMBIE and one.environ().get(TAG) == self.token:
                    there.append(one)
        return there

    def _end_all(self, process: subprocess.Popen) -> None:
        for one in self._victims(process, "all at once"):
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()


def _cpu_of(pid: int) -> float:
    """Processor seconds of a process, of those below it, and of those that have ended."""
    used = 0.0
    with contextlib.suppress(psutil.Error):
        for one in (whole := psutil.Process(pid), *whole.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used += sum(one.cpu_times()[:4])
    return used


def _cpu_of_ended() -> float:
    times = os.times()
    return times.children_user + times.children_system


def killed_until_it_ends(
    killer: Killer, rng: random.Random, span_s: float, kinds: Sequence[str], at_most: int
) -> int:
    """Kill a command at random moments until it ends before one, or was killed so often; then let it end.

    Returns:
        The exit code of the last start.
    """
    code = None
    before = len(killer.kills)
    while code != 0 and len(killer.kills) - before < at_most:
        code = killer.once(Moment.draw(rng, span_s, kinds))
    if code != 0:
        code = killer.once()
    killer.wait_until_gone("the end")
    return code


# ---- what a run leaves


def left_by_run(folder: Path, times: Sequence[str] = ()) -> dict[str, object]:
    """What must be the same after any number of kills: all file names, the content of tables, statuses and hashes.

    Args:
        folder: of the run's profile.
        times: columns of tables that hold measured times.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    left: dict[str, object] = {"files": sorted(path.relative_to(folder).as_posix() for path in paths)}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".csv":
            left[name] = without_columns(path, times) if times else path.read_bytes()
        elif name[:2].isdigit() or path.suffix in (".png", ".jpg") or name.endswith("_index.json"):
            left[name] = path.read_bytes()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notebooks"]
    for number, entry in record.items():
        state = "done" if entry["status"] in ("ok", "up to date") else entry["status"]
        left[f"run.json {number}"] = (state, entry.get("tables"), entry["title"])
    return left


def without_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """A CSV's rows without some columns."""
    with open(path, encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    kept = [k for k, name in enumerate(head) if name not in names]
    return [[row[k] for k in kept] for row in (head, *rows)]


def differences(wanted: dict[str, object], found: dict[str, object]) -> list[str]:
    """Names of what isn't the same, and for the list of files which ones."""
    told = []
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            odd = sorted(set(wanted[name]) ^ set(found[name])) if name == "files" else ""
            told.append(f"{name} {odd}".strip())
    return told


# ---- a small workbook that does what the real one does: tables, figures, long steps that go on, folders, processes

SETTING = """from pathlib import Path
import json, os, subprocess, sys, time
import pandas as pd
from ctvlm_lib.errors import atomic_path
from ctvlm_lib.run import start, write_json
run = start(NAME, profile, seed, out_dir)"""
MINIATURE = {  # name: (needs, code cells)
    "10_tables": (
        (),
        ("for k in range(12):\n    frame = pd.DataFrame({'value': [k * j + seed for j in range(400)]})\n"
         "    _ = run.table(frame, f'part{k}')\n    time.sleep(0.05)",
         "_ = subprocess.run([sys.executable, '-c', 'import time; time.sleep(0.5)'])"),
    ),
    "20_long_step": (
        ("10",),
        ("total = 0\nfor k in range(12):\n    kept = run.path(f'20/steps/{k // 4}/{k}.json')\n"
         "    if not kept.exists():\n"
         "        value = int(pd.read_csv(run.folder / f'tables/10_part{k}.csv')['value'].sum())\n"
         "        time.sleep(0.08)\n        write_json(kept, {'value': value})\n"
         "    total += json.loads(kept.read_text())['value']",
         "_ = run.table(pd.DataFrame({'total': [total]}), 'total')"),
    ),
    "30_pictures": (
        (),
        ("import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n_ = axes.plot([k * k for k in range(50)])\n"
         "run.figure(figure, 'curve', 'A curve')",
         "_ = run.table(pd.DataFrame({'a': range(30_000), 'b': [k / 7 for k in range(30_000)]}).round(6), 'large')",
         "with atomic_path(run.path('30/made')) as partial:\n    partial.mkdir()\n    for k in range(20):\n"
         "        _ = (partial / f'{k}.txt').write_text(str(k * k))\n        time.sleep(0.02)"),
    ),
}  # fmt: skip


def write_miniature(folder: Path, only: Callable[[str], bool] = lambda name: True) -> Path:
    """Write the small workbook and a text beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = 'profile: str = "quick"  # quick | full | paper\nseed: int = 0\nout_dir: str = ""  # the run\'s folder'
    for name, (needs, cells) in MINIATURE.items():
        if not only(name):
            continue
        notebook = new_notebook()
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook.metadata["ctvlm"] = {"needs": list(needs), "peak_gb": 0.2}
        notebook.cells = [
            new_markdown_cell(f"# {name[:2]} · About {name}"),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, (SETTING.replace("NAME", repr(name)), *cells)),
        ]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    (folder / "words.md").write_text("# Words\n", encoding="utf-8")
    return folder
