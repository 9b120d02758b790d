"""Costs are measured, fitted and carried on as they say; what is counted is what counting by hand gives."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
from torch.nn import functional

from ctvlm_lib.cost import curve_figure, curves, exponents, recorded, stages
from ctvlm_lib.cost.measure import measure, operations, peak_mb, with_threads
from ctvlm_lib.errors import BadInput
from ctvlm_lib.figure_file import LIMIT_BYTES, encode
from ctvlm_lib.vlm import ladder

SIGLIP, WIDER = "SigLIP, all pairs at once", "decoder of any width, forward and backward"
SIZES = np.array([10.0, 1e3, 2e3, 4e3, 8e3, 16e3])


def table(stage: str, cost, x=SIZES, value: str = "CPU seconds") -> pd.DataFrame:
    """Measurements of a stage as :func:`curves.study` gives them."""
    about = stages.stage_named(stage)
    return pd.DataFrame(
        {"study": about.study, "stage": stage, "x name": about.x_name, "x": np.asarray(x).astype(int), value: cost}
    )


@pytest.fixture(scope="module")
def of_tokens() -> pd.DataFrame:
    """Operations of a decoder against the tokens of a row."""
    return curves.counted("decoder against tokens")


# --- measuring


def test_memory_of_an_array_is_its_bytes_the_second_time_as_well():
    """A freed array must not be taken from what the process still holds."""
    needed = [peak_mb(lambda: np.ones(3_000_000)) for _ in range(3)]
    assert needed == pytest.approx([24] * 3, abs=2)  # pages, and what Python makes meanwhile


def test_memory_that_is_held_only_meanwhile_is_seen():
    def passing() -> float:
        held = np.ones(5_000_000)
        time.sleep(0.05)  # many looks, on a busy machine as well
        return float(held[0])

    assert 40 <= peak_mb(passing) < 43


def test_what_waits_takes_the_walls_seconds_and_not_the_processors():
    waited = measure(lambda: time.sleep(0.03), repeats=2, memory=False)
    assert waited.seconds >= 0.03
    assert waited.cpu_seconds < 0.02
    assert waited.runs == 2
    assert np.isnan(waited.peak_mb)


def test_no_run_starts_when_the_budget_is_spent():
    assert measure(lambda: time.sleep(0.02), repeats=9, budget_s=0.01).runs == 1


def test_threads_are_given_back_after_an_error_as_well():
    before = torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with pytest.raises(KeyError), with_threads(3):
        assert (torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()) == (3, 3)
        raise KeyError
    assert (torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()) == before


def test_nothing_is_measured_with_no_run_or_no_thread():
    with pytest.raises(BadInput, match="0 runs"):
        measure(lambda: None, repeats=0)
    with pytest.raises(BadInput, match="0 threads"), with_threads(0):
        pass


# --- counting


def test_attention_on_a_cpu_is_counted_as_its_two_products():
    query = torch.zeros(2, 3, 11, 8)  # (B, heads, tokens, d)
    counted = operations(lambda: functional.scaled_dot_product_attention(query, query, query))
    assert counted == 2 * 2 * 2 * 3 * 11 * 11 * 8


def test_operations_of_the_decoder_are_those_counted_by_hand(of_tokens):
    """Forward: each weight once a token, and queries with keys and weights with values for all pairs of tokens."""
    frame, small = of_tokens, ladder.SIZES["small"]
    n = frame[frame["stage"] == "decoder, forward"]["x"].to_numpy()
    grouped = 32 * ladder.KEY_VALUE_HEADS
    layer = small.width * (2 * small.width + 2 * grouped + 3 * small.inner)
    weights = small.layers * layer + small.width * ladder.VOCABULARY
    by_hand = 2 * weights * n + 2 * 2 * small.layers * small.width * n**2
    assert frame[frame["stage"] == "decoder, forward"]["operations"].tolist() == by_hand.tolist()
    both = frame[frame["stage"] == "decoder, forward and backward"]["operations"].to_numpy()
    assert (2.9 * by_hand < both).all() and (both <= 3 * by_hand).all()  # words have no gradient to pass on


@pytest.mark.parametrize("name", ["DCFormer, forward and backward", "ViT3D, forward and backward"])
def test_shapes_alone_count_what_real_tensors_do(name):
    stage = stages.stage_named(name)
    on_shapes, real = (operations(stage.prepare(stage.sizes[0], device)) for device in ("meta", "cpu"))
    assert on_shapes == real > 0


def test_counted_exponents_rise_towards_that_of_the_pairs(of_tokens):
    """Of a·n + b·n² the exponent at n is (a + 2 b n) / (a + b n); between two sizes it lies between theirs."""
    found = exponents.counted_exponent(of_tokens).set_index("stage").loc["decoder, forward"]
    part = of_tokens[of_tokens["stage"] == "decoder, forward"]
    n, each = part["x"].to_numpy(float), (part["operations"] / part["x"]).to_numpy()
    b, a = np.polyfit(n, each, 1)
    ends = (a + 2 * b * n[-2:]) / (a + b * n[-2:])
    assert ends[0] < found["at_largest"] < ends[1]
    assert 1 < found["exponent"] < found["at_largest"] < 2


# --- the stages


@pytest.mark.parametrize("stage", stages.STAGES, ids=lambda stage: stage.name)
def test_a_stage_begins_tiny_rises_and_says_why(stage):
    x = [stage.x(size) for size in stage.sizes]
    assert x == sorted(set(x))
    assert len(x) > exponents.FEWEST and x[0] * 4 <= x[1]
    for low, high in (stage.seconds, stage.memory):
        assert 0 <= low <= high <= 2
    assert stage.why


def test_each_study_gives_a_row_a_stage_and_size():
    parts = [made(sizes=1, repeats=1) for made in (curves.volumes, curves.encoders, curves.decoder_tokens,
                                                   curves.decoder_width, curves.cohort)]  # fmt: skip
    frame = pd.concat(parts)
    assert frame["stage"].tolist() == [stage.name for stage in stages.STAGES] == curves.reasons()["stage"].tolist()
    assert frame["x"].tolist() == [stage.x(stage.sizes[0]) for stage in stages.STAGES]
    assert (frame[["seconds", "MB", "CPU seconds"]] >= 0).all(axis=None) and (frame["threads"] == 1).all()
    assert (frame["seconds"] > 0).all()


def test_siglip_in_chunks_does_the_same_work_as_all_pairs_at_once():
    whole, parts = (stages.stage_named(name).prepare(600, "cpu")() for name in (SIGLIP, "SigLIP, 256 texts at a time"))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_an_unknown_study_or_stage_is_told_the_known_ones():
    with pytest.raises(BadInput, match="cohort"):
        curves.study("cohorts")
    with pytest.raises(BadInput, match="overlay"):
        stages.stage_named("overlays")


# --- exponents


def test_a_power_is_found_without_an_interval_and_agrees_with_polyfit_where_it_isnt_one():
    assert exponents.power(SIZES, 3 * SIZES**1.5) == pytest.approx((1.5,) * 3)
    bent = 1 + 2e-3 * SIZES**1.2
    slope, low, high = exponents.power(SIZES, bent)
    assert slope == pytest.approx(np.polyfit(np.log(SIZES), np.log(bent), 1)[0])
    assert low < slope < high


def test_the_interval_holds_the_truth_in_nineteen_of_twenty_fits():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        _, low, high = exponents.power(SIZES, SIZES**1.3 * np.exp(rng.normal(0, 0.2, len(SIZES))))
        held.append(low <= 1.3 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)  # three standard errors of a share of 1,000 are 0.02


def test_sizes_that_are_mostly_overhead_are_not_fitted():
    """A cost of 1 + x²/10⁶: at 1,000 half is fixed, and from 2,000 on at most a fifth."""
    cost = 1 + SIZES**2 / 1e6
    row = exponents.fit(table(SIGLIP, cost)).iloc[0]
    assert (row["sizes"], row["overhead"], row["expected"]) == (4, "small", "2")
    assert 1.85 < row["exponent"] < 2 and row["agrees"]
    assert exponents.power(SIZES, cost)[0] < 1.2  # all sizes together look far flatter than they are
    assert (row["x"], row["cost"]) == (16_000, cost[-1])


def test_where_all_is_overhead_the_three_largest_are_fitted_and_it_is_said():
    row = exponents.fit(table(SIGLIP, 1 + SIZES / 1e5)).iloc[0]
    assert (row["sizes"], row["overhead"], bool(row["agrees"])) == (3, "large", False)


def test_memory_has_its_own_expectation():
    row = exponents.fit(table("SigLIP, 256 texts at a time", SIZES, value="MB"), "MB").iloc[0]
    assert row["expected"] == "1" and row["agrees"] and row["exponent"] == pytest.approx(1)


def test_too_few_sizes_and_unknown_values_are_refused():
    with pytest.raises(BadInput, match="3 sizes"):
        exponents.fit(table(SIGLIP, SIZES).head(3))
    with pytest.raises(BadInput, match="CPU seconds"):
        exponents.fit(table(SIGLIP, SIZES), "hours")


# --- carried on


def test_a_whole_run_follows_the_power_and_its_interval():
    x = [stages.stage_named("overlay").x(size) for size in stages.SCANS]
    fitted = exponents.fit(table("overlay", 1e-9 * np.array(x), x)).assign(low=0.9, high=1.1)
    there = np.prod(exponents.TARGETS[2].size)
    row = exponents.whole_run(fitted, volumes=720).iloc[0]
    assert (row["stage"], row["x measured"], row["x there"]) == ("overlay", x[-1], there)
    assert row["seconds"] == pytest.approx(1e-9 * there)
    assert row["hours"] == pytest.approx(720 * row["seconds"] / 3600)
    ratio = there / x[-1]
    assert (row["low"] / row["hours"], row["high"] / row["hours"]) == pytest.approx((ratio**-0.1, ratio**0.1))
    assert np.isnan(row["hours by operations"])


def test_operations_at_the_measured_rate_agree_where_time_follows_operations():
    """Seconds made up from the counts themselves: the second way gives them back, the first nearly."""
    stage = stages.stage_named(WIDER)
    x = [stage.x(size) for size in stage.sizes]
    counts = table(WIDER, [operations(stage.prepare(size, "meta")) for size in x], x, "operations")
    frame = counts.assign(**{"CPU seconds": counts["operations"] / 1e10})
    row = exponents.whole_run(exponents.fit(frame), volumes=3600).iloc[0]
    target = exponents.TARGETS[-1]
    exact = operations(stage.prepare(target.size, "meta")) / 1e10 * target.times
    assert row["hours by operations"] == pytest.approx(exact)
    assert row["hours"] == pytest.approx(exact, rel=0.05)  # from 768 to 896 an exponent is hardly off


def test_targets_lie_beyond_what_is_measured():
    for target in exponents.TARGETS:
        stage = stages.stage_named(target.stage)
        assert stage.x(target.size) > stage.x(stage.sizes[-1])
    with pytest.raises(BadInput, match="0 volumes"):
        exponents.whole_run(exponents.fit(table("overlay", SIZES)), volumes=0)


# --- the figure


def test_the_figure_has_a_panel_a_study_and_each_exponent_in_a_small_file():
    frame = pd.concat([table(stage.name, SIZES**1.25) for stage in stages.STAGES], ignore_index=True)
    figure = curve_figure.curves(frame, exponents.fit(frame))
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * len(stages.STUDIES)
    told = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert told == [f"{stage.name}: 1.25 (1.25 to 1.25)" for stage in stages.STAGES]
    for axes in figure.axes:  # without colour: another mark for each stage
        marks = [line.get_marker() for line in axes.lines if not line.get_label().startswith("_")]
        assert len(set(marks)) == len(marks)
    assert len(encode(figure)[0]) <= LIMIT_BYTES
    with pytest.raises(BadInput, match="no measurements"):
        curve_figure.curves(frame.head(0), exponents.fit(frame))


# --- what is on record


def test_stored_arms_tell_their_rate():
    found = recorded.stored_throughput()
    assert len(found) > 100 and (found["rate"] > 0).all() and set(found["unit"]) == {"volumes", "steps"}
    steps = found[found["unit"] == "steps"]
    took = steps["steps"] / steps["rate"]  # seconds
    np.testing.assert_allclose(took, 60 * steps["minutes"], rtol=0.01)  # both are rounded
    assert found["hardware"].str.contains("CPU|GPU|NVIDIA").all()
    summary = recorded.by_stage(found)
    assert summary["arms"].sum() == len(found)
    assert ((summary["slowest"] <= summary["median"]) & (summary["median"] <= summary["fastest"])).all()


def test_a_record_gives_volumes_only_where_a_step_has_whole_ones(tmp_path):
    curve = {"training": [{"step": 5}, {"step": 40}]}
    kept = {
        "align-x-seed2": {"local_global_protocol": {}, "recipe": {"batch": 16}, "curves": curve, "seconds": 20},
        "uvlm-y": {"uvlm_protocol": {}, "arm": {"stage": "report"}, "settings": {"batch": 4}, "curves": curve,
                   "seconds": 20},
        "asked-only": {"protocol": {}, "finetuning": {"decoder": "small", "pictures": 8}, "curves": {}, "seconds": 0},
    }  # fmt: skip
    for name, record in kept.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(json.dumps(record | {"hardware": "one CPU"}))
    first, second = recorded.stored_throughput(tmp_path).to_dict("records")
    assert (first["arm"], first["seed"], first["rate"], first["unit"]) == ("align-x", 2, 32, "volumes")
    assert (second["stage"], second["rate"], second["unit"]) == ("U-VLM, report", 2, "steps")


def cell(source: str, seconds: float | None = None, kind: str = "code", *tags: str) -> dict:
    """A notebook's cell, as papermill leaves it."""
    times = {} if seconds is None else {"papermill": {"duration": seconds}}
    return {"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": {"tags": list(tags)} | times}


def write(folder, name: str, *cells: dict) -> None:
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")


def test_cells_are_numbered_as_in_the_committed_notebook_and_sorted_by_seconds(tmp_path):
    given = [cell("# Title", 0.01, "markdown"), cell('profile = "quick"', 0.02, "code", "parameters")]
    injected = cell('profile = "full"', 0.5, "code", "injected-parameters")
    write(tmp_path, "10_a", *given, injected, cell("\n   x = 1\ny = 2", 3), cell("never = 1"))
    write(tmp_path, "20_b", cell("slow()", 7))
    assert recorded.cell_seconds(tmp_path / "10_a.ipynb").values.tolist() == [
        ["10_a", 2, 'profile = "quick"', 0.02], ["10_a", 3, "x = 1", 3.0]
    ]  # fmt: skip
    where = recorded.where_the_seconds_go(tmp_path)
    assert where["line"].tolist() == ["slow()", "x = 1", 'profile = "quick"']
    assert where["share"].sum() == pytest.approx(100, abs=0.2)
    assert len(recorded.where_the_seconds_go(tmp_path, top=1)) == 1


def test_notebooks_that_were_not_executed_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no executed notebooks"):
        recorded.where_the_seconds_go(tmp_path)
    write(tmp_path, "10_a", cell("x = 1"))
    with pytest.raises(BadInput, match="no times"):
        recorded.cell_seconds(tmp_path / "10_a.ipynb")
    with pytest.raises(BadInput, match=r"run\.json"):
        recorded.notebook_costs(tmp_path)


def test_seconds_and_memory_of_notebooks_come_from_a_run_or_from_the_committed_ones(tmp_path):
    entries = {"10": {"name": "10_a", "seconds": 12.3, "peak_bytes": 1_500_000_000}, "20": {"name": "20_b"}}
    (tmp_path / "run.json").write_text(json.dumps({"notebooks": entries}))
    assert recorded.notebook_costs(tmp_path).values.tolist() == [["10_a", 12.3, 1.5]]
    stated = recorded.notebook_costs()
    assert stated["notebook"].is_monotonic_increasing and len(stated) >= 13
    assert stated["peak_gb"].dropna().between(0.05, 4).all()
