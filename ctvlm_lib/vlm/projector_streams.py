"""What every projector shares: it takes the encoder's two streams and gives one sequence of the decoder's width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.errors import BadInput

Grid = tuple[int, int, int]
RELEASED_LOW, RELEASED_HIGH = (256, 384), (32, 768)  # (tokens, channels) of DCFormer-small at 128×256×256 voxels


class Projector(nn.Module):
    """Base of all projectors: ``forward(low, high)`` gives ``(B, tokens, hidden_size)``.

    Attributes:
        low, high: (tokens, channels) of the streams that it was made for.
        hidden_size: width of the decoder that it was made for.
        tokens: how many image vectors it gives.
    """

    def __init__(self, low: Sequence[int], high: Sequence[int], hidden_size: int, tokens: int):
        super().__init__()
        self.low, self.high = tuple(low), tuple(high)
        self.hidden_size, self.tokens = hidden_size, tokens

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Project the two streams.

        Args:
            low: ``(B, n, C)``, the encoder's stage before the last.
            high: ``(B, m, C′)``, its last stage.

        Returns:
            ``(B, tokens, hidden_size)``.

        Raises:
            BadInput: streams of other shapes than the projector was made for.
        """
        for name, stream, made_for in (("low", low, self.low), ("high", high, self.high)):
            if stream.ndim != 3 or tuple(stream.shape[1:]) != made_for:
                raise BadInput(
                    f"the {name} stream is {tuple(stream.shape)} and this projector takes (B, {made_for[0]},"
                    f" {made_for[1]}) of (volumes, tokens, channels); build one with {name}={tuple(stream.shape[1:])},"
                    " or give volumes of the size that it was made for"
                )
        if len(low) != len(high):
            raise BadInput(
                f"{len(low)} volumes in the low stream, {len(high)} in the high one; give both of each volume"
            )
        return self.project(low, high)

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """The projection itself, of streams that were checked."""
        raise NotImplementedError

    def depths(self, low_grid: Grid, high_grid: Grid) -> Tensor | None:
        """Where along the volume's depth each image vector stands.

        Args:
            low_grid, high_grid: (D, H, W) of the encoder's two streams.

        Returns:
            ``(tokens,)`` in 0…1, the middle of what a vector covers; None where tokens are mixed with each other, as a
            mixer does: its vectors stand nowhere.
        """
        return None

    def extra_repr(self) -> str:
        """Tokens and widths, in and out."""
        return f"low={self.low}, high={self.high} -> ({self.tokens}, {self.hidden_size})"


class Perceptron(nn.Module):
    """Linear, and then GELU and Linear as often as ``depth`` says; tensor names are the released ones.

    Args:
        inputs, outputs: widths.
        depth: linear layers.
    """

    def __init__(self, inputs: int, outputs: int, depth: int = 2):
        super().__init__()
        more = [nn.Sequential(nn.GELU(), nn.Linear(outputs, outputs)) for _ in range(depth - 1)]
        self.mm_projector = nn.Sequential(nn.Linear(inputs, outputs), *more)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, inputs)`` to ``(…, outputs)``."""
        return self.mm_projector(x)


class HighPerceptron(Projector):
    """A perceptron on the coarse stream alone; the fine one is not read."""

    def __init__(self, low: Sequence[int], high: Sequence[int], hidden_size: int, depth: int):
        super().__init__(low, high, hidden_size, tokens=high[0])
        self.mm_projector = Perceptron(high[1], hidden_size, depth).mm_projector

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """Each of the high tokens on its own."""
        return self.mm_projector(high)

    def depths(self, low_grid: Grid, high_grid: Grid) -> Tensor:
        """Those of the coarse stream's tokens."""
        return depths_of(high_grid)


class AveragedPerceptron(Projector):
    """A perceptron on averages of neighbouring fine tokens; the coarse stream is not read.

    Args:
        low, high, hidden_size, depth: as of the others.
        grid: (D, H, W) of the low tokens. block: low tokens along each axis whose average becomes one.
    """

    def __init__(self, low, high, hidden_size: int, depth: int, grid: Sequence[int], block: Sequence[int]):
        super().__init__(low, high, hidden_size, tokens=torch.Size(blocks_of(low, grid, block)).numel())
        self.grid, self.block = tuple(grid), tuple(block)
        self.mm_projector = Perceptron(low[1], hidden_size, depth).mm_projector

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """Each block of low tokens on its own."""
        volume = low.mT.unflatten(2, self.grid)  # (B, C, D, H, W)
        return self.mm_projector(functional.avg_pool3d(volume, self.block).flatten(2).mT)

    def depths(self, low_grid: Grid, high_grid: Grid) -> Tensor:
        """Those of the blocks."""
        return depths_of(blocks_of(self.low, self.grid, self.block))


class LowHighPerceptron(Projector):
    """Each stream lifted to the decoder's width by its own matrix, the rest shared; low tokens first."""

    def __init__(self, low: Sequence[int], high: Sequence[int], hidden_size: int, depth: int):
        super().__init__(low, high, hidden_size, tokens=low[0] + high[0])
        self.low_up_mlp, self.high_up_mlp = nn.Linear(low[1], hidden_size), nn.Linear(high[1], hidden_size)
        shared = [layer for _ in range(depth - 1) for layer in (nn.GELU(), nn.Linear(hidden_size, hidden_size))]
        self.mm_projector = nn.Sequential(*shared)

    def project(self, low: Tensor, high: Tensor) -> Tensor:
        """Each token on its own."""
        return self.mm_projector(torch.cat([self.low_up_mlp(low), self.high_up_mlp(high)], dim=1))

    def depths(self, low_grid: Grid, high_grid: Grid) -> Tensor:
        """Those of both streams' tokens."""
        return torch.cat([depths_of(low_grid), depths_of(high_grid)])


def depths_of(grid: Grid) -> Tensor:
    """Middle of each cell of a (D, H, W) grid along the depth, 0…1, in the order in which tokens stand."""
    depth, height, width = grid
    # on the CPU also where a model is built without numbers, on the meta device
    return ((torch.arange(depth, dtype=torch.float64, device="cpu") + 0.5) / depth).repeat_interleave(height * width)


def blocks_of(low: Sequence[int], grid: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """How many blocks lie along each axis of a stream's grid.

    Raises:
        BadInput: a grid that isn't the stream's, or that the blocks don't fill.
    """
    whole = torch.Size(grid).numel() == low[0] and len(grid) == len(block)
    if not whole or any(n % b for n, b in zip(grid, block, strict=True)):
        raise BadInput(
            f"{low[0]} tokens on a grid of {tuple(grid)} can't be merged in blocks of {tuple(block)}; give the"
            " stream's grid, and blocks that divide its sides"
        )
    return tuple(n // b for n, b in zip(grid, block, strict=True))


def check_sizes(low: Sequence[int], high: Sequence[int], hidden_size: int) -> None:
    """Raise BadInput unless the sizes are ones that a projector can have."""
    for name, stream in (("low", low), ("high", high)):
        sound = len(stream) == 2 and all(isinstance(n, int) and n > 0 for n in stream)
        if not sound:
            raise BadInput(
                f"{name} is {tuple(stream)}; give the stream's (tokens, channels), such as {RELEASED_LOW} for the low"
                f" and {RELEASED_HIGH} for the high stream of DCFormer-small"
            )
    if hidden_size < 4 or hidden_size % 4:
        raise BadInput(
            f"hidden_size is {hidden_size}, and a projector's widths halve twice; give the decoder's width, a multiple"
            " of 4"
        )
