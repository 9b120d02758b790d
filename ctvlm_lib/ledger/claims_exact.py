"""Claims about parameters and memory, counted on shapes alone, and the registry of all that is computed for claims.

``COMPUTED`` maps each name that ``paper_claims.csv`` uses to a function of no arguments; :func:`compute` calls it once.
Token grids, lines and lists of classes are in ``claims_shapes``; what follows from the papers' own numbers in
``claims_arithmetic`` and ``claims_tables``.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, partial

import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import claims_arithmetic, claims_shapes, claims_tables, decoder_sizes
from ctvlm_lib.ledger.claims import said
from ctvlm_lib.ledger.claims_arithmetic import SIZES, Computed, computes
from ctvlm_lib.vlm import lora_counts, memory
from ctvlm_lib.vlm.projector import PROJECTORS, QWEN_WIDTHS, check_width

COMPUTED: dict[str, Callable[[], Computed]] = claims_arithmetic.ARITHMETIC
FILES = (claims_arithmetic, claims_tables, claims_shapes)  # each enters its functions when it is imported


@cache
def compute(name: str) -> Computed:
    """The number for a claim.

    Raises:
        BadInput: no such name.
    """
    if name not in COMPUTED:
        like = get_close_matches(name, COMPUTED, n=2, cutoff=0.4) or list(COMPUTED)[:2]
        raise BadInput(f"nothing computes {name!r}; did you mean {' or '.join(map(repr, like))}?")
    return COMPUTED[name]()


# parameters and memory, on shapes alone
@cache
def _shares():
    return lora_counts.lora_table().set_index(["decoder", "what learns"])


def _share(reading: str, size: str) -> Computed:
    row = _shares().loc[(f"Qwen2.5-{size}", reading)]
    return Computed(float(row["share, %"]), "%", f"{row['trainable, M']:.2f} of {row['total, M']:.1f} M parameters")


def _parts(size: str):
    return lora_counts.part_sizes(f"Qwen2.5-{size}", 16)


def _decoder(size: str) -> Computed:
    parts = _parts(size)
    how = f"{parts['decoder']:,} parameters, {parts['embeddings']:,} of them in embeddings and output matrix"
    return Computed(parts["decoder"] / 1e9, "B parameters", how)


def _weights_gb(size: str, parts: tuple[str, ...] = ("decoder",)) -> float:
    return sum(_parts(size)[part] for part in parts) * memory.IN_16_BITS / memory.GB


def _whole(size: str) -> Computed:
    gb = _weights_gb(size, ("encoder", "projector", "decoder"))
    return Computed(gb, "GB", "weights of encoder, mixer and decoder, 2 bytes each: what is needed at least")


for _reading in lora_counts.READINGS:
    computes(f"share learning, 0.5B: {_reading}")(partial(_share, _reading, "0.5B"))
for _reading in ("LoRA on attention + MLP", "LoRA + projector + norms"):
    computes(f"share learning, 1.5B: {_reading}")(partial(_share, _reading, "1.5B"))
for _size in (*SIZES, "7B"):
    computes(f"decoder {_size}")(partial(_decoder, _size))
for _size in SIZES[1:]:
    computes(f"16-bit weights of the {_size} model")(partial(_whole, _size))


@computes("7B decoder without embeddings")
def inner_7b() -> Computed:
    parts = _parts("7B")
    inner = (parts["decoder"] - parts["embeddings"]) / 1e9
    return Computed(inner, "B parameters", "all of Qwen2.5-7B but its embeddings and output matrix")


@computes("7B decoder in 16 bits")
def weights_7b() -> Computed:
    return Computed(_weights_gb("7B"), "GB", f"{_parts('7B')['decoder']:,} parameters of 2 bytes; 10⁹ bytes are a GB")


def _saved(choose: Callable) -> Computed:
    saved = {size: _weights_gb("7B") - _weights_gb(size) for size in SIZES}
    shown = ", ".join(f"{gb:.1f} with {size}" for size, gb in saved.items())
    return Computed(choose(saved.values()), "GB", f"decoder weights in 16 bits, less than 7B's by {shown}")


computes("weights saved, largest")(partial(_saved, max))
computes("weights saved, smallest")(partial(_saved, min))


@computes("13 GB less the 3B decoder")
def claimed_less_3b() -> Computed:
    claimed, large = said("contour", "7B decoder memory in half precision (more than)"), _weights_gb("3B")
    return Computed(claimed - large, "GB", f"{claimed:g} GB, the paper's bound for 7B, less {large:.2f} of 3B")


@computes("training memory of 1.5B, 4 rows of 512 tokens")
def training_memory() -> Computed:
    parts, kept = _parts("1.5B"), memory.kept_for_backward(lora_counts.qwen_config("Qwen2.5-1.5B"), 4, 512)
    adapters = (parts["attention adapters"] + parts["MLP adapters"]) * memory.IN_TRAINING
    gb = _whole("1.5B").value + (adapters + kept["all"]) / memory.GB
    return Computed(gb, "GB", "frozen weights, adapters with AdamW, and what autograd keeps without checkpointing")


@computes("Llama-3.1 decoder")
def llama() -> Computed:
    total = decoder_sizes.parameters("LLaMA-3.1-8B")
    return Computed(total / 1e9, "B parameters", f"{total:,} parameters of the smallest Llama-3.1, 8B")


@computes("U-VLM decoder")
def uvlm_decoder() -> Computed:
    parts = decoder_sizes.uvlm_parts()
    how = f"{parts['blocks']:,} parameters in blocks, {parts['embeddings']:,} in embeddings, which are tied"
    return Computed(sum(parts.values()) / 1e9, "B parameters", how)


@computes("U-VLM decoder without embeddings")
def uvlm_inner() -> Computed:
    return Computed(decoder_sizes.uvlm_parts()["blocks"] / 1e9, "B parameters", "the same without its embeddings")


@computes("smaller decoders that take the 7B projector")
def frozen_projector() -> Computed:
    with torch.device("meta"):
        made_for_7b = PROJECTORS["mixer"](hidden_size=QWEN_WIDTHS["Qwen2.5-7B"])
    fits = 0
    for size in SIZES:
        try:
            check_width(made_for_7b, QWEN_WIDTHS[f"Qwen2.5-{size}"])
            fits += 1
        except BadInput:
            pass
    widths = ", ".join(str(QWEN_WIDTHS[f"Qwen2.5-{size}"]) for size in SIZES)
    return Computed(fits, "decoders", f"its vectors have {made_for_7b.hidden_size} numbers, the decoders read {widths}")
