"""The two-stream mixer: each stream's tokens and channels mixed in turn, then both joined to one sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.projector_streams import Perceptron, Projector


class MixerLayer(nn.Module):
    """Mix tokens, then channels; either step may change how many there are.

    Released, and in equations (6) and (7), nothing skips a step. MLP-Mixer adds each step's input to its output;
    ``residual=True`` does so for the steps that keep their shape. Equation (6) writes its matrices at the left of the
    transposed map, where they would mix channels; the paper's text and the released code mix tokens first, as here.

    Args:
        inputs, outputs: (tokens, channels).
        residual: add the inputs where the shape allows.

    Source: med3dvlm.txt §3.2.2, equations (6) and (7); released code of Med3DVLM (cbbd633).
    """

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int], residual: bool = False):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(inputs[1]), nn.LayerNorm(inputs[1])
        self.mlp1 = Perceptron(inputs[0], outputs[0])
        self.mlp2 = Perceptron(inputs[1], outputs[1])
        self.skips_tokens = residual and inputs[0] == outputs[0]
        self.skips_channels = residual and inputs[1] == outputs[1]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, tokens in, channels in)`` to ``(B, tokens out, channels out)``."""
        mixed = self.mlp1(self.ln1(x).mT).mT  # (6): (B, tokens out, channels in)
        if self.skips_tokens:
            mixed = x + mixed
        out = self.mlp2(self.ln2(mixed))  # (7)
        return mixed + out if self.skips_channels else out


class Mixer(Projector):
    """Two streams of mixer layers and their outputs in a row, the low stream's first.

    Args:
        low, high: (tokens, channels) of the streams.
        hidden_size: of the decoder.
        low_tokens, high_tokens: tokens behind each layer.
        residual: see :class:`MixerLayer`.
    """

    def __init__(
        self,
        low: Sequence[int],
        high: Sequence[int],
        hidden_size: int,
        low_tokens: Sequence[int],
        high_tokens: Sequence[int],
        residual: bool = False,
    ):
        super().__init__(low, high, hidden_size, tokens=low_tokens[-1] + high_tokens[-1])
        widths = channel_schedule(hidden_size, len(low_tokens), residual)
        self.low_mixer = _stream(self.low, low_tokens, widths, residual)
        self.high_mixer = _stream(self.high, high_tokens, widths, residual)
        if residual and not self.skips():
            raise BadInput(
                "with residual=True some layer must keep its number of tokens or channels, and none of this mixer's"
                " does; take two layers and leave low_tokens and high_tokens to the projector"
            )

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """Both streams, then one sequence."""
        for low_layer, high_layer in zip(self.low_mixer, self.high_mixer, strict=True):
            low, high = low_layer(low), high_layer(high)
        return torch.cat([low, high], dim=1)

    def skips(self) -> list[str]:
        """Which steps add their input, such as ``low_mixer.1 tokens``; empty as released."""
        layers = [(name, layer) for name, layer in self.named_modules() if isinstance(layer, MixerLayer)]
        tokens = [f"{name} tokens" for name, layer in layers if layer.skips_tokens]
        return sorted(tokens + [f"{name} channels" for name, layer in layers if layer.skips_channels])


def token_schedule(low: int, high: int, layers: int, residual: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens behind each layer, in the released proportions.

    Released, with two layers: low 256 → 192 → 128, that is ¾ and ½ of what comes in; high 32 → 64 → 128, twice and
    four times. Other streams keep these proportions, rounded down: 512 low and 32 high tokens give 256 + 128. One layer
    goes to the end at once. With residual, the first layer does, and the others keep the number.
    """
    ends = max(1, low // 2), high * 4
    if residual or layers == 1:
        return (ends[0],) * layers, (ends[1],) * layers
    first = max(1, low * 3 // 4), high * 2
    return (first[0], ends[0]), (first[1], ends[1])


def channel_schedule(hidden_size: int, layers: int, residual: bool) -> list[int]:
    """Channels behind each layer: halved from the last backwards; with residual all are the decoder's width."""
    return [hidden_size if residual else hidden_size // 2 ** (layers - 1 - k) for k in range(layers)]


def _stream(stream: tuple[int, int], tokens: Sequence[int], widths: Sequence[int], residual: bool) -> nn.ModuleList:
    shapes = [stream, *zip(tokens, widths, strict=True)]
    return nn.ModuleList(MixerLayer(a, b, residual) for a, b in zip(shapes, shapes[1:], strict=False))
