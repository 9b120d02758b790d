"""Which voxels the first layer of DCFormer reads at all."""

import numpy as np

from ctvlm_lib.errors import BadInput


def seen_by_stem(shape: tuple[int, int, int], stride: int = 4, kernel: int = 7) -> np.ndarray:
    """Mark the voxels that lie under at least one kernel of DCFormer's first layer.

    That layer adds up three convolutions with kernels (k, 1, 1), (1, k, 1) and (1, 1, k), all with the same stride on
    every axis. Across its own axis a kernel is one voxel wide, so it reads only the lines whose two other coordinates
    are multiples of the stride; along its axis the windows overlap if the kernel is longer than the stride, and it
    reads everything. A voxel is then seen if at least two of its three coordinates are multiples of the stride.

    Args:
        shape: ``(D, H, W)`` of the encoder's input.
        stride: of the stem, voxels; 4 in the released models.
        kernel: length of the one-dimensional kernels, odd; 7 in the released models.

    Returns:
        bool ``(D, H, W)``; changing a voxel that is False can't change the encoder's output.

    Raises:
        BadInput: an even kernel, or a size or stride below one.

    Source: released code of DCFormer and Med3DVLM (DecomposedStem); eqs. (1)–(4) of the Med3DVLM paper state the
        decomposition, not the stride.
    """
    if min(shape) < 1 or stride < 1 or kernel < 1 or kernel % 2 == 0:
        raise BadInput(
            f"shape and stride must be positive and the kernel odd, got shape {shape}, stride {stride}, kernel {kernel}"
        )
    crossed, covered = zip(*(_along(n, stride, kernel) for n in shape), strict=True)
    seen = np.zeros(shape, dtype=bool)
    for axis in range(3):
        lines = [covered[a] if a == axis else crossed[a] for a in range(3)]
        seen[np.ix_(*lines)] = True
    return seen


def _along(length: int, stride: int, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices on one axis that a one-voxel-wide kernel meets, and those that a kernel lying along the axis covers."""
    centres = np.arange(0, length, stride)
    reach = np.arange(-(kernel // 2), kernel // 2 + 1)
    covered = np.unique(centres[:, None] + reach)
    return centres, covered[(covered >= 0) & (covered < length)]
