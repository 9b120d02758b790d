"""A DCFormer's depthwise convolutions in two ways: as the released code calls them, and as this workbook computes them.

Weights, results and tensor names are the same. The released code calls ``conv3d`` with a group for each channel; here
the sum along a short axis is a product with a banded matrix (:mod:`ctvlm_lib.encoder.axis_conv`), which takes more
operations and on a CPU less time.
"""

from torch import Tensor, nn

from ctvlm_lib.encoder.decomposed import DecomposedConv
from ctvlm_lib.encoder.model import DCFormer


def in_released_layout(encoder: DCFormer) -> DCFormer:
    """Let an encoder call ``conv3d`` for each axis, as the released code does.

    Args:
        encoder: changed in place; its weights stay.

    Returns:
        the encoder itself.

    Source: DecompConv3D of Med3DVLM's released code (cbbd633).
    """
    for layer in encoder.modules():
        if isinstance(layer, DecomposedConv):
            layer._convolve = _called
    return encoder


def _called(x: Tensor, conv: nn.Conv3d, axis: int) -> Tensor:
    return conv(x)
