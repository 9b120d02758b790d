"""PyTorch's counter of operations beside counts by hand: what it counts, and what it leaves out.

It adds up matrix products, convolutions and attention: a multiplication and its addition are two operations. It leaves
out everything that is done once for each number: norms, activations, softmax, pooling, sums, biases of convolutions. Of
causal attention it counts the whole square.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.cost.measure import operations

if TYPE_CHECKING:
    import pandas


def by_hand() -> "pandas.DataFrame":
    """The counter beside counts by hand, on layers of odd sizes.

    Returns:
        columns layer, by hand, counted, agrees, note. What the counter leaves out has a row that doesn't agree.
    """
    import pandas

    rows = []
    for layer, wanted, run, note in _cases():
        counted = operations(run)
        rows.append({"layer": layer, "by hand": wanted, "counted": counted, "agrees": counted == wanted, "note": note})
    return pandas.DataFrame(rows)


def _cases() -> Iterator[tuple[str, int, Callable[[], object], str]]:
    """Layer, operations by hand, the call, and what to know."""
    with torch.device("meta"):
        rows, volume = torch.empty(3, 20), torch.empty(2, 6, 5, 7, 9)
        linear, norm = nn.Linear(20, 7), nn.BatchNorm3d(6).eval()
        dense = nn.Conv3d(6, 4, 3, stride=2, padding=1)
        grouped = nn.Conv3d(6, 4, 3, padding=1, groups=2)
        axis = nn.Conv3d(6, 6, (1, 5, 1), padding=(0, 2, 0), groups=6)
    yield "linear", 2 * 3 * 20 * 7, lambda: linear(rows), "rows × inputs × outputs"
    for name, conv in (("conv3d", dense), ("conv3d, 2 groups", grouped), ("conv3d along one axis, depthwise", axis)):
        voxels = prod(conv(volume).shape[2:])
        each = prod(conv.kernel_size) * conv.in_channels // conv.groups
        note = "places × outputs × kernel × inputs of a group; zeros beyond the edge count as well"
        yield name, 2 * 2 * voxels * conv.out_channels * each, lambda conv=conv: conv(volume), note
    batch, heads, pairs, length, width = 2, 6, 2, 11, 8
    square = 2 * 2 * batch * heads * length * length * width  # queries with keys, weights with values
    for name, device, causal, note in (
        ("attention", "meta", False, "two products of heads × length² × width; grouped keys are read again"),
        ("attention, causal", "meta", True, "the whole square is counted, and half of it is needed"),
        ("attention on a CPU", "cpu", False, "in its plain form: the counter has no rule for the CPU's fused one"),
    ):
        query = torch.zeros(batch, heads, length, width, device=device)
        key = torch.zeros(batch, pairs, length, width, device=device)
        yield name, square, lambda q=query, k=key, c=causal: _attended(q, k, c), note
    yield "batch norm", 2 * volume.numel(), lambda: norm(volume), "left out, as is all that is done once a number"


def _attended(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, key, is_causal=causal, enable_gqa=True)
