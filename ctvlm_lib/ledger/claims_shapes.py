"""Claims about shapes: token grids, channels, drawn lines, lists of classes."""

import time
from functools import cache, partial
from math import prod

import numpy as np
import torch
from torch import nn

from ctvlm_lib import anatomy
from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.ledger.claims import said
from ctvlm_lib.ledger.claims_arithmetic import Computed, computes
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.records import abdomen_atlas, ct_rate
from ctvlm_lib.vlm.projector import PROJECTORS
from ctvlm_lib.volume.recipe import RECIPES

MED3DVLM, MEDVISTA3D, UVLM = (RECIPES[name].shape for name in ("Med3DVLM", "MedVista3D", "U-VLM"))
SUPPOSED_PATCH = 16  # voxels; MedVista3D doesn't say


# token grids
@cache
def _small() -> DCFormer:
    with torch.device("meta"):
        return DCFormer(variant_config("small"))


def _tokens(stage: int) -> Computed:
    grid = _small().grids(MED3DVLM)[stage]
    return Computed(prod(grid), "tokens", f"DCFormer-small turns {_by(MED3DVLM)} voxels into a grid of {_by(grid)}")


def _channels(stage: int) -> Computed:
    return Computed(_small().config.channels[stage], "channels", "of DCFormer-small as released")


computes("DCFormer tokens, last layer")(partial(_tokens, -1))
computes("DCFormer tokens, last layer but one")(partial(_tokens, -2))
computes("DCFormer channels, last layer")(partial(_channels, -1))
computes("DCFormer channels, last layer but one")(partial(_channels, -2))


@computes("DCFormer parallel convolutions")
def parallel_convolutions() -> Computed:
    found = [m for m in _small().encoder.s1[0].dwconv.modules() if isinstance(m, nn.Conv3d)]
    kernels = ", ".join(_by(m.kernel_size) for m in found)
    return Computed(len(found), "convolutions", f"in a block of DCFormer: {kernels}")


@computes("mixer streams")
def mixer_streams() -> Computed:
    with torch.device("meta"):
        mixer = PROJECTORS["mixer"](hidden_size=64)
    streams = [name for name, _ in mixer.named_children()]
    return Computed(len(streams), "modules", f"{' and '.join(streams)} of the mixer; both give {mixer.tokens} vectors")


@computes("slices of the encoder's input")
def input_slices() -> Computed:
    how = f"Med3DVLM's encoder reads {_by(MED3DVLM)} voxels; {_tokens(-1).value} is its number of last tokens"
    return Computed(MED3DVLM[0], "slices", how)


@computes("M3D tokens")
def m3d_tokens() -> Computed:
    from ctvlm_lib.encoder.vit import ViT3DConfig  # MONAI takes seconds to import

    config = ViT3DConfig()
    tokens = prod(n // s for n, s in zip(config.size_dhw_vox, config.strides_dhw()[0], strict=True))
    how = f"M3D's transformer: {_by(config.size_dhw_vox)} voxels in patches of {_by(config.patch_dhw_vox)}"
    return Computed(tokens, "tokens", f"{how}, {config.hidden_size} channels")


@computes("ViT-B width")
def vit_b() -> Computed:
    from ctvlm_lib.encoder.vit import ViT3D, ViT3DConfig

    config = ViT3DConfig(size_dhw_vox=MEDVISTA3D, patch_dhw_vox=(SUPPOSED_PATCH,) * 3)
    with torch.device("meta"):
        count = sum(p.numel() for p in ViT3D(config).parameters())
    how = f"as M3D's ViT-B, {config.layers} blocks; {count / 1e6:.1f} M parameters with patches of {SUPPOSED_PATCH}³"
    return Computed(config.hidden_size, "-", how)


@computes("MedVista3D input, slices")
def medvista3d_input() -> Computed:
    tokens = prod(n // SUPPOSED_PATCH for n in MEDVISTA3D)
    how = f"{_by(MEDVISTA3D)} voxels; patches of {SUPPOSED_PATCH}³, a size not given, make {tokens} tokens of them"
    return Computed(MEDVISTA3D[0], "voxels", how)


@computes("64k embeddings")
def queue() -> Computed:
    size, width = 2**16, int(said("medvista3d", "ViT-B embedding dimension"))
    how = f"64 · 1024; {size} embeddings of {width} numbers in 32 bits are {size * width * 4 / 1e6:.0f} MB"
    return Computed(size, "embeddings", how)


def _uvlm_tokens(stages_less: int) -> Computed:
    halvings = int(said("uvlm", "encoder stages")) - 1 - stages_less
    grid = [n // 2**halvings for n in UVLM]
    return Computed(prod(grid), "tokens", f"{_by(UVLM)} voxels halved {halvings} times are a grid of {_by(grid)}")


computes("U-VLM tokens, last stage")(partial(_uvlm_tokens, 0))
computes("U-VLM tokens, last stage but one")(partial(_uvlm_tokens, 1))


# drawn lines
def _region() -> np.ndarray:
    """A square that is larger than any line here is wide."""
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[0, 10:30, 10:30] = True
    return mask


def _width(line: np.ndarray) -> int:
    """Pixels of a closed line along the row through its middle, where it is crossed twice."""
    return int(line[0, 20].sum()) // 2


@computes("eq. (1), neighbours")
def neighbours() -> Computed:
    mask = np.zeros((1, 5, 5), dtype=bool)
    mask[0, 2, 2] = True
    marked = contour(mask, thickness=1, side="both")
    return Computed(int(marked.sum()) - 1, "neighbours", "a region of one pixel marks so many pixels beside itself")


@computes("eq. (1), line width")
def equation_width() -> Computed:
    how = "|S_uv − S_xy| is positive on both sides of an edge, so the line has a pixel inside and one outside"
    return Computed(_width(contour(_region(), 1, "both")), "pixels", how)


@computes("inner line, dilated")
def dilated_width() -> Computed:
    return Computed(_width(contour(_region(), 3, "inner")), "pixels", "the region's border pixels, dilated by 3 × 3")


@computes("eq. (1), dilated")
def equation_dilated() -> Computed:
    return Computed(_width(contour(_region(), 3, "both")), "pixels", "eq. (1) as printed, dilated by 3 × 3")


@computes("box line width")
def box_width() -> Computed:
    return Computed(_width(box_outline(_region())), "pixels", "the box's outline, half of it outside the box")


@computes("seconds to draw a contour")
def contour_seconds() -> Computed:
    depth, height, width = MED3DVLM
    z, y, x = np.ogrid[-1 : 1 : depth * 1j, -1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = (z / 0.8) ** 2 + (y / 0.6) ** 2 + (x / 0.7) ** 2 < 1
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        contour(mask)
        seconds.append(time.perf_counter() - start)
    how = f"this CPU, best of 3: largest part and line of a region of {mask.mean():.0%} of {_by(MED3DVLM)} voxels"
    return Computed(min(seconds), "s", f"{how}; finding the mask is not in it")


# lists of classes
_LISTS = {
    "VISTA-3D structures": (lambda: anatomy.label_lists()["127"], "structures", "the bundle's 132 less 5 deprecated"),
    "TotalSegmentator structures": (lambda: anatomy.vocabulary("totalsegmentator"), "organs", "version 2"),
    "CT-RATE classes": (lambda: ct_rate.LABELS, "classes", "the published labels"),
    "AbdomenAtlas lesion classes": (lambda: abdomen_atlas.ORGANS, "classes", "organs with lesion columns"),
}
for _name, (_list, _unit, _how) in _LISTS.items():
    computes(_name)(lambda make=_list, unit=_unit, how=_how: Computed(len(make()), unit, f"listed here: {how}"))


def _by(sizes) -> str:
    return "×".join(map(str, sizes))
