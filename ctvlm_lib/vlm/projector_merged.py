"""The projector for a CPU: neighbouring tokens of the fine stream are merged, and each is then projected on its own.

The mixer's first layer mixes all tokens channel by channel, before any of them can be told to be inside a prompt: what
was beside what has to be learnt anew. Here a token stays at its place, as in pixel-shuffle projectors of 2-D models.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctvlm_lib.vlm.projector_streams import Grid, Perceptron, Projector, blocks_of, depths_of


class Merged(Projector):
    """Blocks of the fine stream's grid and the tokens of the coarse one, each normalised and projected; fine first.

    Args:
        low, high: (tokens, channels) of the streams.
        hidden_size: width of the decoder.
        grid: (D, H, W) of the low tokens.
        block: low tokens along each axis that become one.

    Raises:
        BadInput: a grid that isn't the stream's, or that the blocks don't fill.
    """

    def __init__(
        self, low: Sequence[int], high: Sequence[int], hidden_size: int, grid: Sequence[int], block: Sequence[int]
    ):
        cells = blocks_of(low, grid, block)
        super().__init__(low, high, hidden_size, tokens=torch.Size(cells).numel() + high[0])
        self.cells, self.block = cells, tuple(block)
        width = low[1] * torch.Size(block).numel()
        self.low_norm, self.high_norm = nn.LayerNorm(width), nn.LayerNorm(high[1])
        self.low_mlp, self.high_mlp = Perceptron(width, hidden_size), Perceptron(high[1], hidden_size)
        self.place = nn.Parameter(torch.zeros(self.tokens, hidden_size))

    def merge(self, low: Tensor) -> Tensor:
        """``(B, tokens, channels)`` to ``(B, blocks, tokens of a block × channels)``; nothing is lost."""
        (d, h, w), (a, b, c) = self.cells, self.block
        blocks = low.reshape(len(low), d, a, h, b, w, c, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return blocks.reshape(len(low), d * h * w, -1)

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """Each block and each coarse token on its own; a vector of its own tells where it is."""
        merged = self.low_mlp(self.low_norm(self.merge(low)))
        return torch.cat([merged, self.high_mlp(self.high_norm(high))], dim=1) + self.place

    def depths(self, low_grid: Grid, high_grid: Grid) -> Tensor:
        """Those of the blocks, then those of the coarse stream's tokens."""
        return torch.cat([depths_of(self.cells), depths_of(high_grid)])


def merged(low: Sequence[int], high: Sequence[int], *, hidden_size: int, grid=(8, 8, 8), block=(2, 2, 2)) -> Merged:
    """Build the merging projector; 512 low and 32 high tokens of the cohort's encoders become 64 + 32 vectors."""
    return Merged(low, high, hidden_size, tuple(grid), tuple(block))
