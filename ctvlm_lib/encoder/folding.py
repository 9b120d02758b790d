"""Algebra that needs no data: BatchNorm, bias, inner residual and layer scale folded into the weights around them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctvlm_lib.encoder.decomposed import DecomposedConv
from ctvlm_lib.errors import BadInput


class Folded(NamedTuple):
    """A decomposed convolution in eval mode: three kernels ``(out, in / groups, k)`` along H, W, D and one bias."""

    h: Tensor
    w: Tensor
    d: Tensor
    bias: Tensor


def fold_norm(conv: nn.Conv3d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias of the convolution that does the work of both.

    norm(Wx + b) = g·(Wx + b − m) / √(v + ε) + β, so W' = W·g / √(v + ε) and b' = (b − m)·g / √(v + ε) + β.

    Raises:
        BadInput: the norm takes its statistics from its input, and can't be folded.
    """
    if not isinstance(norm, nn.BatchNorm3d):
        raise BadInput(f"only BatchNorm can be folded into a convolution, got {type(norm).__name__}; use norm='batch'")
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = (conv.bias - norm.running_mean) * factor + norm.bias
    return (conv.weight * factor.view(-1, 1, 1, 1, 1)).detach(), bias.detach()


def fold_decomposed(layer: DecomposedConv) -> Folded:
    """Eq. (4) as three kernels and a bias; the inner residual is one more at the middle of the first kernel."""
    pairs = [fold_norm(*branch) for branch in (layer.c1, layer.c2, layer.c3)]
    h, w, d = (weight.flatten(2).clone() for weight, _ in pairs)
    if layer.residual:
        out, inp, k = h.shape
        h[:, :, k // 2] += torch.eye(out).to(h) if inp == out else torch.ones_like(h[:, :, 0])
    return Folded(h, w, d, sum(bias for _, bias in pairs))
