"""Parameters of the decoders that the papers' tables name, counted from their published shapes without any weights."""

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora_counts import qwen_on_meta

# width, blocks, heads, key-value heads, width inside the MLP, vocabulary
_LLAMA = {
    "MedLLaMA-13B": (5120, 40, 40, 40, 13824, 32000),  # LLaMA's own shape
    "LLaMA-2-7B": (4096, 32, 32, 32, 11008, 32000),
    "RadLlama-7B": (4096, 32, 32, 32, 11008, 32000),  # tuned from LLaMA-2
    "LLaMA-3.1-8B": (4096, 32, 32, 8, 14336, 128256),
    "LLaMA-3.1-70B": (8192, 80, 64, 8, 28672, 128256),
}
UVLM = "U-VLM decoder"
NAMES = (*_LLAMA, "Qwen2.5-3B", UVLM)
UVLM_VOCABULARY = 151_669  # the paper doesn't say; Qwen3's tokenizer, which has an image's marks among its words


@cache
def parameters(name: str) -> int:
    """Count a decoder's parameters, tied matrices once.

    Args:
        name: one of NAMES.

    Raises:
        BadInput: another name.
    """
    if name == UVLM:
        return sum(uvlm_parts().values())
    if name == "Qwen2.5-3B":
        return _count(qwen_on_meta(name))
    if name not in _LLAMA:
        raise BadInput(f"no decoder is called {name!r}; there are: {', '.join(NAMES)}")
    width, blocks, heads, kv, inside, vocabulary = _LLAMA[name]
    config = AutoConfig.for_model(
        "llama", hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=inside, vocab_size=vocabulary, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return _count(AutoModelForCausalLM.from_config(config))


def uvlm_parts(width: int = 512, blocks: int = 8, inside: int = 2048, vocabulary: int = UVLM_VOCABULARY) -> dict:
    """U-VLM's small decoder by parts: {"embeddings": …, "blocks": …}; one matrix reads and writes words.

    Source: uvlm.txt §3.1 (8 layers, 512 wide, 8 heads); what it leaves open from its released code.
    """
    with torch.device("meta"):
        attention = torch.nn.MultiheadAttention(width, 8)
        mlp = torch.nn.Sequential(torch.nn.Linear(width, inside), torch.nn.Linear(inside, width))
        norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        block = sum(map(_count, (attention, mlp, norms)))
        return {"embeddings": vocabulary * width, "blocks": blocks * block + _count(torch.nn.LayerNorm(width))}


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
