"""A run that is killed: at every single file operation of the runner, and with its kernels at random moments.

``tests/fuzz/kill_run.py`` does the second one at length.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from helpers_kill import KINDS, Killer, Moment, differences, left_by_run, write_miniature

from ctvlm_lib import (
    checkpoints,
    errors,
    notebook_execution,
    notebook_html,
    notebook_outputs,
    notebook_process,
    workbook,
)
from ctvlm_lib.alignment import arm_tables
from ctvlm_lib.errors import atomic_path
from ctvlm_lib.notebook_list import find_notebooks
from ctvlm_lib.notebook_schedule import side_by_side

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")  # audit events of what changes files
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied, which this system can't do")


def killed_before(number: int, folder, work) -> bool:
    """Do some work in a copy of this process that is killed before a change of files; False if it came to its end."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [number]

    def hook(event: str, arguments: tuple) -> None:
        elsewhere = os.path.isabs(path := str(arguments[0])) and not path.startswith(str(folder))
        if event not in CHANGES or elsewhere:  # a name without a folder is one that rmtree removes
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(hook)
        work()
    finally:
        os._exit(0)


@needs_fork
@pytest.mark.slow
def test_a_run_killed_before_any_change_of_a_file_continues_to_the_same_tables(tmp_path, monkeypatch, capfd):
    def write(path, text: str) -> None:
        with atomic_path(path) as partial:
            partial.write_text(text)

    def execute(job, log, scratch, variables, on_tick):
        """Stands for a kernel: writes what the runner expects, through the runner's own functions."""
        folder, number = job["executed"].parents[1], job["source"].name[:2]
        ran.append(number)
        upstream = "".join(path.read_text() for path in sorted(folder.glob("tables/10_*.csv"))) if number > "10" else ""
        for path, text in (
            (folder / "tables" / f"{number}_a.csv", f"{number}{upstream}"),
            (folder / number / "deep" / "kept.txt", number),
            (folder / "tables" / f"{number}_b.csv", number),
            (job["executed"], "executed"),
            (job["html"], "html"),
        ):
            write(path, text)
        return {"failure": None, "seconds": 1.0, "peak_bytes": 10**8}

    monkeypatch.setattr(workbook, "run_notebook", execute)
    monkeypatch.setattr(notebook_html, "write_text", lambda text, page: write(page, "a text"))  # fast
    monkeypatch.setattr(workbook, "environment_record", lambda: {"packages": {}} | dict.fromkeys(
        ("ctvlm", "commit", "python", "platform", "cpu_count", "device", "device_why", "manifest_sha256", "written"), ""
    ))  # fmt: skip
    two = write_miniature(tmp_path / "notebooks", lambda name: name[:2] in ("10", "20"))
    ran: list[str] = []

    def run(out) -> int:
        return workbook.run(out_dir=out, notebooks_dir=two)

    assert run(tmp_path / "plain") == 0 and ran == ["10", "20"]
    wanted, kills = left_by_run(tmp_path / "plain" / "quick"), 0
    while killed_before(kills, out := tmp_path / f"killed{kills}", lambda: run(out)):  # noqa: B023
        ran.clear()
        assert run(out) == 0
        assert differences(wanted, left_by_run(out / "quick")) == [], f"killed before change {kills}"
        kills += 1
    assert kills > 40 and ran == []  # the last kill came after everything was done
    assert run(out) == 0 and ran == [] and differences(wanted, left_by_run(out / "quick")) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_run_killed_with_its_kernels_three_times_ends_with_the_same_tables(tmp_path):
    notebooks = write_miniature(tmp_path / "notebooks", lambda name: name[:2] == "10")

    def killer(name: str) -> Killer:
        command = ["-m", "ctvlm_lib", "run", "--jobs", "2", "--out", str(tmp_path / name)]
        return Killer([*command, "--notebooks", str(notebooks)], tmp_path / name / "quick", tmp_path / f"{name}.log")

    plain, killed = killer("plain"), killer("killed")
    assert plain.once() == 0
    moments = Moment("the command", 99, 3, False), Moment("a kernel", 99, 5, True), Moment("all at once", 1, 0, False)
    assert [killed.once(moment) for moment in moments] == [None] * 3
    assert killed.once() == 0
    assert plain.faults + killed.faults == [] and len(killed.kills) == 3
    assert differences(left_by_run(plain.folder), left_by_run(killed.folder)) == []


def test_a_half_written_file_is_swept_wherever_notebooks_write_and_nowhere_else(tmp_path):
    ours = [".a.partial.run.json", "tables/.a.partial.10_x.csv", "10/b/c/.a.partial.d.npz", "10/model/.partial.x/e.bin"]
    others = ["results/.a.partial.vlm-B/test.npz", "checkpoints/.a.partial.vlm-B/model.safetensors", "10/b/kept"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    notebook_outputs.sweep(tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(others)


@needs_fork
def test_a_folder_that_replaces_another_is_never_a_part_of_one(tmp_path):
    def write(text: str) -> None:
        with atomic_path(tmp_path / "made") as partial:
            partial.mkdir()
            for k in range(5):
                (partial / f"{k}.txt").write_text(text)

    for kills in range(100):
        write("old")
        killed = killed_before(kills, tmp_path, lambda: write("new"))
        there = [path.read_text() for path in sorted((tmp_path / "made").glob("*.txt"))]
        assert there in (["old"] * 5, ["new"] * 5, []), f"killed before change {kills}: {there}"
        if not killed:
            break
    assert kills > 10 and there == ["new"] * 5


def test_what_could_not_be_replaced_is_there_as_before(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").touch()
    replace = os.replace

    def refuse(source, target):
        if target == tmp_path / "made" and len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "made").exists():
            monkeypatch.setattr(errors.os, "replace", replace)
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(errors.os, "replace", refuse)
    with pytest.raises(errors.BadInput, match="Permission denied"), atomic_path(tmp_path / "made") as partial:
        partial.mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["made", "made/old"]


SLEEPS = "import time; time.sleep(60)"


def test_what_a_killed_notebooks_process_had_started_ends_with_it(tmp_path):
    """Its kernel is in a session of its own, and whoever starts late notices nothing of the parent's death."""
    start = f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=True).wait()"
    code = f"import subprocess, sys; {start}"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while len(family := notebook_process._family(child.pid)) < 2:
        time.sleep(0.02)
    child.kill()
    child.wait()
    notebook_process._end(child, set(family))
    psutil.wait_procs(family, timeout=5)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)


def test_a_child_that_has_just_ended_does_not_save_the_others_when_the_runner_is_gone(monkeypatch):
    class Gone:
        def kill(self):
            raise psutil.NoSuchProcess(1)

    class Alive:
        def kill(self):
            killed.append(self)

    killed, ended = [], []
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [Gone(), Alive()])
    monkeypatch.setattr(notebook_execution.os, "read", lambda *_: b"")
    monkeypatch.setattr(notebook_execution.os, "_exit", ended.append)
    notebook_execution._end_with_parent()
    assert len(killed) == 1 and ended == [1]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="a signal is sent to one thread")
def test_ctrl_c_that_another_thread_receives_stops_the_notebooks(tmp_path):
    chosen = find_notebooks(write_miniature(tmp_path))[:1]
    stopped = []

    def work(notebook, stop):
        time.sleep(0.3)  # until whoever waits for this thread does so
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        stopped.append(stop.wait(10))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is deaf to Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            list(side_by_side(chosen, 2, work))
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped == [True]


def test_an_error_between_two_notebooks_stops_those_at_work_before_the_folder_is_let_go(tmp_path, monkeypatch):
    happened = []

    def execute(job, log, scratch, variables, on_tick):
        if job["source"].name[:2] == "10":
            return {"failure": None, "seconds": 1.0, "peak_bytes": 10**8}
        end = time.monotonic() + 10
        try:
            while time.monotonic() < end:
                on_tick(0.0, 0)
                time.sleep(0.02)
        finally:
            happened.append("stopped")

    def refuse(self, *_):
        raise errors.BadInput("the disk is full")

    monkeypatch.setattr(workbook, "run_notebook", execute)
    monkeypatch.setattr(workbook.SideBySide, "end", refuse)
    monkeypatch.setattr(workbook.outputs, "sweep", lambda folder: happened.append("swept"))
    notebooks = write_miniature(tmp_path / "notebooks", lambda name: name[:2] in ("10", "30"))
    with pytest.raises(errors.BadInput, match="the disk is full"):
        workbook.run(out_dir=tmp_path / "out", notebooks_dir=notebooks, jobs=2)
    assert happened == ["swept", "stopped", "swept"]


def test_what_a_killed_arm_left_half_written_is_no_arm_and_no_checkpoint(tmp_path):
    for arm in ("vit3d-clip-8", ".2f028eb2.partial.vit3d-clip-8", ".1a028eb2.partial.vit3d-clip-8-seed1"):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "record.json").touch()
        (tmp_path / arm / "test.csv").write_text("direction,gallery,k,recall\na,2,1,0.5\n", encoding="utf-8")
    assert checkpoints.names(tmp_path) == ["vit3d-clip-8"]
    assert len(arm_tables.table("vit3d-clip-8", tmp_path, "test")) == 1
    with pytest.raises(errors.BadInput, match="there are results of vit3d-clip-8$"):
        arm_tables.table("other", tmp_path, "test")


def test_kinds_of_kills_are_drawn_with_their_moments():
    drawn = [Moment.draw(random.Random(seed), 10.0, list(KINDS)) for seed in range(60)]
    assert {one.kind for one in drawn} == set(KINDS) and {one.change > 0 for one in drawn} == {True, False}
    assert all(0 <= one.cpu_s <= 10 for one in drawn)
