"""The decomposed convolution, the stems made of it, and the block that repeats in every stage.

Inside the encoder a feature map is ``(B, C, H, W, D)``, the order of the paper's equations; tensor names are those of
the released weights (c1 acts along H, c2 along W, c3 along D).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.encoder.axis_conv import depthwise
from ctvlm_lib.encoder.config import DCFormerConfig

AXES = (0, 1, 2)  # H, W, D: c1, c2, c3


def along(axis: int, value: int, other: int) -> tuple[int, int, int]:
    """A triple with ``value`` on one axis and ``other`` on the two across it."""
    return tuple(value if a == axis else other for a in AXES)


def normalisation(channels: int, config: DCFormerConfig) -> nn.Module:
    """BatchNorm as released, or over a volume's own channels and voxels, which doesn't depend on the batch."""
    return nn.BatchNorm3d(channels) if config.norm == "batch" else nn.GroupNorm(1, channels)


class DecomposedConv(nn.Module):
    """Three parallel one-dimensional convolutions, each normalised, added up.

    X'_h = Conv k×1×1 (X)   (1),   X'_w = Conv 1×k×1 (X)   (2),   X'_d = Conv 1×1×k (X)   (3),
    X' = [X +] Norm_h(X'_h) + Norm_w(X'_w) + Norm_d(X'_d)   (4)

    The released code leaves out the X in brackets, the inner residual.

    Args:
        inp, out: channels.
        kernel: length k of the kernels, voxels, odd.
        config: its norm and inner_residual are used; a residual needs equal shapes.
        stride: on all three axes, voxels.
        groups: 1, or the number of channels for the depthwise convolution that eqs. (1)–(3) state.
        activation: GELU after the sum.

    Source: med3dvlm.txt §3.2.1, eqs. (1)–(4); DecompConv3D of the released code.
    """

    def __init__(self, inp, out, kernel, config: DCFormerConfig, stride=1, groups=1, activation=False):
        super().__init__()
        self.residual = config.inner_residual and inp == out and stride == 1
        self.activation = activation
        for axis, name in zip(AXES, ("c1", "c2", "c3"), strict=True):
            shape, padding = along(axis, kernel, 1), along(axis, kernel // 2, 0)
            conv = nn.Conv3d(inp, out, shape, stride=stride, padding=padding, groups=groups)
            self.add_module(name, nn.Sequential(conv, normalisation(out, config)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` → the same, smaller by the stride."""
        total = x if self.residual else 0
        for axis, branch in zip(AXES, (self.c1, self.c2, self.c3), strict=True):
            total = total + branch[1](self._convolve(x, branch[0], axis))  # eq. (4)
        return functional.gelu(total) if self.activation else total

    @staticmethod
    def _convolve(x: Tensor, conv: nn.Conv3d, axis: int) -> Tensor:
        if conv.groups == x.shape[1] == conv.out_channels and conv.stride == (1, 1, 1) and conv.groups > 1:
            return depthwise(x, conv.weight.flatten(1), conv.bias, axis)
        return conv(x)


class EveryVoxelConv(DecomposedConv):
    """The stem's first layer with a fourth branch c4: a dense convolution of stride-sized cubes that don't overlap.

    The three branches read the lines on which two coordinates are multiples of the stride, 15.6 % of the voxels; the
    cubes of the fourth tile the volume. The released tensors keep their names, so that released weights can be loaded
    and the fourth branch start at zero.
    """

    def __init__(self, inp, out, kernel, config: DCFormerConfig, stride=1, activation=False):
        super().__init__(inp, out, kernel, config, stride, activation=activation)
        self.c4 = nn.Sequential(nn.Conv3d(inp, out, stride, stride=stride), normalisation(out, config))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` → ``(B, out, H / stride, W / stride, D / stride)``."""
        total = self.c1(x) + self.c2(x) + self.c3(x) + self.c4(x)
        return functional.gelu(total) if self.activation else total


def build_stem(config: DCFormerConfig) -> nn.Module:
    """The first stage: k = 7 with stride 4 and three layers with k = 3, or patches followed by a two-layer MLP."""
    out = config.channels[0]
    if config.stem == "patches":
        size = in_hwd(config.stem_stride_dhw_vox)
        hidden = 2 * out
        first = nn.Conv3d(config.in_channels, hidden, size, stride=size)
        return nn.Sequential(first, normalisation(hidden, config), nn.GELU(), nn.Conv3d(hidden, out, 1))
    first = EveryVoxelConv if config.stem == "every_voxel" else DecomposedConv
    stride, act = config.stem_stride_dhw_vox[0], config.stem_activation
    groups = out if config.stem_depthwise else 1
    rest = [DecomposedConv(out, out, 3, config, groups=groups, activation=act) for _ in range(3)]
    return nn.Sequential(first(config.in_channels, out, 7, config, stride, activation=act), *rest)


def in_hwd(dhw: tuple[int, int, int]) -> tuple[int, int, int]:
    """(D, H, W) → (H, W, D)."""
    return dhw[1], dhw[2], dhw[0]


class Mlp(nn.Module):
    """Linear, GELU, Linear along the channels, each voxel for itself."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        # the two dropouts of the released models have rate 0; they keep the second Linear's place, 3
        self.mlp = nn.Sequential(
            nn.Linear(channels, wide), nn.GELU(), nn.Dropout(0.0), nn.Linear(wide, channels), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, D, C)`` → the same."""
        return self.mlp(x)


class ConvBlock(nn.Module):
    """x ← x + scale · MLP(DWConv(x)), where the first block of a stage halves the grid before.

    Args:
        inp, out: channels before and after.
        kernel: of the decomposed convolution, voxels.
        config: of the encoder.
        stride_dhw: of the grid at the block's start; (1, 1, 1) with inp = out has no such step.

    Source: ConvBlock of the released code; the paper names neither the MLP nor the layer scale.
    """

    def __init__(self, inp, out, kernel, config: DCFormerConfig, stride_dhw=(1, 1, 1)):
        super().__init__()
        self.downsample = tuple(stride_dhw) != (1, 1, 1) or inp != out
        if self.downsample:
            stride = in_hwd(tuple(stride_dhw))
            pooled = config.downsample == "maxpool"
            self.pool = nn.MaxPool3d(3, stride, 1) if pooled else nn.Identity()
            size = 1 if pooled else stride
            self.proj = nn.Conv3d(inp, out, size, stride=size, bias=False)
        self.dwconv = DecomposedConv(out, out, kernel, config, groups=out)
        self.mlp = Mlp(out, config.mlp_expansion)
        self.scale = None
        if config.layer_scale is not None:
            self.scale = nn.Parameter(torch.full((out,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inp, H, W, D)`` → ``(B, out, H / stride, W / stride, D / stride)``."""
        if self.downsample:
            x = self.proj(self.pool(x))
        change = self.mlp(self.dwconv(x).permute(0, 2, 3, 4, 1))  # channels last
        if self.scale is not None:
            change = self.scale * change
        return x + change.permute(0, 4, 1, 2, 3)
