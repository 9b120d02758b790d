"""Texts or features of other processes, with gradients that find their way back."""

from collections.abc import Iterator

import torch
from torch import distributed


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _Shift(torch.autograd.Function):
    """Send a tensor to the next process and receive the previous one's; backwards the other way round."""

    @staticmethod
    def forward(context, tensor: torch.Tensor) -> torch.Tensor:
        return _exchanged(tensor, +1)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        return _exchanged(gradient, -1)


def _exchanged(tensor: torch.Tensor, to: int) -> torch.Tensor:
    rank, world = distributed.get_rank(), distributed.get_world_size()
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    both = [
        distributed.P2POp(distributed.isend, tensor.contiguous(), (rank + to) % world),
        distributed.P2POp(distributed.irecv, received, (rank - to) % world),
    ]
    for request in distributed.batch_isend_irecv(both):
        request.wait()
    return received


def ring(text: torch.Tensor, identity: torch.Tensor | None = None) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Give this process' texts, then each other process' in turn.

    Args:
        text: ``(b, width)``.
        identity: int ``(b,)`` that goes with them, or None.

    Yields:
        (how far they have come, texts, their identities or None).
    """
    yield 0, text, identity
    for shift in range(1, processes()):
        text = _Shift.apply(text)
        identity = None if identity is None else _exchanged(identity, +1)
        yield shift, text, identity


class _Gather(torch.autograd.Function):
    """All processes' rows; backwards each gets the sum of what all of them ask of its rows."""

    @staticmethod
    def forward(context, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes())]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(processes())[distributed.get_rank()]


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """All processes' rows in the order of their ranks, ``(processes · b, …)``; gradients return to their process."""
    return tensor if processes() == 1 else _Gather.apply(tensor)
