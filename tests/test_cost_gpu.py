"""`ctvlm arm cost`: what it measures at a tiny size on a CPU, the record that the ledger reads, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers_vlm import SIZE, decoder_config, encoder_config

from ctvlm_lib import __main__ as command_line
from ctvlm_lib.cost import gpu, timing, trials
from ctvlm_lib.cost.timing import Taken, taken
from ctvlm_lib.cost.trials import ANSWER, BOTH, FIRST, FORWARD, FURTHER, STEP, Plan
from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import claims, claims_exact, verify
from ctvlm_lib.run import PROJECT

MODELS = (gpu.SMALLEST, gpu.MIDDLE, gpu.LARGEST)
PLAN = Plan(
    decoders={name: decoder_config() for name in MODELS}, batches=(1,), encoder=encoder_config(), size_dhw_vox=SIZE,
    question_tokens=52, answer_tokens=3, step_tokens=52, repeats=1, warm_up=0, encoder_batch=2, compiled=False,
)  # fmt: skip
CLAIMED = {claim.name: claim for claim in claims.load() if claim.kind == "measured"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A record of a tiny run on a CPU, and where it lies."""
    path = tmp_path_factory.mktemp("cost") / "cost" / "record.json"
    return gpu.run(path, PLAN, "cpu", progress=lambda line: None), path


def model(name: str = gpu.SMALLEST):
    return trials.build(PLAN.decoders[name], PLAN, "cpu")


def too_small(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


# the record
def test_the_record_has_a_row_for_each_trial_and_says_what_it_was_made_with(measured):
    record, path = measured
    assert json.loads(path.read_text(encoding="utf-8")) == record
    names = [(row["what"], row["model"]) for row in record["trials"]]
    for name in MODELS:
        told = [what for what, of in names if of == name]
        assert sorted(told) == sorted([FIRST, ANSWER, FURTHER, STEP, STEP])
    assert names[-5:] == [(FORWARD, trials.RELEASED), (BOTH, trials.RELEASED), (FORWARD, trials.OURS),
                          (BOTH, trials.OURS), (FORWARD, trials.FOLDED)]  # fmt: skip
    assert all(row["status"] == timing.MEASURED and row["peak, GB"] is None for row in record["trials"])
    assert all(row["seconds"] > 0 for row in record["trials"] if row["what"] != FURTHER)  # a difference of two
    assert (record["profile"], record["seed"], record["device"], record["finished"]) == ("full", 0, "cpu", True)
    assert record["versions"]["torch"] and record["hardware"] and "commit" in record and record["seconds"] >= 0


def test_the_ledger_reads_the_record_and_judges_the_claim(measured):
    record, path = measured
    assert {*claims.measurements(path)} == {"latency, 1.5B over 7B"}  # a CPU tells no memory
    found = claims.check(CLAIMED["latency, 1.5B over 7B"], path)
    assert found.ours == record["measured"]["latency, 1.5B over 7B"]["value"]
    assert found.status in (claims.AGREES, claims.DISAGREES) and record["hardware"] in found.how
    assert claims.check(CLAIMED["peak training memory, 1.5B"], path).status == claims.WAITS


def test_the_table_gives_ratios_to_7b_and_to_the_released_layout(measured):
    table = gpu.table(measured[1])
    assert list(table.columns) == list(gpu.COLUMNS) and len(table) == len(measured[0]["trials"])
    for name in (gpu.LARGEST, trials.RELEASED):
        assert (table.loc[table["model"] == name, "seconds, ratio"] == 1).all()
    assert table["seconds, ratio"].notna().all() and table["peak, ratio"].isna().all()


def test_the_verifier_takes_the_record_and_names_what_is_wrong_with_another(measured, tmp_path):
    def told(name: str = "cost", **fields) -> verify.Folder:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        (home / "record.json").write_text(json.dumps(measured[0] | fields), encoding="utf-8")
        found = verify.Folder(home.name)
        verify._look(home, found, None)
        return found

    assert told().problems == [] and told().holds == "1 measurements of time and memory"
    assert "cut short" in told(finished=False).problems[0] and "lacks hardware" in told(hardware="").problems[0]
    assert "seed" in told("cost-seed2").problems[0] and told("cost-seed2", seed=2).problems == []


def test_without_a_record_the_table_is_empty_and_another_file_is_refused(tmp_path):
    assert gpu.table(tmp_path / "none.json").empty
    (tmp_path / "record.json").write_text('{"measured": {}}')
    with pytest.raises(BadInput, match="has no trials"):
        gpu.table(tmp_path / "record.json")


def test_a_run_that_is_cut_short_leaves_the_models_that_it_finished(tmp_path):
    def stop(line: str) -> None:
        if line.startswith(gpu.MIDDLE):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.run(tmp_path / "record.json", PLAN, "cpu", progress=stop)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert not record["finished"] and {row["model"] for row in record["trials"]} == {gpu.SMALLEST}


# what the papers claim
def test_each_claim_that_waits_for_a_gpu_is_measured_here_in_its_unit():
    assert gpu.waits_for() == [name for name in CLAIMED if name not in claims_exact.COMPUTED] == [*gpu._CLAIMED]
    for name in gpu.waits_for():
        assert CLAIMED[name].number is None or CLAIMED[name].unit == gpu._CLAIMED[name][1]


def on_a_gpu(**peaks: float | None) -> list[dict]:
    """Rows as a GPU gives them; None: it didn't fit."""
    rows = []
    for name, what, batch, checkpointing in (
        (gpu.SMALLEST, ANSWER, 1, None), (gpu.MIDDLE, ANSWER, 1, None), (gpu.LARGEST, ANSWER, 1, None),
        (gpu.MIDDLE, STEP, 4, True), (gpu.MIDDLE, STEP, 4, False),
    ):  # fmt: skip
        peak = peaks[f"{what}_{name[8:].replace('.', '_')}".replace(" ", "_")] if checkpointing is not True else 1.0
        found = Taken(status=timing.TOO_LARGE) if peak is None else Taken(peak / 10, peak, peak)
        rows.append(trials.row(what, name, batch, found, checkpointing=checkpointing))
    return rows


def test_claims_follow_from_an_answer_and_from_a_step_without_checkpointing():
    rows = on_a_gpu(answer_0_5B=2.0, answer_1_5B=4.0, answer_7B=16.0, LoRA_step_1_5B=13.0)
    found = gpu.measurements(rows, "a GPU")
    assert {name: one["value"] for name, one in found.items()} == {
        "memory saved, 0.5B for 7B": 14.0, "latency, 1.5B over 7B": 0.25, "peak training memory, 1.5B": 13.0,
    }  # fmt: skip
    assert all(one["hardware"] == "a GPU" and one["what"] for one in found.values())


def test_what_did_not_fit_leaves_its_claims_waiting():
    rows = on_a_gpu(answer_0_5B=2.0, answer_1_5B=4.0, answer_7B=None, LoRA_step_1_5B=13.0)
    assert {*gpu.measurements(rows, "a small GPU")} == {"peak training memory, 1.5B"}


# memory that runs out
def test_memory_that_runs_out_in_a_step_is_a_row_and_the_next_trial_goes_on(monkeypatch):
    real = trials.lora_step
    monkeypatch.setattr(trials, "lora_step", lambda m, rows, *rest: too_small if rows == 2 else real(m, rows, *rest))
    two = replace(PLAN, batches=(1, 2))
    rows = [row for row in trials.of_decoder(gpu.SMALLEST, two, "cpu") if row["what"] == STEP]
    assert [row["status"] for row in rows] == [timing.MEASURED, timing.TOO_LARGE] * 2
    assert [row["seconds"] is None for row in rows] == [False, True] * 2
    assert gpu._line(rows[1]) == "Qwen2.5-0.5B, LoRA step, batch 2: out of memory"


@pytest.mark.parametrize("part", ["build", "adapted"])
def test_a_model_that_does_not_fit_has_all_its_rows(monkeypatch, part):
    monkeypatch.setattr(trials, part, too_small)
    rows = list(trials.of_decoder(gpu.SMALLEST, PLAN, "cpu"))
    lost = [row["what"] for row in rows if row["status"] == timing.TOO_LARGE]
    assert len(rows) == 5 and len(lost) == (5 if part == "build" else 2) and lost[-2:] == [STEP] * 2


def test_an_encoder_that_does_not_fit_or_does_not_compile_is_a_row(monkeypatch):
    monkeypatch.setattr(trials, "DCFormer", too_small)
    assert {row["status"] for row in trials.of_encoder(PLAN, "cpu")} == {timing.TOO_LARGE}
    monkeypatch.undo()

    def no_compiler(*_):
        raise RuntimeError("no C compiler is found\nsecond line")

    monkeypatch.setattr(torch, "compile", no_compiler)
    rows = list(trials.of_encoder(replace(PLAN, compiled=True), "cpu"))
    told = {row["status"] for row in rows if row["compiled"]}
    assert told == {"torch.compile failed: RuntimeError: no C compiler is found"}
    assert {row["status"] for row in rows if not row["compiled"]} == {timing.MEASURED} and len(rows) == 9


@pytest.mark.parametrize("layout", [trials.RELEASED, trials.OURS])
def test_both_layouts_compile_to_one_graph(layout):
    """Without generating code, which takes minutes: only that nothing in the pass has to leave the graph."""
    encoder = trials.DCFormer(PLAN.encoder).eval()
    encoder = trials.in_released_layout(encoder) if layout == trials.RELEASED else encoder
    volume = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)(volume)
    torch.compiler.reset()
    assert [tuple(t.shape) for t in compiled] == [tuple(t.shape) for t in encoder(volume)]


def test_other_errors_are_raised():
    def wrong():
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        taken(wrong, "cpu")


# how it is measured
def test_the_median_of_the_repeats_is_told_and_warm_ups_are_not(monkeypatch):
    clock, calls = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0]), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = taken(lambda: calls.append(1), "cpu", repeats=3, warm_up=2)
    assert (found, len(calls)) == (Taken(2.0), 5)


def test_a_gpu_is_asked_for_its_peak_since_the_trial_began(monkeypatch):
    asked = []
    says = {"max_memory_allocated": 3_000_000_000, "max_memory_reserved": 4_000_000_000}
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache", *says):
        value = says.get(name)
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, value=value: (asked.append(name), value)[1])
    found = taken(lambda: asked.append("run"), "cuda", repeats=1, warm_up=1)
    assert (found.peak_gb, found.reserved_gb, found.status) == (3.0, 4.0, timing.MEASURED)
    assert asked == ["empty_cache", "reset_peak_memory_stats", "run", "synchronize", "run", "synchronize",
                     "max_memory_allocated", "max_memory_reserved"]  # fmt: skip


def test_the_model_is_in_16_bits_and_only_adapters_learn_in_32():
    made = trials.adapted(model())
    learns = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert learns and all(".lora_" in name and p.dtype == torch.float32 for name, p in learns.items())
    assert {p.dtype for name, p in made.named_parameters() if name not in learns} == {torch.bfloat16}
    assert made.config.image_tokens == 48 and made.decoder.training and not made.encoder.training
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_changes_the_adapters_alone(checkpointing):
    made = trials.adapted(model())
    if checkpointing:
        trials.memory.recompute(made.decoder)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    passes = []
    made.decoder.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    step = trials.lora_step(made, 2, 52, "cpu")
    step()
    moved = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert len(passes) == 1 + checkpointing  # what wasn't kept is computed again


def test_an_answer_has_as_many_tokens_as_the_plan_says(monkeypatch):
    lengths, real = [], trials.CtvlmModel.generate
    monkeypatch.setattr(
        trials.CtvlmModel, "generate", lambda *a, **k: (made := real(*a, **k), lengths.append(made.shape))[0]
    )
    rows = list(trials._answers(gpu.SMALLEST, model(), 2, PLAN, "cpu"))
    assert lengths == [(2, 1), (2, PLAN.answer_tokens)]
    first, answer, further = (row["seconds"] for row in rows)
    assert further == pytest.approx((answer - first) / (PLAN.answer_tokens - 1))


def test_a_row_without_room_for_words_and_an_answer_of_one_token_are_refused():
    with pytest.raises(BadInput, match="48 tokens leave no place for words beside 48 of the image"):
        trials.batch_of(model(), 1, 48, "cpu")
    with pytest.raises(BadInput, match="answer_tokens is 1"):
        replace(PLAN, answer_tokens=1)


# the command
def test_without_a_gpu_the_arm_says_in_a_sentence_what_waits(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["arm", "cost"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ctvlm: `ctvlm arm cost` measures on an NVIDIA GPU") and said.count("\n") == 1
    assert all(name in said for name in gpu.waits_for())
    assert command_line.main(["arm", "cost", "--steps", "3"]) == 2
    assert "cost takes --seed, not --steps" in capsys.readouterr().err


def test_the_record_replaces_the_ledgers_or_goes_to_the_folder_that_is_given(monkeypatch, tmp_path, capsys):
    ran = []

    def run(path, seed, profile):
        ran.append(path)
        return {"measured": {}, "hardware": "a GPU", "seconds": 1}

    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    monkeypatch.setattr(gpu, "run", run)
    assert command_line.main(["arm", "cost"]) == 0
    assert command_line.main(["arm", "cost", "--seed", "1", "--out", str(tmp_path)]) == 0
    assert ran == [claims.RECORD, tmp_path / "full" / "results" / "cost-seed1" / "record.json"]
    assert f"record in {ran[1]}" in capsys.readouterr().out


def test_a_machine_without_imaging_packages_can_measure():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('nibabel', 'monai', 'SimpleITK', 'cc3d', 'matplotlib', 'dask'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from ctvlm_lib.__main__ import main\n"
        "from ctvlm_lib.cost import gpu\n"
        "gpu.check_gpu, gpu.run = lambda: None, lambda path, **_: {'measured': {}, 'hardware': '', 'seconds': 0}\n"
        "sys.exit(main(['arm', 'cost']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
