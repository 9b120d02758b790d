"""Two processes give one process' curve, or refuse; a killed run goes on bit for bit; files; costs. 60 s."""

import importlib
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers_many import EQUAL, SETTINGS, bits, norms, trial_worker, vectors, with_environment, worker
from safetensors.torch import load_file

from ctvlm_lib import __main__ as command_line
from ctvlm_lib import training_checkpoint
from ctvlm_lib.errors import BadInput
from ctvlm_lib.launch import FILES, FOLDER, path, trial
from ctvlm_lib.launch.costs import HERE, MIXED, WAYS, a_gpu, costs
from ctvlm_lib.launch.trial import free_port
from ctvlm_lib.training import Step
from ctvlm_lib.training_norms import over_all_processes
from ctvlm_lib.training_processes import begin, check_resumed, means_of_all, twin
from ctvlm_lib.vlm.lora_counts import part_sizes

# float32 has 6e-8 a sum; means over a batch are taken as means of two halves, and AdamW divides small differences of
# gradients by small gradients, so that four to twelve steps at a rate of 3e-3 grow them to about 5e-6 of the loss
ROUNDING = 2e-5


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes found, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(worker, (free_port(), str(folder)), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)], folder


def close(one: list[dict], other: list[dict], rel: float = ROUNDING) -> None:
    for a, b in zip(one, other, strict=True):
        assert {*a} == {*b}
        for name in {*a} - {"seconds", "gradient"}:
            assert a[name] == pytest.approx(b[name], rel=rel, abs=1e-7), (name, a["step"])
        assert a["gradient"] == pytest.approx(b["gradient"], rel=100 * rel), a["step"]  # of a sum of many signs


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_give_the_curve_of_one_to_rounding(pair, name):
    (first, second), _ = pair
    _, alone = EQUAL[name](progress=False)
    close(alone, first[name]["curve"])
    assert first[name]["bits"] == second[name]["bits"]  # both processes hold the same weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "LoRA"])
def test_tensors_that_are_shared_out_learn_the_same_and_come_home_whole(pair, name):
    (first, second), _ = pair
    close(first[name]["curve"], first[f"{name}, shared out"]["curve"])
    assert first[f"{name}, shared out"]["bits"] == second[f"{name}, shared out"]["bits"]


@pytest.mark.slow
def test_a_run_with_shared_out_tensors_resumes_bit_for_bit_and_one_process_can_go_on_from_it(pair):
    (first, _), folder = pair
    whole, resumed = first["norms, shared out"], first["resumed, shared out"]
    assert [row["loss"] for row in resumed["curve"]] == [row["loss"] for row in whole["curve"]]
    assert resumed["bits"] == whole["bits"]
    assert [p.name for p in (folder / "half").iterdir()] == ["step-0000002"]
    _, alone = norms(folder=folder / "half", progress=False)
    close(whole["curve"], alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("odd batch", "a batch of 5 can't be shared by 2 processes in 1 parts; choose a multiple of 2"),
        ("unshared", "doesn't share its batch, so 2 processes would all compute the same"),
        ("FSDP on CPUs", "on GPUs only"),
        ("DeepSpeed", "can't be run by DeepSpeed"),
        ("stop", "stopping early looks at the whole model"),
        ("a temperature", "log_temperature is a single number, which FSDP can't share out"),
    ],
)
def test_what_several_processes_cannot_train_is_refused_in_each(pair, name, told):
    for found in pair[0]:
        assert told in found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen", "frozen, shared out"])
def test_a_frozen_tensor_that_changed_is_noticed_in_each_process(pair, name):
    for found in pair[0]:
        assert found[name].startswith("a frozen tensor changed in training")


@pytest.mark.slow
def test_a_training_with_random_numbers_of_its_own_says_that_its_curve_is_another(pair):
    (first, second), _ = pair
    assert first["dropping"] == (
        "2 processes: each draws its own random numbers (dropout, patch), so the curve is that of one process but for"
        " these draws\nstep 1/1 · " + first["dropping"].partition("step 1/1 · ")[2]
    )
    assert second["dropping"] == ""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return trial.compare(folder), folder


@pytest.mark.slow
def test_launched_processes_give_the_curve_of_one_to_rounding(compared):
    found, _ = compared
    assert len(found.curves) == 12 and 0 < found.largest < ROUNDING
    assert found.curves["loss, 1 process"].iloc[-3:].mean() < found.curves["loss, 1 process"].iloc[0]


def two_of(target, folder: Path) -> list:
    """Two processes of a server that has imported everything, which takes most of the time."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers_many", "ctvlm_lib.alignment.pretrain", "ctvlm_lib.launch.trial"])
    arguments = (free_port(), str(folder))
    made = [context.Process(target=target, args=(rank, *arguments), daemon=True) for rank in (0, 1)]
    for one in made:
        one.start()
    return made


@pytest.mark.slow
def test_two_processes_killed_between_checkpoints_go_on_bit_for_bit(compared, tmp_path):
    whole = compared[1] / "several"
    killed, end = two_of(trial_worker, tmp_path), time.monotonic() + trial.LIMIT_S
    while not list(tmp_path.glob("steps/step-*")) and all(p.is_alive() for p in killed) and time.monotonic() < end:
        time.sleep(0.005)
    for one in killed:
        one.kill()
    for one in killed:
        one.join()
    assert not (tmp_path / "curve.json").exists(), "it was at its end before it could be killed"
    assert [p.name for p in tmp_path.glob("steps/step-*")] in (["step-0000004"], ["step-0000008"])
    again = two_of(trial_worker, tmp_path)
    for one in again:
        one.join(trial.LIMIT_S)
    assert [one.exitcode for one in again] == [0, 0]
    curves = [json.loads((folder / "curve.json").read_text(encoding="utf-8")) for folder in (whole, tmp_path)]
    assert [{**row, "seconds": 0} for row in curves[0]] == [{**row, "seconds": 0} for row in curves[1]]
    weights = [load_file(folder / "weights.safetensors") for folder in (whole, tmp_path)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def killed_while_writing(folder: str, file: str, at: int) -> None:
    """End this process as SIGKILL does, when half of a checkpoint's file is written."""
    torch.set_num_threads(1)
    write = torch.save if file == "save" else training_checkpoint.save_file

    def half(content, target):
        write(content, target)
        if f"step-{at:07d}" in str(target):
            data = Path(target).read_bytes()
            Path(target).write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    if file == "save_file":
        training_checkpoint.save_file = half
    else:
        torch.save = half
    norms(folder=folder, progress=False)


@pytest.mark.slow
def test_a_checkpoint_that_was_being_written_when_the_kill_came_is_not_taken(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    model, whole = norms(progress=False)
    for file in ("save_file", "save"):
        for at, there in ((2, []), (4, ["step-0000002"])):
            folder = tmp_path / f"{file}{at}"
            process = context.Process(target=killed_while_writing, args=(str(folder), file, at))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            assert len(list(folder.glob(".*.partial.step-*"))) == 1  # the half one is there, under another name
            assert [p.name for p in folder.glob("step-*")] == there
            again, resumed = norms(folder=folder, progress=False)
            assert [row["loss"] for row in resumed] == [row["loss"] for row in whole] and bits(again) == bits(model)
            assert [p.name for p in folder.iterdir()] == ["step-0000004"]


def caught_loss(monkeypatch, module, start):
    """The loss function that a training hands to the loop."""
    caught = []

    def take(model, loss, settings, **_):
        caught.append((model, loss))
        return []

    monkeypatch.setattr(module, "train", take)
    start()
    return caught[0]


def same_in_shares(model, loss, number: int = 0) -> None:
    """The mean of the shares' losses is the whole batch's."""
    model.eval()
    with torch.no_grad():
        whole = float(loss(model, Step(number, 0)))
        shares = [float(loss(model, Step(number, 0, rank, 2))) for rank in (0, 1)]
    assert np.mean(shares) == pytest.approx(whole, rel=1e-5)
    assert abs(shares[0] - shares[1]) > 1e-3 * whole


def test_texts_of_unlike_lengths_weigh_alike_in_a_language_model_s_shares(monkeypatch):
    from ctvlm_lib.records import protocol
    from ctvlm_lib.records.questions import candidates
    from ctvlm_lib.vlm import ladder_training
    from ctvlm_lib.vlm.ladder_text import Corpus
    from ctvlm_lib.vlm.ladder_tokenizer import load_tokenizer

    corpus = Corpus.of(r for one in protocol.load().patients("train", n=2) for r in candidates(one, "train"))
    same_in_shares(*caught_loss(monkeypatch, ladder_training, lambda: ladder_training.pretrain(
        "small", corpus, load_tokenizer(), SETTINGS, batch=4, progress=False)))  # fmt: skip


def test_reports_of_unlike_lengths_weigh_alike_in_a_writer_s_shares(monkeypatch):
    from helpers_many import small_cohort

    from ctvlm_lib.experiments import uvlm, uvlm_arms
    from ctvlm_lib.vlm import report_writer

    writer = uvlm.build(uvlm_arms.Arm(uvlm_arms.REP))
    with torch.no_grad():
        for tensor in writer.decoder.parameters():
            tensor.mul_(4)  # so that words differ in how likely they are
    same_in_shares(*caught_loss(monkeypatch, report_writer, lambda: report_writer.fit(
        writer, small_cohort().scans, SETTINGS, batch=2, progress=False)))  # fmt: skip


def test_pictures_with_few_questions_weigh_less_in_a_read_out_s_shares(monkeypatch):
    from ctvlm_lib.experiments import read_out
    from ctvlm_lib.experiments.read_out_model import Coded
    from ctvlm_lib.vlm.feature_cache import FeatureCache, _in_16_bits

    low, high = (_in_16_bits(vectors(4 * 6, 5).view(4, 6, 5)) for _ in range(2))
    taught = {str(k): [Coded(1, 0, 0, (1, 2), 1 + k % 2)] * (1 + 3 * k) for k in range(4)}
    recipe = read_out.Recipe(pictures=4, width=16, heads=4, hidden=24)
    kept = FeatureCache(tuple(taught), *low, *high, "planted")
    same_in_shares(*caught_loss(monkeypatch, read_out, lambda: read_out.fit(taught, kept, recipe, progress=False)))


def test_the_last_incomplete_batch_of_an_epoch_is_left_out_in_any_number_of_processes():
    from ctvlm_lib.alignment.m3d_cap import drawn

    steps = [drawn(11, 4, Step(number, 4, rank, 2)) for number in range(4) for rank in (0, 1)]
    assert all(len(set(index)) == 4 for index in steps)  # 11 volumes: two batches of 4 an epoch, three are left out
    epochs = [np.concatenate(steps[first : first + 4 : 2]) for first in (0, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs) and set(epochs[0]) != set(epochs[1])
    assert all(np.array_equal(*steps[k : k + 2]) for k in range(0, 8, 2))  # both processes draw alike


def test_weights_of_shares_have_the_mean_one():
    batch = ["a", "bbbb", "cc", "ddd", "", "f"]
    weights = [Step(0, 0, rank, 3, 0, 1).weight(batch, len) for rank in range(3)]
    assert weights == [pytest.approx(3 * n / 11) for n in (5, 5, 1)]
    assert Step(0, 0).weight(batch, None) == 1.0
    assert Step(0, 0, 1, 2).weight(["", ""], len) == 0.0


def test_means_of_one_process_are_its_values():
    assert means_of_all({"b": torch.tensor(0.1), "a": torch.tensor(2.0)}) == {"b": float(np.float32(0.1)), "a": 2.0}
    check_resumed(3)


def test_a_norm_has_its_own_forward_again_afterwards():
    norm = torch.nn.BatchNorm1d(3)
    with over_all_processes(norm, 2):
        assert "forward" in vars(norm)
        torch.testing.assert_close(norm.eval()(torch.ones(2, 3)), torch.ones(2, 3), rtol=1e-4, atol=0)
    assert "forward" not in vars(norm)


def test_processes_that_do_not_find_each_other_are_refused():
    with pytest.raises(BadInput, match="set ACCELERATE_USE_CPU=true"):
        with_environment({"WORLD_SIZE": "2"}, begin)


@pytest.mark.parametrize("module", ["vlm_run", "read_out", "local_global", "uvlm", "chat_arms"])
def test_an_arm_that_one_process_stores_is_refused_to_several(module):
    run = importlib.import_module(f"ctvlm_lib.experiments.{module}").run
    with pytest.raises(BadInput, match="an arm is trained and stored by one process, and 2 were started"):
        with_environment({"WORLD_SIZE": "2"}, lambda: run("an arm"))


def test_networks_that_ship_are_trained_by_one_process(capsys):
    assert with_environment({"WORLD_SIZE": "2"}, lambda: command_line.main(["train", "ladder-small"])) == 2
    assert "ladder-small is trained and stored by one process" in capsys.readouterr().err


def test_a_twin_is_a_copy_and_refuses_hooks_that_hold_on_to_a_module():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    other = twin(model)
    assert other[0].weight is not model[0].weight and torch.equal(other[0].weight, model[0].weight)
    held = model[1]
    model[0].register_forward_hook(lambda module, args, result: held(result))
    with pytest.raises(BadInput, match="hook that FSDP can't move"):
        twin(model)


# files and costs


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_each_file_and_would_start_what_it_says(name):
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {*FILES}
    config = load_config_from_file(str(path(name)))
    words = ["--config_file", str(path(name)), "-m", "ctvlm_lib"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    deep = name.startswith("deepspeed")
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp2", deep)
    assert args.multi_gpu is (name in ("cpu_pair", "ddp"))
    assert args.num_processes == config.num_processes == (2 if name == "cpu_pair" else 8)
    if name == "fsdp2":
        assert args.fsdp_version == 2 and args.fsdp_reshard_after_forward and not args.fsdp_cpu_ram_efficient_loading
    if deep:
        assert args.zero_stage == int(name[-1])


def test_an_unknown_file_is_refused_by_name():
    with pytest.raises(BadInput, match="no file for accelerate called 'tpu'; there are: cpu_pair, ddp"):
        path("tpu")


def test_the_zero_paper_s_example_has_its_numbers():
    """7.5 billion weights on 64 GPUs, K = 12: figure 1 of the paper."""
    held = [a_gpu(way, 64, 7_500_000_000, kept=MIXED)["sum"] / 1e9 for way in WAYS]
    assert [round(size, 1) for size in held] == [120.0, 31.4, 16.6, 1.9]


def test_what_is_sent_is_what_a_ring_sends():
    """An all-reduce, a reduce-scatter and an all-gather of N chunks, counted in a plain loop."""
    learning, gpus = 1200, 4
    once = sum(learning * 4 // gpus for _ in range(gpus - 1))  # each passes a chunk on N − 1 times
    sent = {way: a_gpu(way, gpus, learning)["sent"] for way in WAYS}
    assert sent == {"DDP": 2 * once, "ZeRO-1": 2 * once, "ZeRO-2": 2 * once, "ZeRO-3": 3 * once}
    assert a_gpu("ZeRO-3", gpus, learning, frozen=300)["sent"] == 3 * once + 2 * (300 * 2 // gpus) * (gpus - 1)
    assert all(a_gpu(way, 1, learning)["sent"] == 0 for way in WAYS)


def test_all_ways_hold_the_same_altogether_where_nothing_is_shared_out():
    for kept in (HERE, MIXED):
        assert len({a_gpu(way, 1, 1000, 500, kept)["sum"] for way in WAYS}) == 1
        assert math.isclose(8 * a_gpu("ZeRO-3", 8, 1000, 500, kept)["sum"], a_gpu("DDP", 1, 1000, 500, kept)["sum"])


def test_the_table_counts_a_7b_decoder_with_lora_and_with_all_weights():
    table, parts = costs(gpus=8).set_index(["learns", "way"]), part_sizes("Qwen2.5-7B", 16)
    adapters = parts["attention adapters"] + parts["MLP adapters"] + parts["projector"]
    lora = table.loc[("LoRA", "DDP")]
    assert lora["weights, GB"] == round((2 * (parts["decoder"] + parts["encoder"]) + 4 * adapters) / 1e9, 2)
    assert lora["sent, GB"] == round(2 * 7 / 8 * 4 * adapters / 1e9, 2)
    everything = parts["decoder"] + parts["projector"]
    assert table.loc[("all weights", "DDP"), "sum, GB"] == round((16 * everything + 2 * parts["encoder"]) / 1e9, 2)
    # LoRA is cheap to send where weights stay, and all weights don't fit a GPU of 80 GB unless they are shared out
    assert table.loc[("LoRA", "ZeRO-3"), "sent, GB"] > 20 * lora["sent, GB"]
    assert table.loc[("all weights", "DDP"), "sum, GB"] > 80 > table.loc[("all weights", "ZeRO-3"), "sum, GB"]
    for file in {name for names in table["file"] for name in names.split(", ") if name}:
        assert (FOLDER / file).is_file()


def test_impossible_costs_are_refused():
    for wrong in (("ZeRO-4", 8, 10), ("DDP", 0, 10), ("DDP", 8, 0)):
        with pytest.raises(BadInput):
            a_gpu(*wrong)


def test_a_launch_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "run", lambda *_, **__: [])
    monkeypatch.setattr(trial, "launched", lambda *_: trial.subprocess.Popen(
        ["sh", "-c", "echo 'ctvlm: a batch of 3' >&2; exit 2"], text=True, stdout=-1, stderr=-1))  # fmt: skip
    with pytest.raises(BadInput, match="training in 2 processes failed .ctvlm: a batch of 3"):
        trial.compare(tmp_path)


def test_impossible_shares_are_told_before_a_step():
    with pytest.raises(BadInput, match="multiple of 2"):
        Step(0, 0, world=2).mine(range(7))
