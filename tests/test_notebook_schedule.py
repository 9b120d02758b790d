"""Several notebooks at a time: as many as asked for, within memory, none before those that it needs."""

import threading
import time
from pathlib import Path

import pytest

from ctvlm_lib.notebook_list import Notebook
from ctvlm_lib.notebook_progress import SideBySide
from ctvlm_lib.notebook_schedule import MEMORY_GB, side_by_side


def notebook(number: str, needs=(), peak_gb=1.0) -> Notebook:
    about = {"needs": list(needs), "peak_gb": peak_gb}
    return Notebook(Path(f"{number}_one.ipynb"), {"metadata": {"ctvlm": about}, "cells": []})


class Watched:
    """Work that notes who is at work at the same time."""

    def __init__(self, seconds: float = 0.05):
        self.seconds, self.now, self.seen, self.order, self.lock = seconds, set(), [], [], threading.Lock()

    def __call__(self, one: Notebook, stop: threading.Event) -> str:
        with self.lock:
            self.now.add(one.number)
            self.order.append(one.number)
            self.seen.append(frozenset(self.now))
        stop.wait(self.seconds)
        with self.lock:
            self.now.discard(one.number)
        return one.number


def test_all_are_done_once_and_at_most_so_many_at_a_time():
    work, notebooks = Watched(), [notebook(f"{k}0") for k in range(1, 7)]
    done = [result for _, result in side_by_side(notebooks, 2, work)]
    assert sorted(done) == [one.number for one in notebooks]
    assert max(map(len, work.seen)) == 2


def test_one_at_a_time_keeps_the_order():
    work, notebooks = Watched(0), [notebook(f"{k}0") for k in range(1, 5)]
    assert [one.number for one, _ in side_by_side(notebooks, 1, work)] == work.order == ["10", "20", "30", "40"]


def test_a_notebook_waits_for_those_that_it_needs():
    work = Watched()
    list(side_by_side([notebook("10"), notebook("20", ["10"]), notebook("30"), notebook("40", ["20"])], 3, work))
    place = work.order.index
    assert place("10") < place("20") < place("40")
    assert not any({"10", "20"} <= at_once or {"20", "40"} <= at_once for at_once in work.seen)


def test_two_large_ones_do_not_run_together_and_one_too_large_runs_alone():
    work = Watched()
    large = [notebook("10", peak_gb=0.6 * MEMORY_GB), notebook("20", peak_gb=0.6 * MEMORY_GB)]
    list(side_by_side([*large, notebook("30", peak_gb=2 * MEMORY_GB), notebook("40", peak_gb=0.1)], 2, work))
    assert sorted(work.order) == ["10", "20", "30", "40"]
    assert not any({"10", "20"} <= at_once or ("30" in at_once and len(at_once) > 1) for at_once in work.seen)


def test_an_error_ends_the_others_early():
    ended, begun = [], time.monotonic()

    def work(one: Notebook, stop: threading.Event) -> None:
        if one.number == "10":
            time.sleep(0.05)
            raise RuntimeError("broken")
        ended.append(stop.wait(30))

    with pytest.raises(RuntimeError, match="broken"):
        list(side_by_side([notebook("10"), notebook("20")], 2, work))
    assert ended == [True] and time.monotonic() - begun < 10


def test_progress_of_several_has_a_line_for_each_that_ended(capsys):
    progress = SideBySide({"10_first": 60.0, "20_second": 60.0, "30_third": 30.0}, set(), 2)
    assert progress.plan() == "3 notebooks, about 1 min 15 s"
    progress.begin("10_first")
    progress.begin("20_second")
    progress.tick("20_second", 5, 1)
    progress.end("20_second", "50 s, 1.0 GB", ["a note"])
    progress.end("10_first", "60 s, 1.0 GB", [])
    progress.end("30_third", "30 s, 1.0 GB", [])
    first, note, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/3] 20_second … 50 s, 1.0 GB  (about") and note.strip() == "a note"
    assert second.startswith("[2/3] 10_first … 60 s, 1.0 GB  (about 15 s left)")
    assert third == "[3/3] 30_third … 30 s, 1.0 GB"
