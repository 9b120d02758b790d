"""What an encoder's tokens cover: shares of regions and findings, and pooling over a region's tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from ctvlm_lib.errors import BadInput

LEAST_SHARE = 0.1  # a token belongs to a region from this share of its voxels on


def shares(labels: np.ndarray, classes: int, grid: tuple[int, int, int]) -> np.ndarray:
    """How much of each token's voxels each label takes.

    Args:
        labels: uint8 ``(B, D, H, W)``, values below ``classes``.
        classes: number of labels, 0 included.
        grid: (D, H, W) of the tokens, which are counted in this order.

    Returns:
        float32 ``(B, classes, tokens)``; the classes of a token add up to 1.

    Raises:
        BadInput: the grid doesn't divide the volume.
    """
    size = labels.shape[1:]
    if any(n % g for n, g in zip(size, grid, strict=True)):
        raise BadInput(f"a grid of {grid} tokens doesn't divide a volume of {size}; give the encoder's own grid")
    along = [np.arange(n) // (n // g) for n, g in zip(size, grid, strict=True)]
    token = (along[0][:, None, None] * grid[1] + along[1][:, None]) * grid[2] + along[2]
    tokens = int(np.prod(grid))
    at = np.arange(len(labels))[:, None, None, None] * tokens + token
    counts = np.bincount((at * classes + labels).ravel(), minlength=len(labels) * tokens * classes)
    voxels = np.prod(size) // tokens
    return (counts.reshape(len(labels), tokens, classes).swapaxes(1, 2) / voxels).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Pooling:
    """Which tokens belong to which row (a region of a patient), and with what share.

    Attributes:
        rows: int ``(R, 2)``: patient in the batch, region 0…9.
        row, token, weight: ``(pairs,)``: a row's tokens, counted through the batch, and their shares.
    """

    rows: np.ndarray
    row: torch.Tensor
    token: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, share: np.ndarray, least: float = LEAST_SHARE) -> "Pooling":
        """Make it from the shares of the regions.

        Args:
            share: ``(B, regions, tokens)``, background left out. Regions without a voxel get no row; a region that
                fills no token up to ``least`` gets its fullest one.
        """
        top = share.max(axis=2)
        rows = np.argwhere(top > 0)
        chosen = share[tuple(rows.T)]  # (R, tokens)
        inside = chosen >= np.minimum(least, chosen.max(axis=1, keepdims=True))
        row, token = np.nonzero(inside)
        through = rows[row, 0] * share.shape[2] + token
        return cls(rows, *(torch.from_numpy(a) for a in (row, through, chosen[row, token])))

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, tokens, C)`` → ``(R, 2 C)``: the mean, weighted by share, and the maximum over each row's tokens."""
        flat = tokens.reshape(-1, tokens.shape[-1])[self.token]  # (pairs, C)
        row, weight = self.row.to(flat.device), self.weight.to(flat)[:, None]
        zeros = flat.new_zeros(len(self.rows), flat.shape[1])
        total = zeros.index_add(0, row, flat * weight)
        mean = total / zeros[:, :1].index_add(0, row, weight)
        highest = zeros.scatter_reduce(0, row[:, None].expand_as(flat), flat, "amax", include_self=False)
        return torch.cat([mean, highest], dim=1)
