"""The training loop: resumes bit for bit, keeps frozen tensors, says where a loss breaks, equal in two processes."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ctvlm_lib import training
from ctvlm_lib.errors import BadInput
from ctvlm_lib.launch.trial import free_port
from ctvlm_lib.training import Step, Training, train

SETTINGS = Training(steps=12, lr=1e-2, checkpoint_every=4, seed=3)
NNUNET = replace(SETTINGS, lr=1e-3, optimizer="SGD", schedule="polynomial")


def small_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))


def batch_of(step: Step, size: int = 8):
    x = torch.from_numpy(step.rng("batch").normal(size=(size, 4))).float()
    return step.mine(x)


def loss_of(model, step):
    x = batch_of(step)
    return ((model(x)[:, 0] - x.sum(1)) ** 2).mean()


def without_seconds(curve):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


def run(folder=None, stop=None, settings=SETTINGS, model=None, loss=loss_of):
    model = model or small_model()
    return model, train(model, loss, settings, folder=folder, stop=stop, progress=False)


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", [SETTINGS, NNUNET])
def test_a_killed_run_resumes_to_the_same_curve_and_weights(tmp_path, settings):
    def killed(model, step):
        if step.number == 7:  # between two checkpoints
            raise Killed
        return loss_of(model, step)

    whole_model, whole = run(settings=settings)
    with pytest.raises(Killed):
        run(tmp_path, loss=killed, settings=settings)
    model, resumed = run(tmp_path, settings=settings)
    assert without_seconds(resumed) == without_seconds(whole)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole_model.state_dict().values(), strict=True)
    )


def test_a_finished_run_is_only_loaded(tmp_path):
    model, curve = run(tmp_path)

    def never(model, step):
        raise AssertionError("a finished run computes no loss")

    again, same = run(tmp_path, loss=never)
    assert same == curve
    assert torch.equal(again[0].weight, model[0].weight)


def test_only_one_whole_checkpoint_is_left(tmp_path):
    (tmp_path / ".abcd.partial.step-0000002").mkdir(parents=True)  # what a kill leaves
    run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000012"]
    assert {p.name for p in (tmp_path / "step-0000012").iterdir()} == {
        "model.safetensors",
        "optimizer.pt",
        "curve.json",
    }


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(BadInput, match="lr was 0.01 and is 0.02"):
        run(tmp_path, settings=replace(SETTINGS, lr=2e-2))


def test_a_checkpoint_from_before_a_setting_goes_on_with_its_default(tmp_path):
    run(tmp_path)
    record = next(tmp_path.glob("step-*/curve.json"))
    content = json.loads(record.read_text())
    for name in ("rates", "optimizer", "schedule"):
        del content["settings"][name]
    record.write_text(json.dumps(content))
    assert len(run(tmp_path)[1]) == SETTINGS.steps
    with pytest.raises(BadInput, match="rates was"):
        run(tmp_path, settings=replace(SETTINGS, rates=(("0.", 0.1),)))
    with pytest.raises(BadInput, match="optimizer was AdamW and is SGD, schedule was cosine and is polynomial"):
        run(tmp_path, settings=replace(NNUNET, lr=SETTINGS.lr))


def test_parts_learn_at_rates_of_their_own():
    first = Training(steps=1, lr=1e-2, warmup_share=0, weight_decay=0, rates=(("0.", 0.1),))
    before, (after, _) = small_model().state_dict(), run(settings=first)
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in after.state_dict().items()}
    assert moved["0.weight"] == pytest.approx(1e-3, rel=1e-2)  # AdamW's first step is as long as the rate
    assert moved["4.weight"] == pytest.approx(1e-2, rel=1e-2)


def test_a_rate_for_nothing_that_learns_is_refused():
    with pytest.raises(BadInput, match="no trainable parameter's name begins with 'encoder.'"):
        run(settings=replace(SETTINGS, rates=(("encoder.", 0.1),)))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(BadInput, match="another model"):
        run(tmp_path, model=nn.Linear(4, 1))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "step-0000012" / "optimizer.pt").write_bytes(b"no")
    with pytest.raises(BadInput, match="can't be read"):
        run(tmp_path)


def test_frozen_tensors_stay_and_frozen_batchnorm_keeps_its_statistics(tmp_path):
    model = small_model()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    run(tmp_path, model=model)
    same = {n for n, t in model.state_dict().items() if torch.equal(t, before[n])}
    assert same == {n for n in before if n[0] in "01"}


def test_a_resumed_run_notices_other_frozen_weights(tmp_path):
    for value in (0.0, 1.0):
        model = small_model()
        model[0].requires_grad_(False).weight.data.fill_(value)
        if value:
            with pytest.raises(BadInput, match="frozen"):
                run(tmp_path, model=model)
        else:
            run(tmp_path, model=model)


def test_something_that_writes_to_a_frozen_tensor_is_found():
    model = small_model()
    model[0].requires_grad_(False)

    def meddling(model, step):
        model[0].weight.data += 1
        return loss_of(model, step)

    with pytest.raises(RuntimeError, match="frozen tensor changed"):
        run(model=model, loss=meddling)


def test_a_loss_that_is_not_finite_names_step_and_part(tmp_path):
    def broken(model, step):
        return {"good": loss_of(model, step), "dense": loss_of(model, step) * (math.nan if step.number == 5 else 1)}

    with pytest.raises(BadInput, match="step 6 of 12: 'dense' is nan"):
        run(tmp_path, loss=broken)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000004"]


def test_parts_of_the_loss_are_in_the_curve():
    _, curve = run(loss=lambda m, s: {"a": loss_of(m, s), "b": 2 * loss_of(m, s).detach() + 0 * m[0].bias.sum()})
    assert all(row["loss"] == pytest.approx(row["a"] + row["b"]) for row in curve)


def test_the_rate_warms_up_and_falls_to_zero():
    plan = Training(steps=100, lr=1.0, warmup_share=0.1)
    rates = [plan.lr_at(k) for k in range(100)]
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3 and rates[55] == pytest.approx(0.5)


def test_the_polynomial_is_nnunet_s_and_begins_behind_the_warm_up():
    steps = 40
    rates = [Training(steps, 0.01, warmup_share=0, schedule="polynomial").lr_at(k) for k in range(steps)]
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for rate in rates:
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step(), theirs.step()
    late = Training(steps + 10, 0.01, warmup_share=0.2, schedule="polynomial")
    assert [late.lr_at(k + 10) for k in range(steps)] == pytest.approx(rates)
    assert late.lr_at(0) == pytest.approx(0.001)


def test_sgd_is_that_of_a_plain_loop_with_nesterov_s_momentum():
    settings = replace(NNUNET, warmup_share=0, weight_decay=0.1, clip=0)
    inputs = []

    def smooth(model, step):
        inputs.append(batch_of(step).double().numpy())
        return plain(model, step)

    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    run(model=model, loss=smooth, settings=settings)
    weight, speed = np.zeros(5), np.zeros(5)  # the bias last
    for number, x in enumerate(inputs):
        wide = np.column_stack([x, np.ones(len(x))])
        gradient = 2 * wide.T @ (wide @ weight - x.sum(axis=1)) / len(x) + 0.1 * weight * [1, 1, 1, 1, 0]
        speed = 0.99 * speed + gradient
        weight -= 1e-3 * (1 - number / 12) ** 0.9 * (gradient + 0.99 * speed)
    assert model.weight[0].tolist() + model.bias.tolist() == pytest.approx(weight.tolist(), rel=1e-4)


def test_without_a_word_the_training_is_that_of_adamw_and_a_cosine():
    plan = Training(**{name: getattr(SETTINGS, name) for name in ("steps", "lr", "seed")})
    assert plan.lr_at(7) == 1e-2 * 0.5 * (1 + math.cos(math.pi * 6 / 11))  # to the bit
    model = small_model()
    made = training._optimizer(model, plan)
    assert type(made) is torch.optim.AdamW and made.defaults["betas"] == plan.betas


def test_vectors_do_not_decay():
    model = nn.LayerNorm(4)

    def nothing(model, step):
        return 0 * model(torch.ones(1, 4)).sum()

    train(model, nothing, Training(steps=3, lr=0.1, weight_decay=0.5), progress=False)
    assert torch.equal(model.weight, torch.ones(4))


def test_accumulated_parts_equal_one_batch():
    def smooth(model, step):  # without BatchNorm and dropout, which know their part only
        x = batch_of(step)
        return ((model(x)[:, 0] - x.sum(1)) ** 2).mean()

    weights = []
    for accumulate in (1, 4):
        model = nn.Linear(4, 1)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        run(model=model, loss=smooth, settings=replace(SETTINGS, accumulate=accumulate))
        weights.append(model.weight.clone())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)  # sums in another order


def test_stop_ends_training_and_the_checkpoint_knows(tmp_path):
    _, curve = run(tmp_path, stop=lambda row: row["step"] == 6)
    _, again = run(tmp_path)
    assert len(curve) == 6 and again == curve


def test_progress_says_the_time_left(capsys):
    train(small_model(), loss_of, SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 2/12 · loss ") and "left)" in lines[0]
    assert lines[-1].startswith("step 12/12") and "left" not in lines[-1]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0}, {"warmup_share": 2}, {"precision": "fp8"},
                                   {"rates": (("0.", 0.0),)}, {"optimizer": "Adam"},
                                   {"schedule": "linear"}])  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(BadInput):
        Training(**{"steps": 1, "lr": 1.0} | wrong)


def test_nothing_to_train_is_refused():
    with pytest.raises(BadInput, match="nothing in the model is trainable"):
        run(model=small_model().requires_grad_(False))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(BadInput, match="multiple of 6"):
        Step(0, 0, world=3, parts=2).mine(range(8))


def test_shares_of_all_calls_are_the_batch():
    shares = [Step(0, 0, r, 2, p, 3).mine(range(12)) for p in range(3) for r in range(2)]
    assert [k for share in shares for k in share] == list(range(12))


def plain(model, step):
    x = batch_of(step)
    return ((model(x)[:, 0] - x.sum(1)) ** 2).mean()


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # fmt: skip
    torch.set_num_threads(1)
    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    curve = train(model, plain, SETTINGS, folder=f"{folder}/run", progress=False)
    if rank == 0:
        with open(f"{folder}/curve.json", "w", encoding="utf-8") as file:
            json.dump(curve, file)
    torch.distributed.barrier()
    os._exit(0)  # at an ordinary end gloo's threads now and then abort the process after its work is done


def test_two_processes_train_as_one_does(tmp_path):
    torch.multiprocessing.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    alone = train(model, plain, SETTINGS, progress=False)
    both = json.loads((tmp_path / "curve.json").read_text())
    for a, b in zip(alone, both, strict=True):
        assert {k: a[k] for k in ("loss", "gradient", "lr")} == pytest.approx(
            {k: b[k] for k in ("loss", "gradient", "lr")}
        )


def test_bf16_is_float32_where_the_hardware_would_only_emulate_it(monkeypatch, capsys):
    monkeypatch.setattr(training, "computes_bf16", lambda device: False)
    settings = replace(SETTINGS, precision="bf16")
    curve = train(small_model(), loss_of, settings, progress=True)
    assert "training in float32: this CPU has no instructions for bfloat16" in capsys.readouterr().out
    assert without_seconds(curve) == without_seconds(run()[1])
