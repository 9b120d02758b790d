"""Med3DVLM's checkpoint layout: what is read from it, and what is said of a file that doesn't fit."""

import json

import helpers_encoder
import pytest
import torch
from helpers_vlm import QUESTIONS, louder, tokenizer
from safetensors.torch import save_file
from transformers import Qwen2Config

from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import CtvlmProcessor, with_placeholder
from ctvlm_lib.vlm.released import load_released, translate

SIZE = (64, 64, 128)
WORDS = with_placeholder(tokenizer())
QWEN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 200, "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip


def encoder():
    """The released stem, blocks and names, with few channels."""
    return variant_config("nano", channels=(4, 4, 8, 8, 16))


@pytest.fixture(scope="module")
def original():
    """A model as it left the released training: vocabulary cut to the tokenizer, the placeholder its last row."""
    decoder = Qwen2Config(**QWEN, vocab_size=len(WORDS), rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    config = CtvlmConfig(
        encoder(), decoder, size_dhw_vox=SIZE, image_token_id=len(WORDS) - 1, splice="as released", image_tokens=1
    )
    config.image_tokens = count_image_tokens(config)
    model = CtvlmModel.with_seed(config, 3).eval()
    louder(model.decoder)
    helpers_encoder.lived_in(model.encoder)
    return model


def their_names(model):
    """The state dict under the names that the released code gives its parts."""
    parts = {
        "model.vision_tower.vision_tower.": model.encoder, "model.mm_projector.": model.projector,
        "model.": model.decoder.model, "lm_head.": model.decoder.lm_head,
    }  # fmt: skip
    return {prefix + name: t.clone() for prefix, part in parts.items() for name, t in part.state_dict().items()}


def write(folder, tensors, **config):
    """Two shards, as a large model is stored, and a config.json of a class of its own, older than transformers 5."""
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in some}, folder / f"model-{number:05}-of-00002.safetensors")
    own = {"model_type": "vlm_qwen", "architectures": ["VLMQwenForCausalLM"], "rope_theta": 1e6, "mm_mlp_depth": 2}
    content = QWEN | own | {"vocab_size": 600, "tie_word_embeddings": False, "torch_dtype": "bfloat16"} | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def load(folder, **options):
    return load_released(folder, encoder=encoder(), size_dhw_vox=SIZE, **options)


def test_the_names_are_the_published_ones(original):
    """Names and ranks as read in the released files' listing and code."""
    names = their_names(original)
    expected = {
        "model.vision_tower.vision_tower.encoder.s0.0.0.c1.0.weight": (4, 1, 7, 1, 1),
        "model.vision_tower.vision_tower.encoder.s1.0.scale": (4,),
        "model.mm_projector.low_mixer.0.ln1.weight": (8,),
        "model.mm_projector.low_mixer.1.mlp2.mm_projector.1.1.weight": (32, 32),
        "model.mm_projector.high_mixer.0.mlp2.mm_projector.0.weight": (16, 16),
        "model.embed_tokens.weight": (len(WORDS), 32),
        "model.layers.1.self_attn.q_proj.bias": (32,),
        "model.norm.weight": (32,),
        "lm_head.weight": (len(WORDS), 32),
    }
    assert {name: tuple(names[name].shape) for name in expected} == expected


def test_the_real_sizes_are_the_published_ones():
    """Med3DVLM-Qwen-2.5-7B, shapes only: the projector for 3584, 151,666 words, nothing tied."""
    decoder = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151666,
    }  # fmt: skip
    config = CtvlmConfig(None, decoder, image_token_id=151665, splice="as released")
    assert count_image_tokens(config) == config.image_tokens == 256
    with torch.device("meta"):
        names = {name: tuple(t.shape) for name, t in their_names(CtvlmModel(config)).items()}
    published = {
        "low_mixer.0.mlp1.mm_projector.0.weight": (192, 256), "low_mixer.0.mlp2.mm_projector.0.weight": (1792, 384),
        "low_mixer.1.mlp1.mm_projector.0.weight": (128, 192), "low_mixer.1.mlp2.mm_projector.1.1.weight": (3584, 3584),
        "high_mixer.0.mlp1.mm_projector.0.weight": (64, 32), "high_mixer.1.mlp1.mm_projector.0.weight": (128, 64),
    }  # fmt: skip
    assert {name: names["model.mm_projector." + name] for name in published} == published
    assert names["model.embed_tokens.weight"] == names["lm_head.weight"] == (151666, 3584)
    assert sum(name.startswith("model.vision_tower.vision_tower.encoder.") for name in names) == 426
    tensors, renamed, ignored = translate({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    with torch.device("meta"):
        assert set(tensors) == set(CtvlmModel(config).state_dict())
    assert len(renamed) == len(names) and not ignored


def test_a_checkpoint_in_the_released_layout_gives_the_same_answers(original, tmp_path):
    model, fit = load(write(tmp_path, their_names(original)))
    assert fit.exact and len(fit.matched) == len(fit.renamed) == len(original.state_dict())
    assert model.config.splice == "as released" and model.config.image_token_id == len(WORDS) - 1
    assert model.config.decoder.rope_parameters["rope_theta"] == 1e6 and not model.training
    processor = CtvlmProcessor.for_config(model.config, WORDS)
    images = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    batch = processor(images.numpy(), QUESTIONS[:2])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, original(**batch).logits)
    assert torch.equal(model.generate(**batch, max_new_tokens=5), original.generate(**batch, max_new_tokens=5))


def test_what_was_imported_is_saved_and_loaded_as_ours(original, tmp_path):
    model = load(write(tmp_path / "theirs", their_names(original))).model
    model.save_pretrained(tmp_path / "ours")
    back = CtvlmModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in original.state_dict().items())


def test_weights_stay_in_their_16_bits_unless_told(original, tmp_path):
    stored = {k: t.bfloat16() if t.is_floating_point() else t for k, t in their_names(original).items()}
    folder = write(tmp_path, stored)
    assert {p.dtype for p in load(folder).model.parameters()} == {torch.bfloat16}
    whole = load(folder, dtype=torch.float32).model.state_dict()
    for name, tensor in original.state_dict().items():
        expected = tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        assert torch.equal(whole[name], expected), name


def test_a_tied_decoder_needs_no_head_in_the_file(original, tmp_path):
    stored = their_names(original)
    del stored["lm_head.weight"]
    folder = write(tmp_path, stored, tie_word_embeddings=True)
    model, fit = load(folder)
    assert fit.complete and "writes with its embeddings" in fit.ignored["decoder.lm_head.weight"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    write(tmp_path, stored)
    with pytest.raises(BadInput, match=r"missing +1 +decoder.lm_head.weight"):
        load(folder)


def test_every_tensor_is_accounted_for(original, tmp_path):
    stored = their_names(original)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    stored["model.seg_projector.weight"] = torch.ones(2)
    stored["vision_decoder.weight"] = torch.ones(2)
    fit = load(write(tmp_path, stored)).fit
    assert fit.complete and not fit.exact
    assert set(fit.unexpected) == {"decoder.model.seg_projector.weight", "vision_decoder.weight"}
    assert list(fit.ignored) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert len(fit.matched) + len(fit.unexpected) + len(fit.ignored) == len(stored)
    assert "not expected" in fit.table() and "renamed" in fit.table()


def test_missing_and_misshaped_tensors_are_listed(original, tmp_path):
    stored = their_names(original)
    del stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.norm.weight"] = torch.ones(31)
    with pytest.raises(BadInput) as caught:
        load(write(tmp_path, stored))
    text = str(caught.value)
    assert "missing          1  decoder.model.layers.1.mlp.up_proj.weight" in text
    assert "decoder.model.norm.weight (31,), not (32,)" in text


def test_a_projector_of_another_decoder_is_named_as_the_reason(original, tmp_path):
    folder = write(tmp_path, their_names(original))
    with pytest.raises(BadInput, match="projector writes vectors of 32 and the decoder is 64 wide"):
        load(folder, decoder=Qwen2Config(**QWEN | {"hidden_size": 64}))


@pytest.mark.parametrize(
    ("leave_out", "sentence"),
    [("vision_tower", "holds no vision tower"), ("mm_projector", "check the decoder's configuration")],
)
def test_a_part_that_is_missing_is_named(original, tmp_path, leave_out, sentence):
    stored = {name: t for name, t in their_names(original).items() if leave_out not in name}
    with pytest.raises(BadInput, match=sentence):
        load(write(tmp_path, stored))


def test_weights_that_cannot_be_used_are_refused(original, tmp_path):
    with pytest.raises(BadInput, match="there is no weights file"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="asked only in profile paper"):
        load("MagicXin/Med3DVLM-Qwen-2.5-7B")
    stored = their_names(original)
    stored["model.norm.weight"][0] = torch.nan
    folder = write(tmp_path / "nan", stored)
    with pytest.raises(BadInput, match="not finite.*norm.weight"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match="no configuration of the decoder"):
        load(folder)
