"""The stem's dense convolutions as matrix products over rows of channels.

Three kernels of length 3 through one voxel are a cross of seven voxels: seven products of (voxels × C) with (C × C)
instead of nine, without unfolding anything, because a shift of the volume is a shift of its rows.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ctvlm_lib.encoder.folding import Folded

ROWS = 16384  # a block of rows and its sums stay near the processor, and threads meet seldom


class PaddedRows:
    """Volumes ``(B, D, H, W, C)`` as rows of channels with zeros between them.

    One zero voxel after each line, one line after each plane and one plane after each volume serve as the border of
    both neighbours, so that a step along W, H or D is a fixed number of rows.
    """

    def __init__(self, batch: int, grid: tuple[int, int, int], channels: int, like: Tensor):
        d, h, w = grid
        self.padded = (batch, d + 1, h + 1, w + 1, channels)
        self.steps = {"w": 1, "h": w + 1, "d": (h + 1) * (w + 1)}
        self.before = self.steps["d"] + self.steps["h"] + 1
        self.rows = batch * (d + 1) * self.steps["d"]
        self.data = like.new_zeros(self.rows + 2 * self.before, channels)

    @property
    def inner(self) -> Tensor:
        """The rows of all volumes, zeros between them included, without those before and after."""
        return self.data[self.before : self.before + self.rows]

    @property
    def volume(self) -> Tensor:
        """A view ``(B, D, H, W, C)`` of the voxels proper."""
        return self.inner.view(self.padded)[:, :-1, :-1, :-1]

    def clear_borders(self) -> None:
        """Set the voxels between lines, planes and volumes to zero again."""
        padded = self.inner.view(self.padded)
        padded[:, -1], padded[:, :, -1], padded[:, :, :, -1] = 0, 0, 0


def taps(layer: Folded, steps: dict[str, int]) -> list[tuple[int, Tensor]]:
    """The cross as (shift in rows, matrix in × out): the voxel itself once, and two neighbours on each axis."""
    middle = (layer.h[:, :, 1] + layer.w[:, :, 1] + layer.d[:, :, 1]).mT.contiguous()
    around = [
        (side * steps[axis], kernel[:, :, 1 + side].mT.contiguous())
        for axis, kernel in (("h", layer.h), ("w", layer.w), ("d", layer.d))
        for side in (-1, 1)
    ]
    return [(0, middle), *around]


def cross_conv(source: PaddedRows, target: PaddedRows, layer: Folded) -> None:
    """Write the convolution of ``source`` into ``target``, both of the same grid."""
    products = taps(layer, source.steps)
    for start in range(0, source.rows, ROWS):
        stop = min(start + ROWS, source.rows)
        block = target.inner[start:stop]
        for number, (shift, matrix) in enumerate(products):
            rows = source.data[source.before + start + shift : source.before + stop + shift]
            torch.addmm(block if number else layer.bias, rows, matrix, out=block)
    target.clear_borders()


def strided_rows(volume: Tensor, kernel: int, stride: int) -> Tensor:
    """What the three strided kernels of the first layer read, as rows: along H, along W, along D.

    Args:
        volume: ``(B, C, D, H, W)``.
        kernel: their length, voxels.
        stride: on all axes, voxels.

    Returns:
        ``(B, D / stride, H / stride, W / stride, 3·C·kernel)``. Lines between the stride's multiples are skipped
        before anything is computed.
    """
    p, s = kernel // 2, stride
    h = functional.pad(volume[:, :, ::s, :, ::s], (0, 0, p, p)).unfold(3, kernel, s)
    w = functional.pad(volume[:, :, ::s, ::s, :], (p, p)).unfold(4, kernel, s)
    d = functional.pad(volume[:, :, :, ::s, ::s], (0, 0, 0, 0, p, p)).unfold(2, kernel, s)
    return torch.cat([part.permute(0, 2, 3, 4, 1, 5).flatten(4) for part in (h, w, d)], dim=-1)


def cube_rows(volume: Tensor, size_dhw: tuple[int, int, int]) -> Tensor:
    """Cubes that don't overlap, as rows ``(B, D / d, H / h, W / w, C·d·h·w)``."""
    for axis, size in zip((2, 4, 6), size_dhw, strict=True):
        volume = volume.unflatten(axis, (-1, size))  # (B, C, D', d, H', h, W', w)
    return volume.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
