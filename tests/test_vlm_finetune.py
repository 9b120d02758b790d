"""Finetuning: packed questions, kept features, two stages, frozen parts, resuming. About 8 s on one core."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_finetune import ORGANS, lessons, record, school
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib import checkpoints
from ctvlm_lib.checkpoints import HELD_OUT
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training_checkpoint import moving
from ctvlm_lib.vlm import finetune as finetune_module
from ctvlm_lib.vlm import finetune_saving
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.closed_head import ClosedHead
from ctvlm_lib.vlm.feature_cache import FeatureCache, _in_16_bits
from ctvlm_lib.vlm.finetune import Finetuning, build, finetune, prepare
from ctvlm_lib.vlm.finetune_loss import Patience, answer_loss, held_out_loss, last_states
from ctvlm_lib.vlm.lessons import IGNORED, Drawn, Lesson, Lessons
from ctvlm_lib.vlm.lora import lora_parameters
from ctvlm_lib.vlm.packed import offered
from ctvlm_lib.vlm.projector_merged import merged
from ctvlm_lib.vlm.slice_attention import attach

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


def test_the_first_stage_may_have_steps_of_its_own_without_yes_no_questions(monkeypatch):
    model, _, taught, kept = school()
    assert any(one.yes_no for row in taught.rows for one in row.words)
    drawn, loss_of_step = [], finetune_module.loss_of_step
    monkeypatch.setattr(finetune_module, "loss_of_step", lambda network, lessons, features, batch, *rest: drawn.append(
        batch) or loss_of_step(network, lessons, features, batch, *rest))  # fmt: skip
    config = replace(CONFIG, projector_steps=2, lora_steps=3, projector_pictures=6, projector_yes_no=False, words=200)
    finetune(model, taught, kept, config, progress=False)
    assert [len(batch) for batch in drawn] == [6, 6, 4, 4, 4]
    asked = [{one.yes_no for row in batch for one in row.words} for batch in drawn]
    assert asked[:2] == [{False}] * 2 and all(True in some for some in asked[2:])
    yes_no = Lessons(school()[1], [Lesson("p0", (record(0, "Yes"),))])
    with pytest.raises(BadInput, match="set projector_yes_no to true"):
        yes_no.without_yes_no()


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


def test_the_balanced_focal_loss_equals_a_plain_loop_over_closed_answers_tokens():
    model, _, taught, kept = school()
    assert taught.counts == [sum(answer == r.answer for one in lessons() for r in one.records if r.form == "closed")
                             for answer in taught.answers]  # fmt: skip
    rarity = [1 / n for n in taught.counts]
    expected_alpha = [r * len(rarity) / sum(rarity) for r in rarity]
    assert taught.alpha.tolist() == pytest.approx(expected_alpha, rel=1e-6)
    drawn = taught.draw(np.random.default_rng(0), 4, 200)
    rows, features = taught.pack(drawn), kept.take([one.key for one in drawn])
    with torch.no_grad():
        found = float(answer_loss(model, rows, features, 2.0, alpha=taught.alpha)["closed"])
        states = last_states(model, rows, features)
        chance = model.get_output_embeddings()(states).float().softmax(-1)
    losses = []
    for k, one in enumerate(drawn):
        here = len(taught.image)
        for words in one.words:
            for place in range(here + words.start, here + len(words.ids)):
                p = float(chance[k, place - 1, words.ids[place - here]])
                if words.closed:
                    losses.append(-expected_alpha[words.answer] * (1 - p) ** 2 * np.log(p))
            here += len(words.ids)
    assert len(losses) > 8
    assert found == pytest.approx(np.mean(losses), rel=1e-4)
    assert found != pytest.approx(float(answer_loss(model, rows, features, 2.0)["closed"].detach()), rel=1e-2)


def test_weights_of_the_parts_reach_training():
    parts = {}
    for name, weights in {"1": {}, "other": {"closed_weight": 3.0, "open_weight": 0.5}}.items():
        config = replace(CONFIG, focal_gamma=2.0, class_balanced=True, projector_steps=1, lora_steps=0, **weights)
        parts[name] = finetune(*_parts(school()), config, progress=False)["projector"][0]
    assert parts["other"]["closed"] == pytest.approx(3 * parts["1"]["closed"], rel=1e-6)
    assert parts["other"]["open"] == pytest.approx(0.5 * parts["1"]["open"], rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"slice_attention": "MSSA"}])
def test_recomputed_layers_leave_losses_as_they_are_in_both_stages(options):
    curves, calls = {}, {}
    for checkpointing in (False, True):
        model, _, taught, kept = school()
        if options:
            model.slice_attention = attach(model.decoder, "MSSA", first=1)
        config, count = replace(CONFIG, checkpointing=checkpointing), Counter()
        norm = model.decoder.model.layers[1].post_attention_layernorm
        norm.register_forward_hook(lambda *_, count=count: count.update(["called"]))
        curves[checkpointing] = finetune(model, taught, kept, config, progress=False)
        calls[checkpointing] = count["called"]
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.decoder.modules())
        assert not model.training
    for stage, rows in curves[False].items():  # dropout is on in the second
        again = [row["loss"] for row in curves[True][stage]]
        assert again == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert calls[True] == 2 * calls[False] == 2 * (3 + 4)  # each layer once more, also while the decoder sleeps


def test_a_step_in_parts_has_the_losses_of_the_whole():
    config = replace(CONFIG, dropout=0.0, l2=1e-3, focal_gamma=2.0, class_balanced=True)
    whole = finetune(*_parts(school()), config, progress=False)
    parts = finetune(*_parts(school()), replace(config, accumulate=2), progress=False)
    for stage, rows in whole.items():
        for row, other in zip(rows, parts[stage], strict=True):
            assert {name: row[name] for name in row if name != "seconds"} == pytest.approx(
                {name: other[name] for name in other if name != "seconds"}, rel=2e-3
            )
    assert config.stages()[0][1].accumulate == 1 and replace(config, accumulate=2).stages()[1][1].accumulate == 2


def test_patience_in_the_recipe_ends_the_last_stage_early():
    model, processor, taught, kept = school()
    never = Lessons(processor, [Lesson("p0", (record(0, "quartz, vex, jump"),))])  # the less likely, the more is learnt
    config = replace(CONFIG, projector_steps=2, lora_steps=40, lora_lr=3e-2, patience=2, look_every=3)
    curves = finetune(model, taught, kept, config, held_out=(never, kept), progress=False)
    assert len(curves["projector"]) == 2
    assert 6 <= len(curves["LoRA"]) < 40 and len(curves["LoRA"]) % 3 == 0
    assert curves["LoRA"][-1]["stopped"]
    assert [row["step"] for row in curves[HELD_OUT]] == list(range(3, len(curves["LoRA"]) + 1, 3))
    with pytest.raises(BadInput, match="none were given"):
        finetune(*_parts(school()), config, progress=False)


def test_looking_at_held_out_patients_changes_nothing_and_is_kept_as_a_curve_of_its_own():
    model, processor, taught, kept = school()
    other = Lessons(processor, [Lesson("p0", (record(0, "quartz, vex, jump"),))])
    config = replace(CONFIG, projector_steps=1, lora_steps=4, dropout=0.0)
    plain = finetune(*_parts(school()), config, progress=False)
    seen = finetune(model, taught, kept, replace(config, look_every=2), held_out=(other, kept), progress=False)
    for stage, rows in plain.items():
        assert [row["loss"] for row in rows] == [row["loss"] for row in seen[stage]]
    assert [row["step"] for row in seen[HELD_OUT]] == [2, 4]
    assert seen[HELD_OUT][-1]["loss"] == held_out_loss(model, other, kept, words=config.words, batch=config.pictures)
    stored = checkpoints.circumstances(seen)["curves"]
    assert set(stored) == {"projector", "LoRA", HELD_OUT} and HELD_OUT not in stored["LoRA"][-1]


HEAD = replace(CONFIG, focal_gamma=2.0, class_balanced=True, head_answers=("Yes", "No", *ORGANS))


def headed(seed: int = 0):
    """The tiny model with a head that isn't at its start, and lessons that know its answers."""
    model, processor, _, kept = school()
    model.closed_head = ClosedHead(model.config.hidden_size, HEAD.head_answers)
    with torch.no_grad():
        model.closed_head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model, processor, Lessons(processor, lessons(), HEAD.head_answers), kept


def test_with_a_head_closed_answers_have_its_loss_and_open_ones_that_of_their_tokens():
    model, processor, taught, kept = headed()
    drawn = taught.draw(np.random.default_rng(0), 4, 200)
    with torch.no_grad():
        found = answer_loss(model, taught.pack(drawn), kept.take([one.key for one in drawn]), 2.0, alpha=taught.alpha)
    losses, by_key, features = [], {lesson.key: lesson.records for lesson in lessons()}, kept
    for one in drawn:
        for question in by_key[one.key]:
            if question.form == "closed":
                ids, start = processor.sequence(question.question, None, question.choices)
                embeddings = model.embed(torch.tensor([ids]), features=features.take([one.key]))
                state = model.decoder.model(inputs_embeds=embeddings)[0][0, start - 1]
                place = HEAD.head_answers.index(question.answer)
                p = float(model.closed_head(state).softmax(-1)[place].detach())
                losses.append(-float(taught.alpha[place]) * (1 - p) ** 2 * np.log(p))
    assert float(found["closed"]) == pytest.approx(np.mean(losses), rel=1e-4)
    without, _, plain, _ = school()
    rows = plain.pack(plain.draw(np.random.default_rng(0), 4, 200))
    expected = answer_loss(without, rows, kept.take([one.key for one in drawn]), 2.0)["open"].detach()
    torch.testing.assert_close(found["open"], expected)


def test_a_head_learns_and_answers_closed_questions_among_those_offered():
    model, processor, taught, kept = headed()
    config = replace(HEAD, projector_steps=40, lora_steps=40, pictures=6, projector_lr=1e-2)
    finetune(model, taught, kept, config, progress=False)
    asked = [[r for r in one.records if r.form == "closed"] for one in lessons()]
    likely = log_likelihoods(model, processor, asked, kept.take([one.key for one in lessons()]))
    right = [offered(r)[int(row.argmax())] == r.answer for group, rows in zip(asked, likely, strict=True)
             for r, row in zip(group, rows, strict=True)]  # fmt: skip
    assert np.mean(right) > 0.9
    assert all(float(row.exp().sum()) == pytest.approx(1, rel=1e-5) for rows in likely for row in rows)
    strange = replace(asked[0][1], choices=("liver", "moon"))
    with pytest.raises(BadInput, match="no class 'moon'"):
        log_likelihoods(model, processor, [[strange]], kept.take(["p0"]))


def test_a_step_in_parts_has_the_heads_loss_of_the_whole():
    rows = [finetune(*_parts(headed()), replace(HEAD, accumulate=n, lora_steps=0, projector_steps=2), progress=False)
            for n in (1, 2)]  # fmt: skip
    for one, other in zip(*(found["projector"] for found in rows), strict=True):
        assert one["closed"] == pytest.approx(other["closed"], rel=1e-4)


def test_a_head_is_built_stored_and_loaded_with_its_answers(tmp_path):
    config = replace(HEAD, projector="merged", projector_steps=1, lora_steps=1, pictures=2)
    model, processor = build(config)
    taught = Lessons(processor, lessons(2), config.head_answers)
    noise = torch.rand(2, 3, 32, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = FeatureCache.of(model, ["p0", "p1"], lambda key: noise[int(key[1])].numpy())
    finetune(model, taught, kept, config, progress=False)
    assert bool(model.closed_head.weight.any())
    loaded, _, _ = finetune_saving.load(finetune_saving.save(tmp_path / "tuned", model, config, {"seed": 0}))
    assert loaded.closed_head.answers == config.head_answers
    torch.testing.assert_close(loaded.closed_head.weight, model.closed_head.weight, rtol=1e-3, atol=1e-6)  # 16 bits
    assert held_out_loss(loaded, taught, kept) == pytest.approx(held_out_loss(model, taught, kept), rel=1e-2)


def test_lessons_that_a_head_cannot_answer_are_refused():
    model, processor, taught, kept = school()
    with pytest.raises(BadInput, match="answer is 'No', and head_answers doesn't name it"):
        Lessons(processor, lessons(), ("Yes", *ORGANS))
    with pytest.raises(BadInput, match="aren't the head's"):
        finetune(model, taught, kept, HEAD, progress=False)
    for answers in ((), ("Yes",), ("Yes", "Yes")):
        with pytest.raises(BadInput, match="at least two"):
            ClosedHead(8, answers)


def test_patience_ends_training_when_the_held_out_loss_rises():
    model, _, taught, kept = school()
    wait = Patience(taught, kept, every=1, looks=2)
    wait.seen = [0.0]  # nothing is ever lower
    curves = finetune(model, taught, kept, replace(CONFIG, lora_steps=9), stop=wait, progress=False)
    assert len(curves["LoRA"]) == 2
    assert wait.seen[2] == pytest.approx(held_out_loss(model, taught, kept), rel=1e-5)  # the second look is the last


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
     ({"from_scratch": True, "l2": 0.1}, "penalty on LoRA"), ({"accumulate": 3}, "3 equal parts"),
     ({"patience": -1}, "patience is -1"), ({"look_every": -1}, "look_every"), ({"patience": 2}, "set look_every"),
     ({"l2": -1.0}, "must not be negative"),
     ({"class_balanced": True}, "class_balanced needs"), ({"closed_weight": 2.0}, "set focal_gamma"),
     ({"open_weight": 0.0}, "open_weight needs"), ({"head_answers": ("Yes", "No")}, "head_answers needs"),
     ({"teacher": "x", "accumulate": 2}, "accumulate to 1"), ({"projector_pictures": -1}, "or 0, and a share"),
     ({"warmup_steps": -1}, "warmup_steps -1"), ({"warmup_share": 2}, "warmup_share 2"),
     ({"projector_pictures": 3, "accumulate": 2}, "3 pictures can't be computed in 2")],
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
