"""Encoder, projector and decoder as one: the same answers cached, batched, from kept features and after saving."""

import helpers_encoder
import helpers_vlm
import pytest
import torch
from helpers_finetune import record
from helpers_vlm import ANSWERS, QUESTIONS, SIZE, decoder_config, encoder_config, tiny, volumes
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import vlm_arms
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.closed_head import ClosedHead
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens
from ctvlm_lib.vlm.finetune import build
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.model import CtvlmModel, Features
from ctvlm_lib.vlm.processor import CtvlmProcessor
from ctvlm_lib.vlm.projector_merged import Merged

KINDS = ["qwen2", "llama"]


@pytest.fixture(scope="module")
def models():
    """One model of each kind, for tests that change nothing."""
    return {kind: tiny(kind) for kind in KINDS}


@torch.no_grad()
def uncached(model, batch, steps):
    """The plain way: the whole sequence again for each new token, of one row."""
    embeddings = model.embed(**batch)
    table, new = model.get_input_embeddings(), []
    for _ in range(steps):
        logits = model.decoder(inputs_embeds=embeddings, use_cache=False).logits[0, -1]
        new.append(int(logits.argmax()))
        if new[-1] == model.config.eos_token_id:
            break
        embeddings = torch.cat([embeddings, table(torch.tensor([[new[-1]]]))], dim=1)
    return new


@pytest.mark.parametrize("kind", KINDS)
def test_cached_batch_equals_uncached_rows_token_by_token(models, kind):
    model, processor = models[kind]
    images = volumes(3)
    batch = processor(images.numpy(), QUESTIONS)
    assert (batch["attention_mask"] == 0).any()
    answers = model.generate(**batch, max_new_tokens=10).tolist()
    for k, question in enumerate(QUESTIONS):
        alone = processor(images[k : k + 1].numpy(), [question])
        plain = uncached(model, alone, 10)
        assert answers[k][: len(plain)] == plain
        assert model.generate(**alone, max_new_tokens=10)[0].tolist() == plain
    assert len({tuple(answer) for answer in answers}) == 3


def test_the_answer_depends_on_the_image_and_on_the_question(models):
    model, processor = models["qwen2"]
    batch = processor(volumes(2).numpy(), QUESTIONS[:1] * 2)
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
        other = model(**processor(volumes(2).numpy(), QUESTIONS[1:2] * 2)).logits[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert (logits - other).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_kept_features_give_the_very_same_results_as_volumes(models, kind):
    model, processor = models[kind]
    images = volumes(2)
    batch = processor(None, QUESTIONS[:2])
    with torch.no_grad():
        features = model.image_features(images)
        kept = Features(features.low.clone(), features.high.clone(), features.source)
        assert torch.equal(model(**batch, images=images).logits, model(**batch, features=kept).logits)
        assert torch.equal(model(**batch, images=images).logits, model(**batch, features=tuple(kept[:2])).logits)
    answers = model.generate(**batch, images=images, max_new_tokens=6)
    assert torch.equal(answers, model.generate(**batch, features=kept, max_new_tokens=6))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_answers_as_before(tmp_path, kind, tied):
    model, processor = tiny(kind, decoder={"tie_word_embeddings": tied}, splice="as released")
    helpers_encoder.lived_in(model.encoder)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    back = CtvlmModel.from_pretrained(tmp_path)
    batch = processor(volumes(2).numpy(), QUESTIONS[:2])
    assert back.config.to_dict() == model.config.to_dict()
    assert (tmp_path / "ctvlm_processor.json").is_file() and not back.training
    with torch.no_grad():
        assert torch.equal(back(**batch).logits, model(**batch).logits)
    head, embeddings = back.get_output_embeddings().weight, back.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) == tied
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    assert len(stored & {"decoder.lm_head.weight", "decoder.model.embed_tokens.weight"}) == (1 if tied else 2)


def test_the_workbooks_own_model_answers_as_before_with_and_without_a_head(tmp_path):
    usual = vlm_arms.recipe_of("vlm-B-contour-small")
    for recipe in (usual, vlm_arms.recipe_of("vlm-B-contour-small-focal-head")):
        model, processor = build(recipe)
        draw = torch.Generator().manual_seed(3)
        if model.closed_head is not None:
            with torch.no_grad():
                model.closed_head.weight.normal_(generator=draw)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        back, its = CtvlmModel.from_pretrained(tmp_path).freeze().eval(), CtvlmProcessor.from_pretrained(tmp_path)
        assert isinstance(back.projector, Merged) and back.config.to_dict() == model.config.to_dict()
        asked = [[record(0, "liver", "Which organ is it?", ("liver", "spleen")), record(0, "Yes")]]
        picture = torch.rand(1, 3, *recipe.size_dhw_vox, generator=draw) * 2 - 1
        batch = processor.of_records([asked[0][0]], None, answers=False)
        with torch.no_grad():
            one, other = (m.image_features(picture) for m in (model, back))
            tokens = model.generate(batch["input_ids"], features=one, max_new_tokens=6)
            assert torch.equal(tokens, back.generate(batch["input_ids"], features=other, max_new_tokens=6))
            said, again = log_likelihoods(model, processor, asked, one), log_likelihoods(back, its, asked, other)
        assert all(torch.equal(a, b) for a, b in zip(said[0], again[0], strict=True))
    assert back.closed_head.answers == vlm_arms.CLOSED_ANSWERS
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = CtvlmModel.from_pretrained(tmp_path / "half").closed_head
    assert half(torch.ones(1, model.config.hidden_size)).dtype == torch.float32


def test_a_head_that_was_put_in_later_is_saved_and_weights_without_a_part_are_refused(tmp_path):
    model, _ = tiny()
    model.closed_head = ClosedHead(model.config.hidden_size, ("Yes", "No"))
    model.save_pretrained(tmp_path)
    assert CtvlmModel.from_pretrained(tmp_path).closed_head.answers == ("Yes", "No")
    tiny()[0].config.save_pretrained(tmp_path)  # of a model without a head
    with pytest.raises(BadInput, match="2 weights that its config.json has no part for, such as closed_head.bias"):
        CtvlmModel.from_pretrained(tmp_path)
    model.decoder = with_lora(model.decoder, rank=2)
    with pytest.raises(BadInput, match="finetune_saving.save, or merge them"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_saved_in_16_bits_is_half_the_size_and_the_same_to_rounding(tmp_path, tied):
    model, _ = tiny(decoder={"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    back = CtvlmModel.from_pretrained(tmp_path / "half", dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(back[name], expected), name


def test_a_saved_configuration_names_no_place_on_the_machine(tmp_path):
    tiny()[0].decoder.save_pretrained(tmp_path / "decoder")
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    model = CtvlmModel.assemble(DCFormer.with_seed(encoder_config(), 0), decoder, size_dhw_vox=SIZE, image_token_id=326)
    model.save_pretrained(tmp_path / "one")
    CtvlmModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = ((tmp_path / name / "config.json").read_text() for name in ("one", "two"))
    assert str(tmp_path) not in one and one == two


def test_saving_again_leaves_no_shard_of_before(tmp_path):
    model, _ = tiny()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    sharded = CtvlmModel.from_pretrained(tmp_path).state_dict()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    whole = CtvlmModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)


def test_frozen_parts_stay_bit_identical_through_a_step_in_train_mode():
    model, processor = tiny()
    model.freeze(encoder=True, projector=False, decoder=True).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not model.encoder.training and not model.decoder.training and model.projector.training
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    model(**processor(volumes(3).numpy(), QUESTIONS, ANSWERS)).loss.backward()
    optimizer.step()
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"projector"}
    projector = {name: p.grad for name, p in model.projector.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in projector.values())


def test_an_encoder_that_is_not_frozen_learns_and_its_norms_move():
    model, processor = tiny()
    model.freeze(encoder=True).freeze(encoder=False, projector=None, decoder=None).train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model(**processor(volumes(3).numpy(), QUESTIONS, ANSWERS)).loss.backward()
    moved = {n for n, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_generating_in_train_mode_is_generating_in_eval_mode():
    model, processor = tiny()
    batch = processor(volumes(2).numpy(), QUESTIONS[:2])
    expected, before = model.generate(**batch, max_new_tokens=5), model.encoder_id()
    model.train()
    model.decoder.eval()
    assert torch.equal(model.generate(**batch, max_new_tokens=5), expected)
    assert model.training and model.encoder.training and not model.decoder.training
    assert model.encoder_id() == before


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logit(models, side):
    model, processor = models["qwen2"]
    images = volumes(1)
    alone = processor(images.numpy(), QUESTIONS[:1])
    pad = (5, 0) if side == "left" else (0, 5)
    padded = {k: torch.nn.functional.pad(alone[k], pad) for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**alone).logits
        logits = model(**padded, images=images).logits
    kept = logits[:, 5:] if side == "left" else logits[:, :-5]
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-4)


def test_decoders_of_absolute_positions_and_transformer_encoders_fit_too():
    encoder = {"kind": "vit3d", "variant": "phantom", "size_dhw_vox": SIZE, "hidden_size": 16, "heads": 2, "layers": 1,
               "mlp_size": 16}  # fmt: skip
    decoder = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 200, "vocab_size": 420}
    config = CtvlmConfig(encoder, decoder | {"eos_token_id": 0}, size_dhw_vox=SIZE, image_token_id=326)
    config.image_tokens = count_image_tokens(config)
    model, (_, processor) = CtvlmModel.with_seed(config).eval(), tiny()
    processor = type(processor).for_config(config, processor.tokenizer, scale="cohort")
    batch = processor(volumes(2).numpy(), QUESTIONS[:2])
    answers = model.generate(**batch, max_new_tokens=4).tolist()
    plain = [uncached(model, processor(volumes(2)[k : k + 1].numpy(), [QUESTIONS[k]]), 4) for k in range(2)]
    assert [answer[: len(row)] for answer, row in zip(answers, plain, strict=True)] == plain
    alone = processor(volumes(1).numpy(), QUESTIONS[:1])
    padded = {k: torch.nn.functional.pad(alone[k], (5, 0)) for k in ("input_ids", "attention_mask")}
    with torch.no_grad():  # here a place counted from the padding would be another embedding
        logits = model(**padded, images=alone["images"]).logits[:, 5:]
        torch.testing.assert_close(logits, model(**alone).logits, rtol=1e-4, atol=1e-4)


def test_assembling_keeps_the_given_weights_and_draws_the_projector_from_its_seed():
    encoder = DCFormer.with_seed(encoder_config(), 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        decoder = AutoModelForCausalLM.from_config(decoder_config())
    before = {**{f"e{k}": v.clone() for k, v in encoder.state_dict().items()}}
    before |= {f"d{k}": v.clone() for k, v in decoder.state_dict().items()}
    state = torch.random.get_rng_state()
    made = [CtvlmModel.assemble(encoder, decoder, size_dhw_vox=SIZE, image_token_id=500, seed=s) for s in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    after = {f"e{k}": v for k, v in encoder.state_dict().items()} | {
        f"d{k}": v for k, v in decoder.state_dict().items()
    }
    assert all(torch.equal(after[name], before[name]) for name in before)
    first = [next(p for p in model.projector.parameters() if p.ndim == 2) for model in made]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_a_placeholder_beyond_the_embeddings_needs_no_resizing(models):
    model, processor = models["qwen2"]
    batch = processor(volumes(1).numpy(), QUESTIONS[:1])
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, 1000)
    with torch.no_grad():
        expected = model(**batch).logits
        model.config.image_token_id = 1000
        try:
            assert torch.equal(model(ids, batch["attention_mask"], batch["images"]).logits, expected)
        finally:
            model.config.image_token_id = processor.image_token_id


def test_words_alone_make_a_blind_reader(models):
    model, processor = models["qwen2"]
    ids = torch.tensor([processor.tokenizer(QUESTIONS[0])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model.decoder(ids).logits)


# what is refused, and the sentence that says so
BAD = {
    "size": (lambda m, b: {**b, "images": b["images"][..., :16]}, r"\(16, 32, 16\) voxels .* built for \(16, 32, 32\)"),
    "channels": (lambda m, b: {**b, "images": b["images"].repeat(1, 3, 1, 1, 1)}, r"reads 1 channel\(s\), got 3"),
    "NaN": (lambda m, b: {**b, "images": b["images"] / 0}, "values that are NaN or infinite, in row 0 first"),
    "placeholders": (lambda m, b: {**b, "input_ids": b["input_ids"][:, 1:]}, "placeholders"),
    "no image": (lambda m, b: {k: v for k, v in b.items() if k != "images"}, "neither images nor features"),
    "both": (lambda m, b: {**b, "features": m.image_features(b["images"])}, "both images and features"),
    "one image": (lambda m, b: {**b, "images": b["images"][:1]}, "one image a row"),
    "length": (lambda m, b: {"input_ids": torch.ones(1, 300, dtype=torch.long)}, "300 tokens.*positions for 200"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_inputs_that_do_not_fit_are_refused(models, what):
    model, processor = models["qwen2"]
    batch = processor(volumes(2).numpy(), QUESTIONS[1:2] * 2)
    change, sentence = BAD[what]
    with pytest.raises(BadInput, match=sentence):
        model(**change(model, batch))


def test_features_of_another_encoder_are_refused_by_shape_and_by_their_mark():
    model, processor = tiny()
    batch = processor(None, QUESTIONS[:1])
    with pytest.raises(BadInput, match=r"\(1, 64, 9\).*gives \(\(64, 8\), \(4, 12\)\)"):
        model(**batch, features=(torch.zeros(1, 64, 9), torch.zeros(1, 4, 12)))
    other = tiny(seed=1)[0].freeze()
    features = other.image_features(volumes(1))
    assert features.source
    with pytest.raises(BadInput, match=f"made by encoder {features.source} and this model's is"):
        model(**batch, features=features)
    model.encoder.load_state_dict(other.encoder.state_dict())
    model(**batch, features=features)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    with pytest.raises(BadInput, match="make them again"):
        model(**batch, features=features)
    with pytest.raises(BadInput, match="low features hold 1 values"):
        low = features.low.clone()
        low[0, 0, 0] = torch.nan
        model(**batch, features=(low, features.high))


def test_parts_that_do_not_fit_are_refused():
    decoder = AutoModelForCausalLM.from_config(decoder_config())
    encoder = DCFormer.with_seed(encoder_config(), 0)
    narrow = tiny(decoder={"hidden_size": 16})[0].projector
    with pytest.raises(BadInput, match="the decoder is 32 wide.*train one with hidden_size=32"):
        CtvlmModel(CtvlmConfig(encoder.config, decoder.config, size_dhw_vox=SIZE), projector=narrow)
    with pytest.raises(BadInput, match="the low stream is"):
        CtvlmModel(CtvlmConfig(encoder.config, decoder.config, size_dhw_vox=(32, 32, 32)), projector=narrow)
    with pytest.raises(BadInput, match="multiples of"):
        CtvlmModel.assemble(encoder, decoder, size_dhw_vox=(16, 30, 32), image_token_id=1)
    with pytest.raises(BadInput, match="projector is 'mixr'; choose one of 'mixer'"):
        CtvlmModel.assemble(encoder, decoder, size_dhw_vox=SIZE, image_token_id=1, projector="mixr")
    with pytest.raises(BadInput, match="beyond the decoder's 420 embeddings"):
        CtvlmModel.assemble(encoder, decoder, size_dhw_vox=SIZE, image_token_id=500, splice="as released")
    config = CtvlmConfig(encoder.config, decoder.config, size_dhw_vox=SIZE, image_tokens=7)
    with pytest.raises(BadInput, match=r"gives (\d+) image vectors and image_tokens is 7; give \1"):
        CtvlmModel(config)


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(BadInput, match="30.*multiple of 4"):
        tiny(decoder={"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3})


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"encoder": {"kind": "unet"}}, "kind 'dcformer' or 'vit3d'"),
        ({"encoder": {"model_type": "vit"}}, "no encoder here has model_type 'vit'"),
        ({"decoder": {"vocab_size": 5}}, "names its model_type"),
        ({"decoder": {"model_type": "qwen99"}}, "knows no decoder 'qwen99'"),
        ({"splice": "append"}, "splice is 'append'"),
        ({"size_dhw_vox": (64, 64)}, "three sides"),
        ({"encoder": {"kind": "vit3d"}, "size_dhw_vox": (64, 256, 256)}, "positions for"),
    ],
)
def test_a_configuration_names_what_it_does_not_know(parts, sentence):
    with pytest.raises(BadInput, match=sentence):
        CtvlmConfig(**{"decoder": decoder_config()} | parts)


def test_damaged_and_incomplete_folders_are_refused(tmp_path):
    model, _ = tiny()
    with pytest.raises(BadInput, match="holds no config.json"):
        CtvlmModel.from_pretrained(tmp_path)
    with torch.no_grad():
        next(model.projector.parameters()).fill_(torch.inf)
    model.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="not finite"):
        CtvlmModel.from_pretrained(tmp_path)
    with pytest.raises(BadInput, match="not finite"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "projector" not in k})
    with pytest.raises(BadInput, match="lacks .* weights of its model"):
        CtvlmModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(BadInput, match="can't be read as a model"):
        CtvlmModel.from_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        (tmp_path / "file").touch()
        model.save_pretrained(tmp_path / "file")


def test_generation_refuses_right_padding_and_too_many_tokens(models):
    model, processor = models["qwen2"]
    batch = processor(volumes(2).numpy(), QUESTIONS[:2], ANSWERS[:2])
    batch.pop("labels")
    with pytest.raises(BadInput, match="padded on the right"):
        model.generate(**batch)
    with pytest.raises(BadInput, match="positions for 200"):
        model.generate(**processor(volumes(1).numpy(), QUESTIONS[:1]), max_new_tokens=190)


def test_helpers_draw_nothing_from_the_global_state():
    state = torch.random.get_rng_state()
    helpers_vlm.tiny()
    assert torch.equal(state, torch.random.get_rng_state())
