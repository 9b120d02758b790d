"""One-dimensional depthwise convolution along one axis of a volume: what equations (1)–(3) of Med3DVLM are made of.

As a call of ``conv3d`` it is slow on a CPU, above all backwards. Along a short axis the same sum is a product with a
banded matrix, which is what processors are best at; along a long one it is a two-dimensional convolution of a view.
"""

import torch
from torch import Tensor
from torch.nn import functional

BANDED_UP_TO = 64  # voxels: a banded product costs as many multiplications as the axis is long, not as the kernel is


def depthwise(volume: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Convolve each channel with its own kernel along one axis, with zeros beyond the ends.

    Args:
        volume: ``(B, C, n0, n1, n2)``.
        weight: ``(C, k)``, k odd.
        bias: ``(C,)`` or None.
        axis: 0, 1 or 2, of the three image axes.

    Returns:
        a tensor of the volume's shape, equal to ``conv3d(..., groups=C)`` but for rounding.

    Source: med3dvlm.txt §3.2.1, eqs. (1)–(3).
    """
    along = _banded if volume.shape[2 + axis] <= BANDED_UP_TO else _as_conv2d
    out = along(volume, weight, axis)
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1, 1)


def band(weight: Tensor, length: int) -> Tensor:
    """The matrices ``(C, length, length)`` that convolve a line: row i holds the kernel, centred on column i."""
    k = weight.shape[-1]
    place = torch.arange(length, device=weight.device)
    tap = place - place[:, None] + k // 2
    return weight[:, tap.clamp(0, k - 1)] * ((tap >= 0) & (tap < k))


def _banded(volume: Tensor, weight: Tensor, axis: int) -> Tensor:
    shape = volume.shape
    matrix = band(weight, shape[2 + axis])
    if axis == 0:
        return (matrix @ volume.reshape(*shape[:3], -1)).reshape(shape)
    if axis == 2:
        return (volume.reshape(*shape[:2], -1, shape[4]) @ matrix.mT).reshape(shape)
    lines = volume.permute(1, 3, 0, 2, 4)  # (C, n1, B, n0, n2): one large product a channel instead of B·n0 small ones
    return torch.bmm(matrix, lines.flatten(2)).view(lines.shape).permute(2, 0, 3, 1, 4)


def _as_conv2d(volume: Tensor, weight: Tensor, axis: int) -> Tensor:
    """The same through ``conv2d``, whose depthwise kernels are fast; axes 0 and 2 need no copy."""
    b, c, n0, n1, n2 = volume.shape
    k = weight.shape[-1]
    if axis == 2:
        lines, kernel, padding = volume.reshape(b, c, n0 * n1, n2), weight.view(c, 1, 1, k), (0, k // 2)
    else:
        kernel, padding = weight.view(c, 1, k, 1), (k // 2, 0)
        lines = volume.reshape(b, c, n0, n1 * n2) if axis == 0 else volume.transpose(1, 2).reshape(b * n0, c, n1, n2)
    out = functional.conv2d(lines, kernel, padding=padding, groups=c)
    return out.view(b, n0, c, n1, n2).transpose(1, 2) if axis == 1 else out.view(volume.shape)
