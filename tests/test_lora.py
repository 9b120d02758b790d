"""LoRA: the identity at first, peft's sums by hand, merged, saved, refused; the share that learns."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import (
    TARGETS,
    load_adapter,
    lora_linear,
    lora_parameters,
    merge,
    save_adapter,
    unfreeze_as_released,
    with_lora,
)
from ctvlm_lib.vlm.lora_counts import CLAIMED_PERCENT, lora_table, qwen_config, qwen_on_meta, trainable_share
from ctvlm_lib.vlm.projector import QWEN_WIDTHS

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": None, "pad_token_id": 0,
    "bos_token_id": None,
}  # fmt: skip


def decoder(tied: bool = True, seed: int = 0, **sizes) -> Qwen2ForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes, tie_word_embeddings=tied))
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.ndim == 2:
                tensor.mul_(5)
    return made.eval()


def words() -> torch.Tensor:
    return torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=words()).logits


def answers(model) -> torch.Tensor:
    ids = words()
    return model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)


@torch.no_grad()
def trained(model, size: float = 0.2):
    """As if training had moved everything that learns."""
    draw = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    return model


@pytest.mark.parametrize("targets", TARGETS)
def test_lora_starts_as_the_identity(targets):
    plain = decoder()
    expected = logits(plain)
    assert torch.equal(logits(with_lora(plain, targets=targets)), expected)


def test_lora_by_hand_equals_pefts():
    model = trained(with_lora(decoder(), rank=3, alpha=7))
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    by_hand = lora_linear(x, layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, 7, 3)
    with torch.no_grad():
        torch.testing.assert_close(by_hand, layer.eval()(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(by_hand, x @ layer.weight.T)


def test_only_adapters_learn():
    model = with_lora(decoder())
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(p) for p in lora_parameters(model)}
    assert len(learning) == 2 * 2 * 7  # A and B, two blocks, seven matrices


def test_the_same_seed_draws_the_same_matrices():
    state = torch.random.get_rng_state()
    one, same, other = (lora_parameters(with_lora(decoder(), seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_answers_are_the_same(tied):
    model = trained(with_lora(decoder(tied), train_norms=True, train_also=("embed_tokens",)))
    before, said = logits(model), answers(model)
    plain = merge(model)
    assert isinstance(plain, Qwen2ForCausalLM)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    scale = float(before.abs().max())
    torch.testing.assert_close(logits(plain) / scale, before / scale, rtol=0, atol=1e-5)  # of the largest logit
    assert torch.equal(answers(plain), said)
    assert not torch.equal(answers(decoder(tied)), said)


@pytest.mark.parametrize("also", [(), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_adapter_gives_the_same_logits(tmp_path, tied, norms, also):
    model = trained(with_lora(decoder(tied), train_norms=norms, train_also=also))
    save_adapter(model, tmp_path / "a")
    again = load_adapter(decoder(tied), tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert not any(p.requires_grad for p in again.parameters())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    further = load_adapter(decoder(tied), tmp_path / "a", trainable=True)
    assert {name for name, p in further.named_parameters() if p.requires_grad} == learning


def test_a_saved_adapter_names_no_path_and_keeps_other_files(tmp_path):
    base = decoder()
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    (tmp_path / "notes.txt").write_text("kept")
    save_adapter(with_lora(base, train_norms=True), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "notes.txt", "adapter_config.json", "adapter_model.safetensors", "base.json", "trained_also.safetensors",
    }  # fmt: skip
    for file in tmp_path.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    save_adapter(with_lora(decoder()), tmp_path)
    assert not (tmp_path / "trained_also.safetensors").exists()


@pytest.mark.parametrize(
    ("size", "value"),
    [("hidden_size", 64), ("vocab_size", 65), ("num_hidden_layers", 3), ("intermediate_size", 64)],
)
def test_an_adapter_for_another_base_is_refused(tmp_path, size, value):
    save_adapter(with_lora(decoder(), rank=2), tmp_path)
    with pytest.raises(BadInput, match=f"another decoder.*{size} {SIZES[size]}, not {value}"):
        load_adapter(decoder(**{size: value}), tmp_path)


def test_an_adapter_for_another_family_is_refused(tmp_path):
    save_adapter(with_lora(decoder(), rank=2), tmp_path)
    with pytest.raises(BadInput, match="model_type qwen2, not llama"):
        load_adapter(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path)


@pytest.mark.parametrize("name", ["base.json", "adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused(tmp_path, name):
    save_adapter(with_lora(decoder(), rank=2), tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(BadInput, match="can't be"):
        load_adapter(decoder(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match=f"holds no {name}"):
        load_adapter(decoder(), tmp_path)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "trained_also.safetensors"])
@pytest.mark.parametrize("more", [False, True])
def test_an_adapter_with_other_tensors_is_refused(tmp_path, file, more):
    save_adapter(with_lora(decoder(), rank=2, train_norms=True), tmp_path)
    tensors = load_file(tmp_path / file)
    if more:
        tensors["another.weight"] = torch.zeros(2)
    elif file.startswith("adapter"):
        tensors.pop(min(tensors))
    else:
        tensors = {f"{name}.x": tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / file)
    with pytest.raises(BadInput, match="lacks tensors or has others"):
        load_adapter(decoder(), tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "everything"}, "attention \\+ MLP"),
        ({"targets": ("c_attn",)}, "q_proj"),
        ({"targets": ()}, "linear layers"),
        ({"rank": 0}, "1 or more"),
        ({"train_also": ("vision_tower",)}, "no module"),
    ],
)
def test_what_isnt_there_is_refused(options, says):
    with pytest.raises(BadInput, match=says):
        with_lora(decoder(), **options)


def test_norms_learn_when_asked():
    plain = with_lora(decoder(), train_norms=True)
    names = {n for n, p in plain.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert len(names) == 2 * 2 + 1
    assert all(name.endswith("norm.weight") for name in names)


def test_unfreezing_as_released_lets_four_parts_learn():
    parts = torch.nn.Module()
    parts.encoder, parts.projector = torch.nn.Linear(3, 3).requires_grad_(False), torch.nn.Linear(3, 3)
    parts.decoder = with_lora(decoder(tied=False))
    before = trainable_share(parts).trainable
    unfreeze_as_released(parts)
    base = parts.decoder.get_base_model()
    assert all(p.requires_grad for m in (parts.encoder, base.model.embed_tokens, base.lm_head) for p in m.parameters())
    assert not base.model.layers[0].mlp.up_proj.base_layer.weight.requires_grad
    assert trainable_share(parts).trainable - before == 12 + 2 * 64 * 32


@pytest.fixture(scope="module")
def table():
    return lora_table()


@pytest.mark.parametrize(
    ("name", "adapters_m", "all_linear", "attention"),
    [
        ("Qwen2.5-0.5B", 8.798, 1.75, 0.44), ("Qwen2.5-1.5B", 18.46, 1.18, 0.28),
        ("Qwen2.5-3B", 29.93, 0.96, 0.24), ("Qwen2.5-7B", 40.37, 0.53, 0.13),
    ],
)  # fmt: skip
def test_shares_of_the_decoder_are_those_computed_from_the_sizes(table, name, adapters_m, all_linear, attention):
    rows = table[table["decoder"] == name].set_index("what learns")
    both = rows.loc["LoRA on attention + MLP"]
    assert both["trainable, M"] == pytest.approx(adapters_m, abs=0.006)
    assert both["of the decoder, %"] == all_linear
    assert rows.loc["LoRA on attention", "of the decoder, %"] == attention


def test_a_rank_16_adapter_has_16_numbers_for_each_row_and_column(table):
    config = qwen_config("Qwen2.5-1.5B")
    d, inner = config.hidden_size, config.intermediate_size
    kv = d // config.num_attention_heads * config.num_key_value_heads
    block = 2 * (d + d) + 2 * (d + kv) + 3 * (d + inner)
    row = table[(table["decoder"] == "Qwen2.5-1.5B") & (table["what learns"] == "LoRA on attention + MLP")]
    assert row["trainable, M"].item() == round(16 * block * config.num_hidden_layers / 1e6, 3)


def test_the_claimed_share_needs_the_projector_and_the_norms_of_the_smallest(table):
    claimed = table[table["rounds to the claim"] == True]  # noqa: E712
    assert list(zip(claimed["decoder"], claimed["what learns"], strict=True)) == [
        ("Qwen2.5-0.5B", "LoRA + projector + norms")
    ]
    middle = table[(table["decoder"] == "Qwen2.5-1.5B") & ~table["what learns"].str.contains("released|all of")]
    assert middle["share, %"].max() < CLAIMED_PERCENT - 0.5


@pytest.mark.parametrize(("name", "billions"), [("Qwen2.5-0.5B", 0.49), ("Qwen2.5-1.5B", 1.54), ("Qwen2.5-3B", 3.09)])
def test_decoders_of_shapes_have_the_published_sizes(name, billions):
    """0.49, 1.54 and 3.09 B parameters: the model cards of Qwen2.5."""
    made = qwen_on_meta(name)
    assert round(trainable_share(made).total / 1e9, 2) == billions
    assert made.config.hidden_size == QWEN_WIDTHS[name]
    assert made.device.type == "meta"
