"""Finetuning: packed questions, kept features, two stages, frozen parts, resuming. About 8 s on one core."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_finetune import lessons, record, school
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.training_checkpoint import moving
from ctvlm_lib.vlm import finetune_saving
from ctvlm_lib.vlm.feature_cache import FeatureCache, _in_16_bits
from ctvlm_lib.vlm.finetune import Finetuning, build, finetune, prepare
from ctvlm_lib.vlm.finetune_loss import Patience, answer_loss, held_out_loss
from ctvlm_lib.vlm.lessons import IGNORED, Drawn, Lesson, Lessons
from ctvlm_lib.vlm.lora import lora_parameters
from ctvlm_lib.vlm.projector_merged import merged

CONFIG = Finetuning(projector_steps=3, lora_steps=4, pictures=4, words=60, rank=2, alpha=4, dropout=0.1,
                    checkpoint_every=2)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def weights(module) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model.", "").replace(".base_layer", ""): tensor.clone()
            for name, tensor in module.state_dict().items()}  # fmt: skip


def same(before: dict, module) -> bool:
    after = weights(module)
    return all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_packed_questions_have_the_loss_that_they_have_one_by_one():
    model, processor, taught, kept = school()
    drawn = taught.draw(np.random.default_rng(0), 4, 200)
    packed = answer_loss(model, taught.pack(drawn), kept.take([one.key for one in drawn]))["nll"]
    total = count = 0.0
    by_key = {lesson.key: lesson.records for lesson in lessons()}
    for one in drawn:
        for question in by_key[one.key]:
            batch = processor.of_records([question], None)
            learnt = int((batch["labels"] != IGNORED).sum())
            total += float(model(**batch, features=kept.take([one.key])).loss.detach()) * learnt
            count += learnt
    assert float(packed.detach()) == pytest.approx(total / count, rel=1e-5)  # float32, another order of sums


def test_a_question_does_not_feel_what_is_packed_before_it():
    model, _, taught, kept = school()
    key, words = taught.rows[0]
    features, losses = kept.take([key]), []
    for before in words[:2]:
        rows = taught.pack([Drawn(key, (before, words[2]))])
        labels = rows.labels.clone()
        labels[:, : len(taught.image) + len(before.ids)] = IGNORED
        losses.append(float(answer_loss(model, rows._replace(labels=labels), features)["nll"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_are_filled_to_their_room_and_never_beyond_it():
    _, _, taught, _ = school()
    for one in taught.draw(np.random.default_rng(1), 6, 40):
        assert sum(words.cost for words in one.words) <= 40 or len(one.words) == 1


def test_every_condition_draws_the_same_questions():
    _, processor, _, _ = school()
    styles = [
        Lessons(processor, [Lesson(one.key, tuple(r.worded(style) for r in one.records)) for one in lessons()])
        for style in ("plain", "box")
    ]
    draws = [taught.draw(np.random.default_rng(2), 6, 40) for taught in styles]
    answers = [[(one.key, [w.ids[w.start :] for w in one.words]) for one in drawn] for drawn in draws]
    assert answers[0] == answers[1]


def test_frozen_parts_are_the_same_bits_after_both_stages():
    model, _, taught, kept = school()
    before = {name: weights(getattr(model, name)) for name in ("encoder", "projector", "decoder")}
    curves = finetune(model, taught, kept, CONFIG, progress=False)
    assert [len(curve) for curve in curves.values()] == [3, 4]
    assert list(curves) == ["projector", "LoRA"]
    assert same(before["encoder"], model.encoder)
    assert same(before["decoder"], model.decoder)
    assert not same(before["projector"], model.projector)
    assert all(bool(b.any()) for b in lora_parameters(model))


def test_only_the_projector_learns_in_the_first_stage():
    model, _, taught, kept = school()
    before = weights(model.decoder)
    finetune(model, taught, kept, replace(CONFIG, lora_steps=0), progress=False)
    assert same(before, model.decoder)
    assert not lora_parameters(model)


def test_norms_learn_with_the_switch_alone():
    for switch in (False, True):
        model, _, taught, kept = school()
        before = {name: t for name, t in weights(model.decoder).items() if "norm" in name}
        finetune(model, taught, kept, replace(CONFIG, train_norms=switch), progress=False)
        assert same(before, model.decoder) is not switch


def test_from_scratch_all_of_the_decoder_learns_and_nothing_is_called_lora():
    model, _, taught, kept = school()
    before = {name: weights(getattr(model, name)) for name in ("encoder", "decoder")}
    curves = finetune(model, taught, kept, replace(CONFIG, from_scratch=True), progress=False)
    assert list(curves) == ["all weights"]
    assert len(curves["all weights"]) == 7
    assert same(before["encoder"], model.encoder)
    assert not any(torch.equal(t, weights(model.decoder)[name]) for name, t in before["decoder"].items())
    assert not lora_parameters(model)


def test_a_run_that_was_killed_and_taken_up_has_the_same_losses(tmp_path):
    whole = finetune(*_parts(school()), CONFIG, progress=False)

    rows = []

    def kill(row):
        rows.append(row)
        if len(rows) == 6:  # in the second stage, one step behind a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(*_parts(school()), CONFIG, folder=tmp_path, on_step=kill, progress=False)
    resumed = finetune(*_parts(school()), CONFIG, folder=tmp_path, progress=False)
    for stage, curve in whole.items():
        assert [row["loss"] for row in curve] == [row["loss"] for row in resumed[stage]]


def test_the_loss_falls():
    curves = finetune(*_parts(school()), replace(CONFIG, projector_steps=20, lora_steps=20, pictures=6), progress=False)
    curve = [row["loss"] for rows in curves.values() for row in rows]
    assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])


def test_focal_loss_and_penalty_are_parts_of_their_own():
    model, _, taught, kept = school()
    config = replace(CONFIG, focal_gamma=2.0, l2=1e-2)
    curves = finetune(model, taught, kept, config, progress=False)
    assert {"closed", "open"} <= set(curves["projector"][0])
    assert "penalty" not in curves["projector"][0]
    penalty = 1e-2 * sum(float((m.detach() ** 2).sum()) for m in lora_parameters(model))
    assert curves["LoRA"][-1]["penalty"] == pytest.approx(penalty, rel=0.2)  # the last step still moved the matrices
    drawn = taught.draw(np.random.default_rng(0), 4, 60)
    rows, features = taught.pack(drawn), kept.take([one.key for one in drawn])
    plain = answer_loss(model, rows, features)["nll"].detach()
    gamma0 = {name: float(part.detach()) for name, part in answer_loss(model, rows, features, focal_gamma=0.0).items()}
    share = float((rows.closed & (rows.labels != IGNORED)).sum() / (rows.labels != IGNORED).sum())
    assert float(plain) == pytest.approx(float(share * gamma0["closed"] + (1 - share) * gamma0["open"]), rel=1e-4)


def test_patience_ends_training_when_the_held_out_loss_rises():
    model, _, taught, kept = school()
    wait = Patience(taught, kept, every=1, looks=2)
    wait.seen = [0.0]  # nothing is ever lower
    curves = finetune(model, taught, kept, replace(CONFIG, lora_steps=9), stop=wait, progress=False)
    assert len(curves["LoRA"]) == 2
    assert wait.seen[1] == pytest.approx(held_out_loss(model, taught, kept), rel=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-30, 38))
def test_kept_features_have_eleven_binary_digits_at_any_size(seed, power):
    stream = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    kept, scale = _in_16_bits(stream)
    largest = stream.abs().amax(dim=2, keepdim=True)
    assert bool(((kept * scale - stream).abs() <= largest * 2.0**-11).all())


def test_an_empty_token_is_kept_as_zeros():
    kept, scale = _in_16_bits(torch.zeros(1, 2, 3))
    assert torch.equal(kept * scale, torch.zeros(1, 2, 3))


def test_kept_features_are_those_of_the_encoder_and_survive_the_disk(tmp_path):
    model, _, _, kept = school()
    again = FeatureCache.load(kept.save(tmp_path / "kept.safetensors"))
    one, other = kept.take(["p3", "p1", "p3"]), again.take(["p3", "p1", "p3"])
    assert torch.equal(one.low, other.low)
    assert torch.equal(one.high[0], one.high[2])
    assert one.source == other.source == model.encoder_id()


def test_features_of_another_encoder_are_refused():
    _, _, taught, kept = school()
    model, *_ = school(seed=1)
    with pytest.raises(BadInput, match="made by encoder"):
        finetune(model, taught, kept, CONFIG, progress=False)


def test_a_picture_that_is_not_kept_is_named():
    model, processor, _, kept = school()
    more = Lessons(processor, lessons(7))
    with pytest.raises(BadInput, match="p6 isn't among the 6 kept pictures"):
        finetune(model, more, kept, CONFIG, progress=False)


def test_an_encoder_that_may_still_learn_keeps_nothing():
    model, *_ = school()
    model.freeze(encoder=False)
    with pytest.raises(BadInput, match="freeze it"):
        FeatureCache.of(model, ["x"], lambda key: np.zeros((1, 16, 32, 32), np.float32))


def test_the_shipped_parts_are_tuned_stored_and_loaded_alike(tmp_path):
    options = (("low_tokens", (32, 16)), ("high_tokens", (8, 8)))
    config = Finetuning(
        projector_options=options, projector_steps=1, lora_steps=1, pictures=2, words=40, train_norms=True
    )
    model, processor = build(config)
    taught = Lessons(processor, lessons(2))
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 64, 64)).astype(np.float32)
    kept = FeatureCache.of(model, ["p0", "p1"], lambda key: picture[int(key[1])])
    finetune(model, taught, kept, config, progress=False)
    target = finetune_saving.save(tmp_path / "tuned", model, config, {"seed": 0})
    loaded, _, record = finetune_saving.load(target)
    assert Finetuning.from_dict(record["finetuning"]) == config
    assert target.joinpath("model.safetensors").stat().st_size < 600_000  # bytes; neither encoder nor decoder
    # stored in 16 bits
    assert held_out_loss(loaded, taught, kept) == pytest.approx(held_out_loss(model, taught, kept), rel=1e-2)
    assert moving(prepare(loaded, "projector", config)).keys() != moving(model).keys()


@pytest.mark.parametrize("kind", ["SSA", "MSSA"])
def test_slice_attention_is_tuned_stored_and_loaded_and_leaves_the_decoder_alone(kind, tmp_path):
    config = Finetuning(projector="merged", projector_steps=1, lora_steps=2, pictures=2, words=40, slice_attention=kind)
    model, processor = build(config)
    before, taught = weights(model.decoder), Lessons(processor, lessons(2))
    noise = torch.rand(2, 3, 32, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = FeatureCache.of(model, ["p0", "p1"], lambda key: noise[int(key[1])].numpy())
    finetune(model, taught, kept, config, progress=False)
    assert same(before, model.decoder)
    learnt = [name for name, tensor in moving(model).items() if name.startswith("slice_attention") and tensor.any()]
    assert len(learnt) == (10 if kind == "MSSA" else 0)  # SSA has no weights; of MSSA's two blocks five each, R too
    target = finetune_saving.save(tmp_path / "tuned", model, config, {"seed": 0})
    loaded, _, _ = finetune_saving.load(target)
    assert held_out_loss(loaded, taught, kept) == pytest.approx(held_out_loss(model, taught, kept), rel=1e-2)  # 16 bits
    without, _ = build(replace(config, slice_attention=""))
    drawn = taught.pack([taught.rows[0]])
    one, other = (
        float(answer_loss(m, drawn, kept.take(["p0"]))["nll"].detach()) for m in (build(config)[0], without)
    )
    assert (one == other) == (kind == "MSSA")  # MSSA starts as nothing


def test_merging_keeps_neighbours_together_and_loses_nothing():
    grid = torch.arange(4 * 4 * 2 * 3, dtype=torch.float32).view(1, 4, 4, 2, 3)
    made = merged((32, 3), (5, 6), hidden_size=8, grid=(4, 4, 2), block=(2, 2, 1))
    blocks = made.merge(grid.flatten(1, 3))
    assert blocks.shape == (1, 8, 12)
    assert torch.equal(blocks[0, 3].view(2, 2, 3), grid[0, 0:2, 2:4, 1])  # block (0, 1, 1) of (2, 2, 2)
    assert torch.equal(blocks.sort().values.flatten().sort().values, grid.flatten())
    assert made(grid.flatten(1, 3), torch.zeros(1, 5, 6)).shape == (1, made.tokens, 8) == (1, 13, 8)


def test_a_grid_that_blocks_do_not_fill_is_refused():
    with pytest.raises(BadInput, match="blocks that divide"):
        merged((27, 3), (5, 6), hidden_size=8, grid=(3, 3, 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"pictures": 0}, "pictures"), ({"projector_steps": 0, "lora_steps": 0}, "one of them must be 1"),
     ({"from_scratch": True, "l2": 0.1}, "penalty on LoRA")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        replace(CONFIG, **wrong)


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(BadInput, match="'ranks'"):
        Finetuning.from_dict({"ranks": 3})


def _parts(made):
    model, _, taught, kept = made
    return model, taught, kept


def test_reports_have_a_mean_of_their_own():
    model, processor, _, kept = school()
    report = replace(record(0, "a mass in the liver", "Write a report."), kind="report", form="open")
    key, others = lessons(2)[0].key, lessons(2)[1]
    taught = Lessons(processor, [Lesson(key, (report,)), others])
    config = replace(CONFIG, projector_steps=1, lora_steps=1, pictures=2, report_weight=0.5)
    with torch.no_grad():
        alone = float(answer_loss(model, taught.pack([taught.rows[0]]), kept.take([key]))["nll"])
    row = finetune(model, taught, kept, config, progress=False)["projector"][0]
    assert row["report"] == pytest.approx(0.5 * alone, rel=1e-5)
    assert row["loss"] == pytest.approx(row["nll"] + row["report"], rel=1e-6)
