"""From grey to RGB: an encoder that reads three channels and answers a grey volume as before."""

import copy

import torch
from torch import Tensor

from ctvlm_lib.encoder.model import TokenEncoder
from ctvlm_lib.errors import BadInput

COLOURS = 3


def inflate(encoder: TokenEncoder, colour_noise: float = 0.0, seed: int = 0) -> TokenEncoder:
    """Turn an encoder of grey volumes into one of RGB volumes.

    Each weight that reads the volume is divided by three and repeated, so that a grey volume shown in all three
    channels gives the same tokens. Then the channels are alike, and two colours of equal mean can't be told apart
    before training; ``colour_noise`` lets them differ without touching the response to grey.

    Args:
        encoder: with ``in_channels=1``; left as it is.
        colour_noise: standard deviation of the differences between channels, as a share of that of the weights. They
            add up to zero over the channels.
        seed: of these differences.

    Returns:
        an encoder of the same class with ``in_channels=3``.

    Raises:
        BadInput: the encoder reads three channels already, or the noise is negative.
    """
    if encoder.config.in_channels != 1:
        raise BadInput(f"the encoder reads {encoder.config.in_channels} channels; only one of grey can be inflated")
    if colour_noise < 0:
        raise BadInput(f"colour_noise is a share of the weights' spread, got {colour_noise}; give 0 or more")
    config = copy.deepcopy(encoder.config)
    config.in_channels = COLOURS
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: _repeated(t, colour_noise, random) if name.endswith(encoder.input_weights) else t.clone()
        for name, t in encoder.state_dict().items()
    }
    coloured = type(encoder)(config)
    coloured.load_state_dict(tensors)
    return coloured.to(device=encoder.device, dtype=encoder.dtype).train(encoder.training)


def _repeated(weight: Tensor, noise: float, random: torch.Generator) -> Tensor:
    """``(out, n, …)`` → ``(out, 3·n, …)``, channels fastest, as a flattened patch has them."""
    inflated = weight.repeat_interleave(COLOURS, dim=1) / COLOURS
    if noise == 0:
        return inflated
    shift = torch.randn(inflated.unflatten(1, (-1, COLOURS)).shape, generator=random).to(inflated)
    shift = (shift - shift.mean(dim=2, keepdim=True)).flatten(1, 2)
    return inflated + noise * inflated.std() * shift
