"""How long a prompt takes on a 240×480×480 volume, beside the plain way. Run by `make bench`, never as a timed test.

The contour paper (§3.1) claims less than 0.2 s a volume for the prompt. The regions have the extents of organs on
CT-CLIP's grid of 1.5×0.75×0.75 mm.
"""

import time

import numpy as np
import pytest
from scipy import ndimage

from ctvlm_lib.mask import largest_component
from ctvlm_lib.prompt import contour, overlay
from ctvlm_lib.volume import Volume

SHAPE = (240, 480, 480)
LIMITS_S = {"spleen-like": 0.1, "liver-like": 0.2, "lung-like": 0.4}


def ellipsoid(centre, radii, rough=0.0, seed=0):
    """A bool ellipsoid in SHAPE; ``rough`` lets its surface wander by so large a share of the radius."""
    mask = np.zeros(SHAPE, dtype=bool)
    box = tuple(
        slice(max(0, int(c - 1.3 * r)), min(n, int(c + 1.3 * r) + 1))
        for c, r, n in zip(centre, radii, SHAPE, strict=True)
    )
    axes = np.ogrid[box]
    radius = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True))
    waves = sum(np.sin((7 + 2 * i + seed) * a / 40) for i, a in enumerate(axes))
    mask[box] = radius + rough * waves < 1
    return mask


def region(name):
    """A region as large as a spleen, a liver, or a pair of lungs with vessels cut out; plus specks to be dropped."""
    if name == "spleen-like":
        mask = ellipsoid((90, 290, 350), (38, 60, 40), rough=0.1)
    elif name == "liver-like":
        mask = ellipsoid((90, 220, 160), (60, 110, 110), rough=0.1)
    else:
        mask = ellipsoid((130, 240, 140), (100, 140, 85), rough=0.05) | ellipsoid(
            (130, 240, 340), (100, 140, 85), rough=0.05, seed=1
        )
        mask[120:124, 235:245, 200:300] = True  # the two touch, as thresholded lungs do at the carina
        vessels = np.random.default_rng(0).integers(0, SHAPE, size=(2000, 3))
        for d, h, w in vessels:
            mask[d : d + 6, h : h + 4, w : w + 4] = False
    for d, h, w in np.random.default_rng(1).integers(10, 230, size=(20, 3)):
        mask[d : d + 2, h : h + 2, w : w + 2] = True
    return mask


def plain_contour(mask):
    """The straightforward way: scipy's label, then border and dilation slice by slice."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    kept = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    line = np.zeros_like(kept)
    square = np.ones((3, 3))
    for k in range(len(kept)):
        if kept[k].any():
            border = kept[k] & ~ndimage.binary_erosion(kept[k], square)
            line[k] = ndimage.binary_dilation(border, square)
    return line


@pytest.mark.parametrize("name", LIMITS_S)
def test_mask_to_three_pixel_contour(benchmark, name):
    mask = region(name)
    line = benchmark.pedantic(contour, args=(mask,), rounds=5, warmup_rounds=1)
    start = time.perf_counter()
    expected = plain_contour(mask)
    plain_s = time.perf_counter() - start
    assert np.array_equal(line, expected)
    ours_s = benchmark.stats.stats.min
    benchmark.extra_info |= {
        "plain_s": round(plain_s, 3),
        "times_faster": round(plain_s / ours_s, 1),
        "limit_s": LIMITS_S[name],
    }
    benchmark.extra_info["component_s"] = round(_seconds(largest_component, mask), 3)


def test_overlay(benchmark):
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, size=SHAPE).astype(np.float32)
    volume = Volume(hu, np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    line = contour(region("liver-like"))
    picture = benchmark.pedantic(overlay, args=(volume, [(line, "blue")]), rounds=3, warmup_rounds=1)
    assert np.array_equal(picture[line], np.broadcast_to((0, 0, 255), (int(line.sum()), 3)))
    benchmark.extra_info["limit_s"] = 0.6


def _seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
