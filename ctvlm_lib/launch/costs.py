"""What each way of sharing out a training costs a GPU: bytes that it holds, and bytes that it sends in a step.

With N GPUs, W bytes of weights, G of gradients and O of the optimiser's means (and float32 copies, if there are any):

    DDP       W + G + O          sends 2 (N−1)/N · G        an all-reduce: gradients are added up, then passed round
    ZeRO-1    W + G + O/N        sends (N−1)/N · (G + W)    gradients to whom they belong, new weights to everyone
    ZeRO-2    W + (G + O)/N      sends (N−1)/N · (G + W)
    ZeRO-3    (W + G + O)/N      sends (N−1)/N · (G + 2 W)  weights come twice: for the forward and backward pass

FSDP2 with full shard is ZeRO-3. Only what learns has gradients and means; frozen weights are sent in ZeRO-3 alone,
which is why LoRA, with few weights that learn, is cheap in DDP and dear in ZeRO-3. Activations come on top, see
:func:`ctvlm_lib.vlm.memory.kept_for_backward`; none of these ways makes them smaller.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC 2020, §5 and §7.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora_counts import part_sizes
from ctvlm_lib.vlm.memory import GB, IN_16_BITS

if TYPE_CHECKING:
    import pandas

WAYS = {  # what is shared out, and the file that does it
    "DDP": ((), "ddp.yaml"),
    "ZeRO-1": (("optimiser",), ""),
    "ZeRO-2": (("gradients", "optimiser"), "deepspeed_zero2.yaml"),
    "ZeRO-3": (("weights", "gradients", "optimiser"), "fsdp2.yaml, deepspeed_zero3.yaml"),
}


@dataclass(frozen=True)
class Bytes:
    """Bytes a number that learns: its weight, its gradient, and what the optimiser keeps."""

    weight: int
    gradient: int
    optimiser: int


HERE = Bytes(4, 4, 8)  # the loop's: weights, gradients and AdamW's two means in float32
MIXED = Bytes(2, 2, 12)  # the ZeRO paper's, K = 12: 16-bit weights and gradients; float32 copy and two means


def a_gpu(way: str, gpus: int, learning: int, frozen: int = 0, kept: Bytes = HERE) -> dict[str, float]:
    """What one of several GPUs holds and sends, bytes.

    Args:
        way: one of WAYS.
        gpus: N.
        learning: numbers that learn.
        frozen: numbers that don't, in 16 bits.
        kept: bytes a number that learns.

    Returns:
        weights, gradients, optimiser, their sum, and what is sent in a step.

    Raises:
        BadInput: another way, or no GPU.
    """
    if way not in WAYS:
        raise BadInput(f"way is {way!r}; choose one of {', '.join(WAYS)}")
    if gpus < 1 or learning < 1 or frozen < 0:
        raise BadInput(f"give 1 or more GPUs and learning numbers, got {gpus}, {learning} and {frozen} frozen ones")
    shared = WAYS[way][0]
    moving = learning * kept.weight
    held = {"weights": moving + frozen * IN_16_BITS, "gradients": learning * kept.gradient,
            "optimiser": learning * kept.optimiser}  # fmt: skip
    sent = held["gradients"]  # each to the GPU that adds it up
    if way == "DDP":
        sent += held["gradients"]  # the sum comes back
    elif way == "ZeRO-3":
        sent += 2 * held["weights"]
    else:
        sent += moving
    held = {part: size / (gpus if part in shared else 1) for part, size in held.items()}
    return held | {"sum": sum(held.values()), "sent": sent * (gpus - 1) / gpus}


def costs(decoder: str = "Qwen2.5-7B", gpus: int = 8, rank: int = 16, kept: Bytes = HERE) -> "pandas.DataFrame":
    """What LoRA and training of all weights cost each GPU, for a vision–language model around a decoder.

    The encoder (DCFormer-small) is frozen; the projector learns in both. Everything is counted on shapes.

    Args:
        decoder: of :data:`ctvlm_lib.vlm.projector.QWEN_WIDTHS`.
        gpus: N. rank: of the adapters. kept: see :class:`Bytes`.

    Returns:
        one row for each of LoRA and all weights and each way: millions that learn; GB (10⁹ bytes) of weights,
        gradients, optimiser, their sum, GB sent in a step by each GPU; and the file that does it.
    """
    import pandas

    parts = part_sizes(decoder, rank)
    adapters = parts["attention adapters"] + parts["MLP adapters"]
    plans = {
        "LoRA": (adapters + parts["projector"], parts["decoder"] + parts["encoder"]),
        "all weights": (parts["decoder"] + parts["projector"], parts["encoder"]),
    }
    rows = []
    for what, (learning, frozen) in plans.items():
        for way, (_, file) in WAYS.items():
            found = {name: round(size / GB, 2) for name, size in a_gpu(way, gpus, learning, frozen, kept).items()}
            told = {f"{name}, GB": size for name, size in found.items()}
            rows.append({"learns": what, "way": way, "learning, M": round(learning / 1e6, 1), **told, "file": file})
    return pandas.DataFrame(rows)
