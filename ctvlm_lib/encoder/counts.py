"""Parameters and operations of each DCFormer variant, computed, beside the numbers that were published."""

import torch
from torch import nn

from ctvlm_lib.encoder.config import VARIANTS, variant_config
from ctvlm_lib.encoder.model import DCFormer

PUBLISHED_SIZE_DHW = (256, 512, 512)
PUBLISHED = {  # million parameters, "GFLOPS" at 512×512×256: README of the DCFormer repository (6bdc457)
    "nano": (0.92, 34.21),
    "naive": (5.85, 49.48),
    "tiny": (15.1, 168.2),
}
NORM_OPERATIONS = 5
AGREES_WITHIN = 0.01  # relative: published numbers have two or three digits


def parameter_table(preset: str | None = None) -> list[dict]:
    """One row a variant, as ``pandas.DataFrame(parameter_table())`` shows it.

    Columns: variant; whose; blocks and channels; parameters; millions of them, here and published, and whether the
    two agree within a hundredth; the same for billions of operations on one volume of 512×512×256 voxels (D last).

    Args:
        preset: ``"as_released"`` or ``"as_in_paper"``; None keeps each variant's own switches.
    """
    return [_row(variant, preset) for variant in VARIANTS]


def _row(variant: str, preset: str | None) -> dict:
    with torch.device("meta"):  # shapes only
        encoder = DCFormer(variant_config(variant, preset=preset))
    parameters = sum(p.numel() for p in encoder.parameters())
    operations_g = operations(encoder, PUBLISHED_SIZE_DHW) / 1e9
    published_m, published_g = PUBLISHED.get(variant, (None, None))
    return {
        "variant": variant,
        "whose": "ours" if variant == "phantom" else "released",
        "blocks": encoder.config.blocks,
        "channels": encoder.config.channels,
        "parameters": parameters,
        "parameters, M": round(parameters / 1e6, 3),
        "published, M": published_m,
        "parameters agree": _agree(parameters / 1e6, published_m),
        "operations, G": round(operations_g, 2),
        "published, G": published_g,
        "operations agree": _agree(operations_g, published_g),
    }


def _agree(here: float, published: float | None) -> bool | None:
    return None if published is None else abs(here - published) <= AGREES_WITHIN * published


def operations(encoder: DCFormer, size_dhw: tuple[int, int, int]) -> int:
    """Operations for one volume of (D, H, W) voxels, counted as the published numbers are.

    Every weight of a convolution or linear layer is used once at each voxel of its stage's grid: a multiplication with
    its addition is one operation. A BatchNorm takes five for each voxel and channel, which is what fvcore counts in
    train mode. No pass through the network is needed.

    Source: the released script counts with fvcore's FlopCountAnalysis.
    """
    total = 0
    for stage, grid in zip(encoder.encoder.children(), encoder.grids(size_dhw), strict=True):
        layers = [m.weight.numel() for m in stage.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
        norms = [m.weight.numel() for m in stage.modules() if isinstance(m, nn.BatchNorm3d | nn.GroupNorm)]
        total += grid[0] * grid[1] * grid[2] * (sum(layers) + NORM_OPERATIONS * sum(norms))
    return total
