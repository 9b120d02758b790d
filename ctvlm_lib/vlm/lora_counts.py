"""Which share of a vision–language model LoRA trains, counted for the four Qwen2.5 decoders and each reading."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import ATTENTION, is_norm, with_lora
from ctvlm_lib.vlm.projector import QWEN_WIDTHS, parameters

if TYPE_CHECKING:
    import pandas

CLAIMED_PERCENT = 2.4
CLAIMED_FOR = ("Qwen2.5-0.5B", "Qwen2.5-1.5B")  # contour.txt §3.2 ("in the smallest configuration"), §5
_SHAPES = {  # layers, heads, key-value heads, width inside the MLP, vocabulary: Qwen2.5's published configurations
    "Qwen2.5-0.5B": (24, 14, 2, 4864, 151936),
    "Qwen2.5-1.5B": (28, 12, 2, 8960, 151936),
    "Qwen2.5-3B": (36, 16, 2, 11008, 151936),
    "Qwen2.5-7B": (28, 28, 4, 18944, 152064),
}
_ALL = ("attention adapters", "MLP adapters")
READINGS = {  # what learns: adapters, and what beside them
    "LoRA on attention": (_ALL[:1], ()),
    "LoRA on attention + MLP": (_ALL, ()),
    "LoRA + norms": (_ALL, ("norms",)),  # dualbox.txt §3.2
    "LoRA + projector": (_ALL, ("projector",)),  # med3dvlm.txt §3.2.3
    "LoRA + projector + norms": (_ALL, ("projector", "norms")),
    "LoRA, unfrozen as released": (_ALL, ("encoder", "projector", "embeddings")),
    "LoRA + all of the decoder": (_ALL, ("decoder",)),  # contour.txt §3.2: "the decoder weights plus"
}


class Share(NamedTuple):
    """Parameters that learn, all parameters, and the percentage."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """100 · trainable / total."""
        return 100 * self.trainable / self.total


def trainable_share(model: nn.Module) -> Share:
    """Count a model's parameters, tied ones once; works on the meta device too."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Share(sum(n for n, learns in counts if learns), sum(n for n, _ in counts))


def qwen_config(name: str = "Qwen2.5-0.5B") -> Qwen2Config:
    """Shape of a Qwen2.5 decoder, without asking a hub.

    Raises:
        BadInput: none of the four.
    """
    if name not in _SHAPES:
        raise BadInput(f"{name!r} is no decoder of the papers; choose one of {', '.join(map(repr, _SHAPES))}")
    layers, heads, key_value_heads, inner, vocabulary = _SHAPES[name]
    return Qwen2Config(
        hidden_size=QWEN_WIDTHS[name], num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, intermediate_size=inner, vocab_size=vocabulary,
        tie_word_embeddings=name != "Qwen2.5-7B",
    )  # fmt: skip


def qwen_on_meta(name: str = "Qwen2.5-0.5B") -> PreTrainedModel:
    """A Qwen2.5 decoder of shapes alone: it takes no memory and can't be run."""
    with torch.device("meta"):
        return Qwen2ForCausalLM(qwen_config(name))


def lora_table(rank: int = 16) -> "pandas.DataFrame":
    """Trainable share under each reading of the contour paper, for each decoder, beside its claim of 2.4 %.

    The whole model is counted: DCFormer-small, the mixer made for the decoder, the decoder and its adapters; the
    closed-ended head and slice attention, whose sizes the paper doesn't give, are not.

    Args:
        rank: of the adapters.

    Returns:
        columns decoder, what learns, trainable and total in millions, share in %, share of the decoder with its
        adapters in % (where nothing else learns), claimed in %, and whether the share rounds to the claim.
    """
    import pandas

    rows = [row for name in _SHAPES for row in _rows(name, rank)]
    return pandas.DataFrame(rows)


def _rows(name: str, rank: int) -> list[dict]:
    parts = part_sizes(name, rank)
    claimed = CLAIMED_PERCENT if name in CLAIMED_FOR else None
    rows = []
    for reading, (adapters, others) in READINGS.items():
        adapted = parts["decoder"] + sum(parts[part] for part in adapters)
        learns = sum(parts[part] for part in (*adapters, *others))
        share = Share(learns, adapted + parts["encoder"] + parts["projector"])
        inside = not {"encoder", "projector"} & {*others}
        rows.append(
            {
                "decoder": name,
                "what learns": reading,
                "trainable, M": round(share.trainable / 1e6, 3),
                "total, M": round(share.total / 1e6, 1),
                "share, %": round(share.percent, 2),
                "of the decoder, %": round(Share(learns, adapted).percent, 2) if inside else None,
                "claimed, %": claimed,
                "rounds to the claim": None if claimed is None else round(share.percent, 1) == claimed,
            }
        )
    return rows


@lru_cache
def part_sizes(name: str, rank: int = 16) -> Mapping[str, int]:
    """Parameters of each part of a vision–language model around a Qwen2.5 decoder, counted without memory.

    Returns:
        encoder, projector (the mixer for this decoder), decoder; of the decoder norms and embeddings, tied ones once;
        and, beside it, "attention adapters" and "MLP adapters".
    """
    decoder = qwen_on_meta(name)
    with torch.device("meta"):
        encoder = DCFormer(variant_config("small"))
    tables = {id(p): p.numel() for p in (decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight)}
    counts = {
        "encoder": trainable_share(encoder).total,
        "projector": parameters("mixer", QWEN_WIDTHS[name]),
        "decoder": trainable_share(decoder).total,
        "norms": sum(p.numel() for m in decoder.modules() if is_norm(m) for p in m.parameters()),
        "embeddings": sum(tables.values()),
    }
    adapted = with_lora(decoder, rank=rank, targets="attention + MLP")
    for own, parameter in adapted.named_parameters():
        if ".lora_" in own:
            kind = "attention adapters" if any(f".{t}." in own for t in ATTENTION) else "MLP adapters"
            counts[kind] = counts.get(kind, 0) + parameter.numel()
    return MappingProxyType(counts)  # it is kept: nobody may write to it
