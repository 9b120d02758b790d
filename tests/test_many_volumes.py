"""Many volumes in real processes: one or two write the same bytes; when one dies nothing is lost and nothing twice."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import dask
import psutil
import pytest

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments.many_volumes import digest, side_by_side, write_cases
from ctvlm_lib.made_once import make_once
from ctvlm_lib.prompt.batch import find_cases, render_all
from ctvlm_lib.prompt.render import Style
from ctvlm_lib.run import PROJECT

CASES, SHAPE = 8, (24, 64, 64)
LISTED = 25_000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two phantoms with four pictures each."""
    return write_cases(tmp_path_factory.mktemp("phantoms"), CASES, SHAPE)


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and one worker in this process, for what needs no process of its own."""
    from dask.distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": ":0", "silence_logs": 40}
    with LocalCluster(processes=False, **options) as cluster:
        yield cluster


def written(out: Path, pattern: str = "*.nii.gz") -> dict[str, int]:
    """Finished outputs and when they were written."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob(pattern)}


def wait_for(what, seconds: float = 120):
    """What a function returns as soon as it is true; a busy machine may take long."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


# --- a bounded number under way -------------------------------------------------------------------------------------


def blank(case: str) -> dict:
    return {"case": case, "status": "failed", "error": ""}


def done(case: str) -> dict:
    return {"status": "done"}


def test_of_25000_cases_no_more_are_under_way_than_there_are_threads(cluster, tmp_path):
    known = []

    def stop(line):
        known.append(len(cluster.scheduler.tasks))
        if len(known) == 200:
            raise KeyboardInterrupt

    cases = [f"{k}" for k in range(LISTED)]
    with pytest.raises(KeyboardInterrupt):
        many.run_all(cases, done, blank, tmp_path / "t.csv", scheduler=cluster.scheduler_address, say=stop)
    assert max(known) <= 2 + 2  # one being told and one just finished
    assert not list(tmp_path.iterdir())


def test_the_scheduler_forgets_a_case_that_is_done(cluster, tmp_path):
    rows = many.run_all(
        [f"{k}" for k in range(150)], done, blank, tmp_path / "t.csv", scheduler=cluster.scheduler_address,
        say=lambda line: None,
    )  # fmt: skip
    assert [row["case"] for row in rows] == [f"{k}" for k in range(150)]
    assert {row["status"] for row in rows} == {"done"} and all(row["peak_mb"] > 10 for row in rows)
    wait_for(lambda: not cluster.scheduler.tasks)


def test_a_case_travels_and_comes_back_in_a_few_kilobytes(table, cluster, tmp_path):
    cases = find_cases(table, None, Style())
    rows = render_all(cases, tmp_path, scheduler=cluster.scheduler_address, say=lambda line: None)
    volume = SHAPE[0] * SHAPE[1] * SHAPE[2] * 4
    for sent in (*cases, *rows):
        assert len(pickle.dumps(sent)) < 4_000 < volume / 10


@pytest.mark.slow  # the client waits ten seconds for it to come back
def test_a_scheduler_that_ends_in_the_middle_is_said(tmp_path):
    from dask.distributed import LocalCluster

    with LocalCluster(processes=False, n_workers=1, dashboard_address=":0", silence_logs=50) as cluster:
        with pytest.raises(BadInput, match="scheduler is gone.*continues from there"):
            many.run_all(
                [f"{k}" for k in range(50)], done, blank, tmp_path / "t.csv", scheduler=cluster.scheduler_address,
                say=lambda line: cluster.close(),
            )  # fmt: skip
    assert not list(tmp_path.iterdir())


# --- real processes -------------------------------------------------------------------------------------------------


def held(case: str, folder: Path) -> dict:
    """Write a case's file once; the case "c" holds, half-written, as long as the file "hold" is there."""
    target = folder / f"{case}.txt"

    def make() -> dict:
        with atomic_path(target) as partial_file:
            partial_file.write_text(case)
            if case == "c" and (folder / "hold").exists():
                (folder / "started").write_text(f"{os.getpid()}")
                time.sleep(150)
        with open(folder / "made.log", "a") as log:  # one line whenever an output is made
            log.write(f"{case}\n")
        return {}

    status, _ = make_once(target, folder / "records" / f"{case}.json", case, make)
    return {"status": status}


def deadly(case: str) -> dict:
    if case == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"status": "done"}


def quiet(line: str) -> None:
    """Takes progress."""


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_case_loses_nothing_and_does_nothing_twice(tmp_path):
    (tmp_path / "hold").touch()

    def kill():
        pid = int(wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text()))
        assert list(tmp_path.glob(".*.partial.c.txt"))  # it is half-written
        (tmp_path / "hold").unlink()
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killed, killer = [], threading.Thread(target=kill)
    killer.start()
    one = partial(held, folder=tmp_path)
    rows = many.run_all("abcdef", one, blank, tmp_path / "t.csv", workers=2, say=quiet)
    killer.join()
    assert killed and {row["status"] for row in rows} <= {"done", "kept"}  # kept: its row was lost with the worker
    assert sorted((tmp_path / "made.log").read_text().split()) == list("abcdef")
    assert sorted(written(tmp_path, "*.txt")) == [f"{case}.txt" for case in "abcdef"]
    assert not list(tmp_path.rglob("*.partial.*"))
    before = written(tmp_path, "*.txt")
    assert [held(case, tmp_path)["status"] for case in "abcdef"] == ["kept"] * 6
    assert written(tmp_path, "*.txt") == before


@pytest.mark.slow
def test_a_case_that_kills_its_worker_each_time_is_listed_and_the_rest_is_finished(tmp_path):
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):  # each costs the start of a process
        rows = many.run_all("abcde", deadly, blank, tmp_path / "t.csv", workers=2, say=quiet)
    assert [row["case"] for row in rows if row["status"] == "failed"] == ["c"]
    assert rows[2]["error"].startswith("its worker was lost 2 times") and rows[2]["seconds"] == ""


@pytest.fixture(scope="module")
def with_one(table, tmp_path_factory):
    """All pictures, rendered by one process, and their hash."""
    out = tmp_path_factory.mktemp("one")
    rows = render_all(find_cases(table, None, Style()), out, workers=1, say=quiet)
    assert {row["status"] for row in rows} == {"done"}
    return digest(out)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(table, with_one, tmp_path, monkeypatch):
    with many.local_workers(2) as cluster:
        monkeypatch.chdir(tmp_path)  # where the workers aren't
        cases = find_cases(Path(os.path.relpath(table)), None, Style())
        rows = render_all(cases, Path("out"), scheduler=cluster.scheduler_address, say=quiet)
    assert {row["status"] for row in rows} == {"done"} and len(written(tmp_path / "out")) == CASES
    assert digest(tmp_path / "out") == with_one


@pytest.mark.slow
def test_a_killed_command_is_continued_and_writes_nothing_twice(table, with_one, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ctvlm_lib", "render", table, "--workers", "2", "-o", out]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: written(out) or driver.poll() is not None)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    assert workers and not psutil.wait_procs(workers, timeout=60)[1]  # they end with it
    before = written(out)
    notes = {file.name for file in (out / "records").glob("*.json") if "begun" not in file.read_text()}
    assert before and len(notes) < CASES, "it was killed too late"
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" kept ") == len(notes) and f"{CASES} of {CASES} cases rendered" in again.stdout
    after, finished = written(out), {name.replace(".rgb.json", ".nii.gz") for name in notes}
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    assert digest(out) == with_one and not list(out.rglob("*.partial.*"))


@pytest.mark.slow
def test_side_by_side_tells_that_the_pictures_are_the_same():
    found = side_by_side((1, 2), cases=4, shape=(16, 48, 48))
    assert list(found["processes"]) == [1, 2] and found["pictures"].nunique() == 1
    assert (found[["seconds", "cases/s", "peak MB"]] > 0).all(axis=None)
