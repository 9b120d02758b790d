"""What is counted on shapes is what real tensors take."""

import pytest
import torch
from helpers_vlm import decoder_config, tiny, volumes
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, DynamicCache

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.lora_counts import qwen_config
from ctvlm_lib.vlm.memory import cache_bytes, kept_for_backward, memory_table, slice_attention_table, slice_cache_bytes
from ctvlm_lib.vlm.projector import QWEN_WIDTHS
from ctvlm_lib.vlm.slice_attention import attach
from ctvlm_lib.vlm.splice import image_positions

ROWS, LENGTH = 3, 11


def really_kept(config, checkpointing: bool) -> dict[str, int]:
    """The same step on a CPU, every storage that autograd holds counted once."""
    decoder = with_lora(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")).to(torch.bfloat16).train()
    if checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    own = {t.untyped_storage().data_ptr() for t in (*decoder.parameters(), *decoder.buffers())}
    kept = {"all": {}, "logits": {}}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            for part in ("all", "logits") if tensor.shape[-1:] == (config.vocab_size,) else ("all",):
                kept[part][storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    x = torch.zeros(ROWS, LENGTH, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        decoder(inputs_embeds=x, labels=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False)
    return {part: sum(size for size, _ in found.values()) for part, found in kept.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shapes_alone_tell_what_a_real_step_keeps(checkpointing):
    """Four layers against one and two that were run; a head of its own for each query, as grouped ones are copied."""
    config = decoder_config(num_hidden_layers=4, num_key_value_heads=4)
    counted = kept_for_backward(config, ROWS, LENGTH, checkpointing=checkpointing)
    assert counted == really_kept(config, checkpointing)
    assert counted["logits"] == ROWS * LENGTH * config.vocab_size * 4  # in 32 bits, for the softmax


def test_counting_leaves_the_configuration_alone():
    config = decoder_config(num_hidden_layers=3)
    before = config.to_dict()
    kept_for_backward(config, 1, 4)
    assert config.to_dict() == before


def test_more_is_kept_for_more_rows_and_less_with_checkpointing():
    config = qwen_config("Qwen2.5-0.5B")
    one, four = (kept_for_backward(config, rows, 64)["all"] for rows in (1, 4))
    assert 3.9 < four / one <= 4  # cosines of positions are kept once
    assert kept_for_backward(config, 4, 64, checkpointing=True)["all"] < four / 2


def test_the_cache_is_as_large_as_a_real_one():
    config = decoder_config(num_hidden_layers=3)
    cache = DynamicCache()
    with torch.no_grad():
        AutoModelForCausalLM.from_config(config).half()(torch.zeros(1, 7, dtype=torch.long), past_key_values=cache)
    real = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(config, 7) == real


@pytest.mark.parametrize("kind", ["SSA", "MSSA"])
def test_slice_attention_keeps_what_is_said(kind):
    model, processor = tiny()
    batch = processor(volumes(1).numpy(), ["Is there a mass?"])
    positions = image_positions(batch["input_ids"], processor.image_token_id, processor.image_tokens)
    attach(model.decoder, kind, first=1).image_at(positions)
    cache = DynamicCache()
    with torch.no_grad():
        model(**batch, past_key_values=cache)
    memory = cache.layers[model.config.decoder.num_hidden_layers]
    real = sum(t.numel() for t in (memory.keys, memory.values)) * 2
    words = positions.shape[1] - processor.image_tokens
    assert slice_cache_bytes(kind, model.config.hidden_size, processor.image_tokens, words) == real


def test_the_memory_table_adds_up():
    table = memory_table(batch=1, length=16).set_index("model with")
    assert list(table.index) == list(QWEN_WIDTHS)
    parts = table["decoder"] + table["encoder + projector"] + table["adapters"]
    assert (parts + table["kept for backward"] - table["sum"]).abs().max() < 0.03  # five numbers of two decimals
    assert (parts + table["kept, checkpointing"] - table["sum, checkpointing"]).abs().max() < 0.03
    assert table.loc["Qwen2.5-7B", "decoder"] > 13  # contour.txt §1: "more than 13 GB in half-precision"


def test_slice_attention_is_counted_for_each_decoder():
    table = slice_attention_table(image_tokens=6, words=3, heads=2).set_index("decoder")
    for name, width in QWEN_WIDTHS.items():
        assert table.loc[name, "MSSA, M"] == round((4 * width**2 + 2 * 11) / 1e6, 2)  # four matrices, and R
        assert table.loc[name, "kept, SSA, MB"] == round(6 * width * 2 / 1e6, 2)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(BadInput, match="a batch of 0 rows of 8 tokens keeps nothing"):
        kept_for_backward(decoder_config(), 0, 8)
    with pytest.raises(BadInput, match="kind is 'RSA'; choose one of 'SSA', 'MSSA'"):
        slice_cache_bytes("RSA", 8, 1, 1)
