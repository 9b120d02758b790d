"""What a decoder holds in memory, part by part, counted on shapes alone: no weights are needed, and no GPU.

Three things are left out, so that a sum is what is needed at least: the encoder's own activations (it is frozen, and
keeps none for the backward pass), gradients on their way back, and what a library reserves beside tensors.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.lora_counts import part_sizes, qwen_config
from ctvlm_lib.vlm.projector import QWEN_WIDTHS
from ctvlm_lib.vlm.slice_attention import KINDS
from ctvlm_lib.vlm.slice_heads import MultiHeadSliceAttention

if TYPE_CHECKING:
    import pandas

GB, MB = 1e9, 1e6
IN_16_BITS, IN_TRAINING = 2, 16  # bytes a number: frozen; learning (weight, gradient, AdamW's two means, 32 bits each)
ATTENTION = "ctvlm_shapes"


def kept_for_backward(
    config: Qwen2Config, batch: int, length: int, rank: int = 16, checkpointing: bool = False
) -> dict[str, int]:
    """What a LoRA step keeps between forward and backward pass, in 16 bits, beside the weights.

    Autograd is asked, on tensors without numbers. One layer and two are run, and the rest follows: each further layer
    keeps what the second did.

    Args:
        config: of the decoder.
        batch: rows.
        length: tokens of a row, image vectors included.
        rank: of adapters on attention and MLP, with the papers' dropout.
        checkpointing: keep each layer's input alone, and compute the rest again.

    Returns:
        bytes: "all", and "logits", which are a part of it.

    Raises:
        BadInput: no rows or no tokens.
    """
    if batch < 1 or length < 1:
        raise BadInput(f"a batch of {batch} rows of {length} tokens keeps nothing; give 1 or more of each")
    one, two = (_kept(config, layers, batch, length, rank, checkpointing) for layers in (1, 2))
    further = config.num_hidden_layers - 1
    return {part: one[part] + further * (two[part] - one[part]) for part in one}


def cache_bytes(config: Qwen2Config, tokens: int) -> int:
    """Keys and values that a decoder keeps while it answers one question, in 16 bits; ``tokens`` with the image's."""
    head = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * tokens * IN_16_BITS


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same decoder's configuration with another number of layers; the given one stays as it is."""
    return type(config).from_dict(config.to_dict() | {"num_hidden_layers": layers, "layer_types": None})


def recompute(decoder: PreTrainedModel, wanted: bool = True) -> None:
    """Let a decoder keep each layer's input alone for the backward pass, and compute the rest again; or no longer."""
    # transformers is about to rename both
    if not wanted:
        (getattr(decoder, "activation_checkpointing_disable", None) or decoder.gradient_checkpointing_disable)()
        return
    enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def memory_table(batch: int = 4, length: int = 384, rank: int = 16) -> "pandas.DataFrame":
    """Memory of LoRA training by part, for the four Qwen2.5 decoders.

    Args:
        batch, length, rank: of a step, see :func:`kept_for_backward`.

    Returns:
        GB (10⁹ bytes): decoder, DCFormer-small and mixer, frozen and in 16 bits; the adapters with gradient and
        optimiser; what is kept for the backward pass, the logits' part of it, and the whole with checkpointing; sums of
        both ways. And MB of the cache of one question of ``length`` tokens.
    """
    import pandas

    return pandas.DataFrame([_row(name, batch, length, rank) for name in QWEN_WIDTHS])


def slice_cache_bytes(kind: str, width: int, image_tokens: int, words: int) -> int:
    """What one block of slice attention keeps while one question is answered, in 16 bits.

    SSA keeps the image vectors, MSSA keys and values of all tokens, for all heads: it has no grouped ones.

    Raises:
        BadInput: no such kind.
    """
    if kind not in KINDS:
        raise BadInput(f"kind is {kind!r}; choose one of {', '.join(map(repr, KINDS))}")
    return IN_16_BITS * width * (image_tokens if kind == "SSA" else 2 * (image_tokens + words))


def slice_attention_table(image_tokens: int = 256, words: int = 128, heads: int = 4) -> "pandas.DataFrame":
    """What slice attention adds in front of one block, for the four decoders.

    Args:
        image_tokens: image vectors, each counted as a slice.
        words: tokens beside them.
        heads: h of MSSA.

    Returns:
        columns decoder, MSSA's weights in millions (SSA has none), of which R in thousands, LoRA's on the whole decoder
        for comparison; and MB of 16-bit numbers kept while one question is answered: by the block itself, by SSA, by
        MSSA.
    """
    import pandas

    rows = []
    for name, width in QWEN_WIDTHS.items():
        with torch.device("meta"):
            block = MultiHeadSliceAttention(width, heads, image_tokens)
        config, adapters = qwen_config(name), part_sizes(name, 16)
        kept = {"own": cache_bytes(config, image_tokens + words) / config.num_hidden_layers}
        kept |= {kind: slice_cache_bytes(kind, width, image_tokens, words) for kind in KINDS}
        rows.append(
            {
                "decoder": name,
                "MSSA, M": round(sum(p.numel() for p in block.parameters()) / 1e6, 2),
                "of which R, k": round(block.relative.numel() / 1e3, 1),
                "LoRA, all layers, M": round((adapters["attention adapters"] + adapters["MLP adapters"]) / 1e6, 2),
                **{f"kept, {what}, MB": round(size / MB, 2) for what, size in kept.items()},
            }
        )
    return pandas.DataFrame(rows)


class _Flash(torch.autograd.Function):
    """Keeps what flash attention does: its inputs, its result, and one number for each head and token."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask=None, **_) -> tuple[Tensor, None]:
    """``(B, heads, length, d)`` each, to ``(B, length, heads, d)``."""
    return _Flash.apply(query, key, value).transpose(1, 2).contiguous(), None


def _kept(config: Qwen2Config, layers: int, batch: int, length: int, rank: int, checkpointing: bool) -> dict[str, int]:
    """The same for a decoder of so many layers; what is kept twice counts once."""
    decoder = _shapes(config, layers, rank)
    if checkpointing:
        recompute(decoder)
    weights = {tensor.untyped_storage() for tensor in (*decoder.parameters(), *decoder.buffers())}
    sizes = {"all": {}, "logits": {}}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # two views have the same one
        if storage not in weights:
            sizes["all"][storage] = storage.nbytes()
            if tensor.shape[-1:] == (config.vocab_size,):
                sizes["logits"][storage] = storage.nbytes()
        return tensor

    shape = batch, length, config.hidden_size
    embeddings = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    labels = torch.empty(shape[:2], dtype=torch.long, device="meta")
    with saved_tensors_hooks(note, lambda tensor: tensor):
        decoder(inputs_embeds=embeddings, labels=labels, use_cache=False)
    return {part: sum(found.values()) for part, found in sizes.items()}


def _shapes(config: Qwen2Config, layers: int, rank: int) -> nn.Module:
    """A decoder with adapters, in training, without numbers."""
    AttentionInterface.register(ATTENTION, _attention)
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(with_layers(config, layers), attn_implementation=ATTENTION)
    return with_lora(decoder, rank).to(torch.bfloat16).train()


def _row(name: str, batch: int, length: int, rank: int) -> dict:
    config, parts = qwen_config(name), part_sizes(name, rank)
    adapters = (parts["attention adapters"] + parts["MLP adapters"]) * IN_TRAINING
    frozen = {part: parts[part] * IN_16_BITS for part in ("decoder", "encoder", "projector")}
    kept, less = (kept_for_backward(config, batch, length, rank, again) for again in (False, True))
    fixed = sum(frozen.values()) + adapters
    sizes = {
        "decoder": frozen["decoder"], "encoder + projector": frozen["encoder"] + frozen["projector"],
        "adapters": adapters, "kept for backward": kept["all"], "of which logits": kept["logits"],
        "kept, checkpointing": less["all"], "sum": fixed + kept["all"], "sum, checkpointing": fixed + less["all"],
    }  # fmt: skip
    cache = {"cache, MB": round(cache_bytes(config, length) / MB, 1)}
    return {"model with": name} | {part: round(size / GB, 2) for part, size in sizes.items()} | cache
