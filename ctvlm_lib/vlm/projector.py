"""Projectors: from the encoder's two streams to vectors that a decoder reads as words; the mixer and its rivals.

    name           in the paper    reads        image vectors            released class of its own
    linear         –               high         32                       yes
    mlp            2xMLP           high         32                       yes
    low_high_mlp   2xMLP-H         low, high    256 + 32                 yes, but it can't be built there
    mixer_1x       1xMLP-Mixer-H   low, high    128 + 128                the mixer's, with one layer
    mixer          2xMLP-Mixer-H   low, high    128 + 128                yes

The paper doesn't say what "2x" and "1x" count; here they count layers, as the released code's depth does. So the rivals
differ in more than their kind: in the streams that they read, in image vectors, and in parameters, which
:func:`projector_table` counts.

Source: med3dvlm.txt §3.2.2, tables 6 to 8.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.projector_merged import merged
from ctvlm_lib.vlm.projector_mixer import Mixer, token_schedule
from ctvlm_lib.vlm.projector_streams import (
    RELEASED_HIGH,
    RELEASED_LOW,
    AveragedPerceptron,
    HighPerceptron,
    LowHighPerceptron,
    Projector,
    check_sizes,
)

if TYPE_CHECKING:
    import pandas

QWEN_WIDTHS = {"Qwen2.5-0.5B": 896, "Qwen2.5-1.5B": 1536, "Qwen2.5-3B": 2048, "Qwen2.5-7B": 3584}


def mixer(
    low: Sequence[int] = RELEASED_LOW,
    high: Sequence[int] = RELEASED_HIGH,
    *,
    hidden_size: int,
    residual: bool = False,
    low_tokens: Sequence[int] | None = None,
    high_tokens: Sequence[int] | None = None,
    layers: int = 2,
) -> Mixer:
    """Build Med3DVLM's projector: two streams of MLP-Mixer layers, joined.

    Tensor names and shapes are the released ones for the default sizes. Channels go from the stream's to half the
    decoder's width and to the whole.

    Args:
        low, high: (tokens, channels) of the encoder's last two stages.
        hidden_size: width of the decoder.
        residual: a true MLP-Mixer, with skips, where shapes allow. No step of the released schedule keeps its shape, so
            with True the first layer changes both tokens and channels to the final ones, without skips, and each later
            layer keeps both and has both skips. It has as many outputs and other tensor shapes, and can't take
            released weights.
        low_tokens, high_tokens: tokens behind each layer; None keeps the released proportions, see
            :func:`ctvlm_lib.vlm.projector_mixer.token_schedule`.
        layers: 1 or 2.

    Returns:
        a module; ``forward(low, high)`` gives ``(B, tokens, hidden_size)``: 256 tokens in the released sizes.

    Raises:
        BadInput: a width that isn't a multiple of 4, sizes or schedules that don't fit.
    """
    check_sizes(low, high, hidden_size)
    if layers not in (1, 2):
        raise BadInput(f"layers is {layers}; choose 2, as released, or 1")
    low_ours, high_ours = token_schedule(low[0], high[0], layers, residual)
    low_tokens = tuple(low_ours if low_tokens is None else low_tokens)
    high_tokens = tuple(high_ours if high_tokens is None else high_tokens)
    for name, schedule in (("low_tokens", low_tokens), ("high_tokens", high_tokens)):
        if len(schedule) != layers or not all(isinstance(n, int) and n > 0 for n in schedule):
            raise BadInput(f"{name} is {schedule}; give the number of tokens behind each of the {layers} layers")
    return Mixer(low, high, hidden_size, low_tokens, high_tokens, residual)


def mixer_1x(low=RELEASED_LOW, high=RELEASED_HIGH, *, hidden_size: int, **options) -> Mixer:
    """One mixer layer a stream, the paper's 1xMLP-Mixer-H; as many image vectors as :func:`mixer`."""
    return mixer(low, high, hidden_size=hidden_size, layers=1, **options)


def mlp(
    low=RELEASED_LOW,
    high=RELEASED_HIGH,
    *,
    hidden_size: int,
    depth: int = 2,
    grid: Sequence[int] = (),
    block: Sequence[int] = (),
) -> Projector:
    """A perceptron on each token of the last stage, the paper's 2xMLP.

    Args:
        low, high: (tokens, channels) of the streams.
        hidden_size: width of the decoder.
        depth: linear layers.
        grid, block: with both, averages of the low tokens are read instead: (D, H, W) of these tokens, and how many
            along each axis become one. Encoders whose last stages differ can then be compared.

    Raises:
        BadInput: sizes that don't fit.
    """
    check_sizes(low, high, hidden_size)
    if grid or block:
        return AveragedPerceptron(low, high, hidden_size, _checked_depth(depth, 1), grid, block)
    return HighPerceptron(low, high, hidden_size, _checked_depth(depth, 1))


def linear(low=RELEASED_LOW, high=RELEASED_HIGH, *, hidden_size: int) -> Projector:
    """One matrix on each token of the last stage; the tables don't list it, M3D-LaMed has one."""
    return mlp(low, high, hidden_size=hidden_size, depth=1)


def low_high_mlp(low=RELEASED_LOW, high=RELEASED_HIGH, *, hidden_size: int, depth: int = 2) -> LowHighPerceptron:
    """Each stream lifted by its own matrix, then a shared perceptron, the paper's 2xMLP-H."""
    check_sizes(low, high, hidden_size)
    return LowHighPerceptron(low, high, hidden_size, _checked_depth(depth, 2))


PROJECTORS: dict[str, Callable[..., Projector]] = {
    "mixer": mixer, "mixer_1x": mixer_1x, "low_high_mlp": low_high_mlp, "mlp": mlp, "linear": linear,
}  # fmt: skip
IN_THE_PAPER = {"mixer": "2xMLP-Mixer-H", "mixer_1x": "1xMLP-Mixer-H", "low_high_mlp": "2xMLP-H", "mlp": "2xMLP"}
MERGED = "merged"  # no paper's; it is for a CPU, see ctvlm_lib.vlm.projector_merged


def factory_of(name: str) -> Callable[..., Projector]:
    """What builds a projector: one of PROJECTORS, or the one that merges.

    Raises:
        BadInput: no such projector.
    """
    known = PROJECTORS | {MERGED: merged}
    if name not in known:
        raise BadInput(f"projector is {name!r}; choose one of {', '.join(map(repr, known))}")
    return known[name]


def check_width(projector: nn.Module, decoder_hidden: int) -> None:
    """Raise BadInput unless a projector was made for a decoder of this width.

    The contour paper keeps Med3DVLM's projector "frozen throughout training" under decoders of 0.5B, 1.5B and 3B. It
    was made for the 7B decoder, and its vectors have 3584 numbers where those decoders read 896, 1536 and 2048.

    Args:
        projector: with an attribute ``hidden_size``.
        decoder_hidden: the decoder's width.

    Source: contour.txt §3.2 against the released weights' shapes.
    """
    if projector.hidden_size != decoder_hidden:
        raise BadInput(
            f"the projector gives vectors of {projector.hidden_size} and the decoder reads vectors of {decoder_hidden}:"
            " a projector belongs to one decoder's width and can't stay frozen when the decoder changes; build one with"
            f" hidden_size={decoder_hidden} and train it"
        )


def projector_table(
    widths: dict[str, int] | None = None,
    low: Sequence[int] = RELEASED_LOW,
    high: Sequence[int] = RELEASED_HIGH,
) -> "pandas.DataFrame":
    """Count image vectors and parameters of every projector, and of the mixer with skips.

    Args:
        widths: decoder's name → its width; None takes the four of Qwen2.5.
        low, high: (tokens, channels) of the streams.

    Returns:
        columns projector, in the paper, reads, image vectors, and for each decoder its parameters in millions. The
        papers print no parameter counts to set beside them.
    """
    import pandas

    widths = QWEN_WIDTHS if widths is None else widths
    rows = [(name, name, {}) for name in PROJECTORS] + [("mixer, with skips", "mixer", {"residual": True})]
    return pandas.DataFrame([_row(label, name, options, widths, low, high) for label, name, options in rows])


def parameters(name: str, hidden_size: int, low=RELEASED_LOW, high=RELEASED_HIGH, **options) -> int:
    """How many parameters a projector has; only shapes are made."""
    with torch.device("meta"):
        built = PROJECTORS[name](low=low, high=high, hidden_size=hidden_size, **options)
    return sum(p.numel() for p in built.parameters())


def _row(label, name, options, widths, low, high) -> dict:
    with torch.device("meta"):
        built = PROJECTORS[name](low=low, high=high, hidden_size=next(iter(widths.values())), **options)
    counts = {decoder: parameters(name, width, low, high, **options) for decoder, width in widths.items()}
    return {
        "projector": label,
        "in the paper": "" if options else IN_THE_PAPER.get(name, ""),
        "reads": "high" if isinstance(built, HighPerceptron) else "low, high",
        "image vectors": built.tokens,
        **{f"{decoder}, M": round(count / 1e6, 2) for decoder, count in counts.items()},
    }


def _checked_depth(depth: int, least: int) -> int:
    if depth < least:
        raise BadInput(f"depth is {depth}; a perceptron of this kind has at least {least} linear layers")
    return depth
