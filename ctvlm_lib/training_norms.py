"""BatchNorm over the batch of all processes, so that a shared batch has the statistics that it has in one process.

Without it each process would normalise by its own share, and the training would be another one. torch has
``SyncBatchNorm``, for GPUs only and as another class, which what reads the model afterwards wouldn't know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum over processes; backwards too, as each process' loss depends on the sum."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


@contextmanager
def over_all_processes(model: nn.Module, processes: int) -> Iterator[None]:
    """Inside the block, each BatchNorm that is in training normalises by the shares of all processes.

    Args:
        model: its BatchNorms get another ``forward`` for as long; one process changes nothing.
        processes: how many train together.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if processes > 1 else []
    for norm in norms:
        norm.forward = MethodType(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Mean and variance of the whole batch, in float32; running statistics move as in one process."""
    if not norm.training:
        return type(norm).forward(norm, x)
    wide, axes = x.float(), [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = float(_summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device)))
    mean = _Sum.apply(wide.sum(axes)) / count
    variance = _Sum.apply((wide - mean.view(shape)).square().sum(axes)) / count  # mean first: x² would cancel
    if norm.track_running_stats:
        _move(norm, mean.detach(), variance.detach() * count / (count - 1))
    factor = torch.rsqrt(variance + norm.eps)
    factor = factor if norm.weight is None else factor * norm.weight.float()
    shift = -mean * factor if norm.bias is None else norm.bias.float() - mean * factor
    return (wide * factor.view(shape) + shift.view(shape)).to(x.dtype)


@torch.no_grad()
def _move(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
