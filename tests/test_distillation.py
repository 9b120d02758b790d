"""Distillation: its loss is a plain loop's, the teacher stays as it is, a killed run goes on. About 9 s of one core."""

import json
from dataclasses import asdict, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers_finetune import lessons, record, school, small_cohort
from helpers_vlm import tiny
from hypothesis import given, settings

from ctvlm_lib import checkpoints
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import vlm_arms, vlm_run
from ctvlm_lib.training import Step
from ctvlm_lib.training_checkpoint import moving
from ctvlm_lib.vlm import distillation, finetune_saving
from ctvlm_lib.vlm.distillation import before_answers, distillation_loss, in_turn, same_items, steps_of_an_epoch
from ctvlm_lib.vlm.finetune import Finetuning, finetune
from ctvlm_lib.vlm.finetune_loss import last_states
from ctvlm_lib.vlm.lessons import Lesson, Lessons

LOSSES = {"SigLIP": -3.0, "InfoNCE": None}  # → bias
LOG_T = 0.7
CONFIG = Finetuning(projector_steps=1, lora_steps=1, pictures=4, words=60, rank=2, alpha=4, dropout=0.1,
                    checkpoint_every=1, teacher="larger", distillation_steps=3)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def states(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) * 2


def plain(student: np.ndarray, teacher: np.ndarray, bias: float | None, same=None) -> float:
    """The equations, pair by pair."""
    count, t = len(student), np.exp(LOG_T)
    same = np.eye(count, dtype=bool) if same is None else same
    logit = np.empty((count, count))
    for i in range(count):
        for j in range(count):
            cosine = student[i] @ teacher[j] / np.sqrt((student[i] @ student[i]) * (teacher[j] @ teacher[j]))
            logit[i, j] = t * cosine + (bias or 0.0)
    total = 0.0
    for i in range(count):
        if bias is not None:
            total += sum(np.log(1 + np.exp(-logit[i, j] if same[i, j] else logit[i, j])) for j in range(count))
        else:
            for row in (logit[i], logit[:, i]):
                total -= np.mean([row[j] for j in range(count) if same[i, j]]) / 2 - np.log(np.exp(row).sum()) / 2
    return total / count


def found(student: np.ndarray, teacher: np.ndarray, bias: float | None, same=None) -> float:
    same = None if same is None else torch.from_numpy(same)
    return float(distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), LOG_T, bias, same=same))


def larger(seed: int = 0):
    """A teacher with the student's encoder, which is drawn first, and a wider decoder."""
    model, _ = tiny(seed=seed, decoder={"hidden_size": 48, "num_hidden_layers": 3})
    return model


def trained(config: Finetuning = CONFIG, teacher=None, **how):
    model, _, taught, kept = school()
    curves = finetune(model, taught, kept, config, teacher=teacher, progress=False, **how)
    return model, curves


def losses(curves) -> dict[str, list[float]]:
    return {stage: [row["loss"] for row in curve] for stage, curve in curves.items()}


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(0, 1000))
def test_the_loss_equals_a_plain_loop(loss, count, seed):
    student, teacher = states(count, seed=seed), states(count, seed=seed + 1)
    assert found(student, teacher, LOSSES[loss]) == pytest.approx(plain(student, teacher, LOSSES[loss]), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_the_loops_and_none_reaches_the_teacher(loss):
    student, teacher, bias = states(4), states(4, seed=1), LOSSES[loss]
    x, y = (torch.from_numpy(one.copy()).requires_grad_() for one in (student, teacher))
    distillation_loss(x, y, LOG_T, bias).backward()
    expected, step = np.empty_like(student), 1e-6
    for place in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[place] += step
        down[place] -= step
        expected[place] = (plain(up, teacher, bias) - plain(down, teacher, bias)) / (2 * step)
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=1e-8)  # central differences of numbers near 1
    assert y.grad is None


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_the_batch_does_not_matter(loss, order):
    student, teacher = states(6), states(6, seed=1)
    expected = found(student, teacher, LOSSES[loss])
    assert found(student[order], teacher[order], LOSSES[loss]) == pytest.approx(expected, rel=1e-12)
    if list(order) != list(range(6)):
        assert found(student[order], teacher, LOSSES[loss]) != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_question_that_stands_twice_is_not_its_own_negative(loss):
    same = same_items([("p0", (1, 2)), ("p1", (1, 2)), ("p0", (1, 2)), ("p0", (3,))]).numpy()
    assert same.sum() == 6 and same[0, 2] and same[2, 0] and not same[0, 3]
    student, teacher, bias = states(4), states(4, seed=1), LOSSES[loss]
    assert found(student, teacher, bias, same) == pytest.approx(plain(student, teacher, bias, same), rel=1e-9)
    assert found(student, teacher, bias, same) != pytest.approx(found(student, teacher, bias), rel=1e-3)


def test_the_length_of_a_state_does_not_matter():
    student, teacher = states(4), states(4, seed=1)
    assert found(3 * student, teacher / 7, None) == pytest.approx(found(student, teacher, None), rel=1e-12)


@pytest.mark.parametrize("bias", LOSSES.values())
def test_a_batch_of_one_is_refused(bias):
    with pytest.raises(BadInput, match="a batch of 1 has nothing to tell an item from"):
        found(states(1), states(1), bias)


def test_states_are_those_in_front_of_each_answer():
    model, _, taught, kept = school()
    drawn = taught.asked([2, 0], np.random.default_rng(0), 200)
    rows, features = taught.pack(drawn), kept.take([one.key for one in drawn])
    with torch.no_grad():
        together = before_answers(last_states(model, rows, features), rows)
        alone = []
        for one in drawn:
            for words in one.words:
                ids = torch.tensor([[*taught.image, *words.ids[: words.start]]])  # neither answer nor other questions
                embeddings = model.embed(ids, features=kept.take([one.key]))
                alone.append(model.decoder.base_model(inputs_embeds=embeddings)[0][0, -1])
    assert len(alone) == 6
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)  # float32, other orders of sums


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_picture_comes_once_in_an_epoch(count, batch, seed):
    steps = steps_of_an_epoch(count, batch)
    epochs = [np.concatenate([in_turn(count, Step(first + k, seed), batch) for k in range(steps)])
              for first in (0, steps)]  # fmt: skip
    for epoch in epochs:
        assert sorted(epoch[:count]) == list(range(count)) and len(epoch) == steps * batch
    if count > 8:
        assert epochs[0].tolist() != epochs[1].tolist()


def test_without_a_teacher_there_are_the_same_stages_with_the_same_losses():
    plain_run, with_teacher = trained(replace(CONFIG, teacher=""))[1], trained(teacher=larger())[1]
    assert list(plain_run) == ["projector", "LoRA"]
    assert list(with_teacher) == ["projector", "LoRA", "distillation"]
    assert losses(plain_run) == {stage: losses(with_teacher)[stage] for stage in plain_run}


def test_an_older_recipe_knows_no_teacher():
    old = {name: value for name, value in asdict(Finetuning()).items()
           if name != "teacher" and not name.startswith("distillation")}  # fmt: skip
    assert Finetuning.from_dict(old) == Finetuning()
    assert not Finetuning().learns_from_teacher


def test_the_teacher_is_the_same_bits_afterwards_and_the_frozen_parts_of_the_student_too():
    model, _, taught, kept = school()
    teacher = larger()
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    encoder = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    curves = finetune(model, taught, kept, CONFIG, teacher=teacher, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.encoder.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(np.isfinite(row["distilled"]) for row in curves["distillation"])
    assert not [name for name in model.state_dict() if "head.projection" in name or "teacher" in name]


def test_the_adapters_and_the_projector_learn_from_the_teacher_and_nothing_else():
    without, with_teacher = (moving(trained(config, larger())[0]) for config in (replace(CONFIG, teacher=""), CONFIG))
    assert without.keys() == with_teacher.keys()
    moved = {name.split(".")[0] for name in without if not torch.equal(without[name], with_teacher[name])}
    assert moved == {"projector", "decoder"}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_learns_to_tell_its_teachers_states(loss):
    config = replace(CONFIG, distillation_loss=loss, distillation_steps=25, distillation_weight=1.0, lora_lr=1e-2)
    curve = [row["distilled"] for row in trained(config, larger())[1]["distillation"]]
    assert np.mean(curve[-5:]) < 0.8 * np.mean(curve[:5])


def test_at_weight_0_the_epoch_has_the_answers_alone_and_needs_no_teacher():
    _, curves = trained(replace(CONFIG, distillation_weight=0.0))
    assert len(curves["distillation"]) == 3
    assert "distilled" not in curves["distillation"][0]


def test_the_weight_is_a_factor_of_the_loss():
    rows = [trained(replace(CONFIG, distillation_weight=weight, distillation_steps=1), larger())[1]["distillation"][0]
            for weight in (0.1, 0.3)]  # fmt: skip
    assert rows[1]["distilled"] == pytest.approx(3 * rows[0]["distilled"], rel=1e-6)
    assert rows[1]["nll"] == rows[0]["nll"]


def test_a_report_is_an_item_too(monkeypatch):
    model, processor, _, kept = school()
    report = replace(record(0, "a mass in the liver", "Write a report."), kind="report", form="open")
    taught = Lessons(processor, [Lesson("p0", (report,)), lessons(2)[1]])
    seen, whole = [], distillation.distillation_loss
    monkeypatch.setattr(distillation, "distillation_loss",
                        lambda x, y, *more, **how: seen.append(len(x)) or whole(x, y, *more, **how))  # fmt: skip
    config = replace(CONFIG, pictures=2, words=200, distillation_steps=0)
    curves = finetune(model, taught, kept, config, teacher=larger(), progress=False)
    assert len(curves["distillation"]) == 1  # an epoch: two pictures of two
    assert seen == [4] and {"nll", "report", "distilled"} <= set(curves["distillation"][0])


def test_a_run_that_was_killed_in_distillation_and_taken_up_has_the_same_numbers(tmp_path):
    whole, curves = trained(teacher=larger())

    rows = []

    def kill(row):
        rows.append(row)
        if len(rows) == 4:  # the second step of the third stage, before its checkpoint is written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(teacher=larger(), folder=tmp_path, on_step=kill)
    again, resumed = trained(teacher=larger(), folder=tmp_path)
    assert losses(curves) == losses(resumed)
    assert all(torch.equal(tensor, moving(again)[name]) for name, tensor in moving(whole).items())
    with pytest.raises(BadInput, match="other frozen weights"):  # of another teacher
        trained(teacher=larger(seed=1), folder=tmp_path)


def test_several_processes_are_refused_as_the_whole_batch_is_compared(monkeypatch):
    model, _, taught, kept = school()
    monkeypatch.setattr(distillation, "train", lambda pair, loss, *_, **how: loss(pair, Step(0, 0, rank=0, world=2)))
    with pytest.raises(BadInput, match="start it without accelerate launch"):
        distillation.distill(model, larger(), taught, kept, CONFIG)
    assert "nll" in distillation.distill(model, None, taught, kept, CONFIG)  # the answers alone are shared out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"pictures": 1}, "set pictures to 2"), ({"distillation_weight": -1.0}, "must not be negative"),
     ({"distillation_loss": "sigmoid"}, "'SigLIP', 'InfoNCE'"), ({"distillation_steps": -1}, "must not be negative")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        replace(CONFIG, **wrong)


def test_a_teacher_that_was_not_given_is_named():
    with pytest.raises(BadInput, match="the teacher larger wasn't given"):
        trained()


def test_arms_with_a_teacher_have_the_large_decoders_of_the_same_encoder_and_condition():
    arms = {name: config for name, config in vlm_arms.ARMS.items() if config.teacher}
    assert {config.decoder for config in arms.values()} == {"small", "middle"}
    for name, config in arms.items():
        teacher = vlm_arms.ARMS[config.teacher]
        assert (teacher.encoder, teacher.condition, teacher.decoder) == (config.encoder, config.condition, "large")
        assert teacher == replace(vlm_arms.ARMS[config.teacher], teacher="")
        assert config.learns_from_teacher is name.endswith("-distilled")
    assert vlm_arms.variant_of("vlm-B-contour-small-undistilled") == "undistilled"


SHORT = {"projector_steps": 1, "lora_steps": 1, "pictures": 4, "regions": 1, "patients": 4, "kinds": ("presence",)}


def test_an_arm_trains_its_teacher_first_if_it_is_not_there_and_tells_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(vlm_arms.ARMS, "vlm-B-contour-large", replace(vlm_arms.ARMS["vlm-B-contour-large"], **SHORT))
    places = {"checkpoint_folder": tmp_path / "weights", "results": tmp_path / "results"}

    def run(label: str):
        return vlm_run.run("vlm-B-contour-small-distilled", "quick", 3, cohort=small_cohort(), splits=(),
                           changes=SHORT, folder=tmp_path / "way" / label, label=label, **places)  # fmt: skip

    with pytest.raises(BadInput, match="`ctvlm arm vlm-B-contour-large --seed 3`"):
        finetune_saving.load_teacher(vlm_arms.recipe_of("vlm-B-contour-small-distilled", 3), *school()[:2], tmp_path)
    run("one-seed3")
    teacher = "vlm-B-contour-large-seed3"
    assert f"{teacher}, the teacher, has no checkpoint here" in capsys.readouterr().out
    assert checkpoints.names(tmp_path / "weights") == ["one-seed3", teacher]
    assert (tmp_path / "way" / teacher / "LoRA").is_dir()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["one-seed3"]  # the teacher wasn't asked
    told = json.loads((tmp_path / "results" / "one-seed3" / "record.json").read_text(encoding="utf-8"))
    assert told["teacher"] == {"name": teacher, "weights": checkpoints.record(teacher, tmp_path / "weights")["weights"]}
    assert list(told["curves"]) == ["projector", "LoRA", "distillation"]
    _, _, stored = finetune_saving.load(tmp_path / "weights" / "one-seed3")
    assert stored["weights"] == told["weights"]
    run("two-seed3")
    assert "the teacher" not in capsys.readouterr().out
    assert checkpoints.record("two-seed3", tmp_path / "weights")["weights"] == told["weights"]


def test_a_teacher_that_sees_something_else_is_refused(tmp_path, monkeypatch):
    student, processor, *_ = school()
    teacher, *_ = school(seed=1)
    record = {"weights": {}}
    monkeypatch.setattr(finetune_saving, "load", lambda folder: (teacher, processor, record))
    monkeypatch.setattr(checkpoints, "names", lambda folder: ["larger"])
    with pytest.raises(BadInput, match="another encoder than its student"):
        finetune_saving.load_teacher(CONFIG, student, processor, tmp_path)
    short = replace(processor, image_tokens=3)
    monkeypatch.setattr(finetune_saving, "load", lambda folder: (school()[0], short, record))
    with pytest.raises(BadInput, match="another number of image vectors"):
        finetune_saving.load_teacher(CONFIG, student, processor, tmp_path)
