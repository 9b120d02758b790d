"""What a second process brings, and what a volume costs in memory: nothing once it is written."""

import tracemalloc
from functools import partial

import pytest

from ctvlm_lib import many
from ctvlm_lib.experiments.many_volumes import digest, side_by_side, write_cases
from ctvlm_lib.prompt.batch import find_cases, render_all
from ctvlm_lib.prompt.render import Style

SHAPE = (64, 128, 128)
FEW, MANY = 8, 32


def blank(case: str) -> dict:
    return {"case": case, "status": "failed", "error": ""}


def nothing(case: str) -> dict:
    return {"status": "done"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return find_cases(write_cases(tmp_path_factory.mktemp("phantoms"), MANY, SHAPE), None, Style())


def test_memory_does_not_grow_with_the_number_of_volumes(benchmark, cases, tmp_path):
    """The peak of one worker after 32 volumes beside that after 8: were they kept it would grow by 4 MB each."""

    def peak(count: int) -> int:
        rows = render_all(cases[:count], tmp_path / f"{count}", workers=1, say=lambda line: None)
        return max(row["peak_mb"] for row in rows)

    few = peak(FEW)
    most = benchmark.pedantic(peak, args=(MANY,), rounds=1)
    volume = 4 * SHAPE[0] * SHAPE[1] * SHAPE[2] / 1e6
    benchmark.extra_info |= {"peak_mb_8": few, "peak_mb_32": most, "peak_ratio": round(most / few, 3)}
    assert most - few < (MANY - FEW) * volume / 4


def test_two_processes_beside_one(benchmark):
    """The same 24 pictures; with two free cores the ratio comes near 2."""
    found = benchmark.pedantic(partial(side_by_side, (1, 2), 24, SHAPE), rounds=1).set_index("processes")
    ratio = found.loc[1, "seconds"] / found.loc[2, "seconds"]
    benchmark.extra_info |= {"seconds_1": found.loc[1, "seconds"], "seconds_2": found.loc[2, "seconds"]}
    benchmark.extra_info |= {"two_beside_one": round(ratio, 2)}
    assert found["pictures"].nunique() == 1


def test_what_a_case_costs_besides_its_work(benchmark, tmp_path):
    """Cases that do nothing: what each adds to time (of 300) and memory (of 1,500) in scheduler, worker and here."""
    from dask.distributed import LocalCluster

    held = []
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        run = partial(many.run_all, one=nothing, blank=blank, table=tmp_path / "t.csv",
                      scheduler=cluster.scheduler_address)  # fmt: skip
        benchmark.pedantic(run, args=([f"{k}" for k in range(300)],), kwargs={"say": len}, rounds=1)
        tracemalloc.start()
        run([f"{k}" for k in range(1500)], say=lambda line: held.append(tracemalloc.get_traced_memory()[0]))
        tracemalloc.stop()
    bytes_each = (held[-1] - held[999]) / 500  # the first thousand fill logs of bounded length
    benchmark.extra_info |= {"ms_each": round(1000 * benchmark.stats.stats.min / 300, 1)}
    benchmark.extra_info |= {"kb_each": round(bytes_each / 1000, 1)}
    assert bytes_each < 4_000


def test_a_second_run_finds_all_kept(benchmark, cases, tmp_path):
    """With one process; nothing is read but the notes."""
    run = partial(render_all, cases, tmp_path, workers=1, say=lambda line: None)
    run()
    before = digest(tmp_path)
    rows = benchmark.pedantic(run, rounds=1)
    assert {row["status"] for row in rows} == {"kept"} and digest(tmp_path) == before
