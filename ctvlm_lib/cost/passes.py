"""A decoder's passes, counted on shapes: reading a question, one token of its answer, a step of LoRA.

Decoders are built of one layer and of two, and the rest follows. The meta device holds them, so none takes memory.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ctvlm_lib.cost.measure import operations
from ctvlm_lib.vlm import memory
from ctvlm_lib.vlm.lora import with_lora


def by_layers(config: PretrainedConfig, count: Callable[[PretrainedConfig], int]) -> int:
    """Count something of a decoder of many layers by one of a single layer and one of two: each further is alike."""
    one, two = (count(memory.with_layers(config, layers)) for layers in (1, 2))
    return one + (config.num_hidden_layers - 1) * (two - one)


def question(config: PretrainedConfig, tokens: int) -> int:
    """Operations that read so many tokens, with the logits that their answer begins with."""
    decoder, embeddings = _on_meta(config), _embeddings(config, tokens)
    with torch.no_grad():
        return operations(lambda: decoder(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1))


def token(config: PretrainedConfig, tokens: int) -> int:
    """One token of the answer, which sees all that was read."""
    decoder = _on_meta(config)
    with torch.no_grad():
        read = decoder(inputs_embeds=_embeddings(config, tokens), use_cache=True, logits_to_keep=1)
        one = _embeddings(config, 1)
        return operations(lambda: decoder(inputs_embeds=one, past_key_values=read.past_key_values))


def step(config: PretrainedConfig, tokens: int, rank: int) -> int:
    """Forward and backward pass of one row, where LoRA learns; nothing below the first adapter needs a gradient."""
    decoder = with_lora(_on_meta(config), rank).train()
    labels = torch.empty(1, tokens, dtype=torch.long, device="meta")
    seen = torch.empty(1, 1, tokens, tokens, device="meta")  # given, because transformers would look into it
    row = {"inputs_embeds": _embeddings(config, tokens), "attention_mask": seen, "labels": labels}
    return operations(lambda: decoder(**row, use_cache=False).loss.backward())


def _on_meta(config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def _embeddings(config: PretrainedConfig, tokens: int) -> torch.Tensor:
    return torch.empty(1, tokens, config.hidden_size, device="meta")
