"""Overlap of masks: what a plain loop over surface voxels gives, in mm of the given spacing, and empty masks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.overlap import Overlap, overlap, summary

SPACING = (2.5, 0.8, 1.1)


def blob(seed, shape=(9, 11, 10)):
    """A few random boxes, sometimes at the border."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(3):
        start = [rng.integers(0, n - 1) for n in shape]
        mask[tuple(slice(a, a + rng.integers(2, 6)) for a in start)] = True
    return mask


def by_hand(found, true, spacing):
    """Dice; mean and larger 95th percentile of the distances from each surface voxel to the other surface."""
    surfaces = []
    for mask in (found, true):
        padded = np.pad(mask, 1)
        surfaces.append(np.argwhere(padded & ~ndimage.binary_erosion(padded)) * np.array(spacing))
    distance = cdist(*surfaces)
    ways = distance.min(axis=1), distance.min(axis=0)
    dice = 2 * (found & true).sum() / (found.sum() + true.sum())
    return dice, np.concatenate(ways).mean(), max(np.percentile(way, 95) for way in ways)


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_all_three_are_what_a_plain_loop_gives(seed):
    found, true = blob(seed), blob(seed + 1)
    made = overlap(found, true, SPACING)
    assert (made.dice, made.surface_mm, made.hausdorff95_mm) == pytest.approx(by_hand(found, true, SPACING), rel=1e-4)
    assert made.empty == ""


@pytest.mark.parametrize("axis", range(3))
def test_a_plate_moved_by_two_voxels_is_two_spacings_away(axis):
    plate = np.zeros((12, 12, 12), bool)
    plate[tuple(slice(3, 4) if k == axis else slice(1, 11) for k in range(3))] = True
    made = overlap(np.roll(plate, 2, axis), plate, SPACING)
    assert made.surface_mm == pytest.approx(2 * SPACING[axis]) and made.hausdorff95_mm == pytest.approx(
        2 * SPACING[axis]
    )
    assert made.dice == 0


def test_order_place_and_unit_do_not_matter():
    found, true = blob(3), blob(4)
    made, back = overlap(found, true, SPACING), overlap(true, found, SPACING)
    assert made == back
    wide = [np.pad(mask, ((2, 5), (0, 3), (4, 1))) for mask in (found, true)]
    assert overlap(*wide, SPACING) == made
    twice = overlap(found, true, tuple(2 * mm for mm in SPACING))
    assert (twice.surface_mm, twice.dice) == pytest.approx((2 * made.surface_mm, made.dice))
    assert overlap(true, true, SPACING) == Overlap(1.0, 0.0, 0.0)


def test_the_95th_percentile_forgives_a_speck_and_the_mean_hardly_sees_it():
    ball = np.linalg.norm(np.indices((30, 30, 30)) - 10.0, axis=0) < 8
    speckled = ball.copy()
    speckled[28, 28, 28] = True
    made = overlap(speckled, ball, (1, 1, 1))
    assert made.hausdorff95_mm == 0 and 0 < made.surface_mm < 0.1 and made.dice > 0.999


def test_empty_masks_score_as_the_convention_says():
    empty, full = np.zeros((4, 5, 6), bool), np.ones((4, 5, 6), bool)
    assert overlap(empty, empty, SPACING) == Overlap(1.0, 0.0, 0.0, "both")
    assert overlap(empty, full, SPACING) == Overlap(0.0, math.inf, math.inf, "found")
    assert overlap(full, empty, SPACING) == Overlap(0.0, math.inf, math.inf, "true")


def test_the_dice_of_two_empty_masks_is_monai_s_without_ignoring_them():
    import torch
    from monai.metrics import compute_dice

    empty = torch.zeros((1, 1, 4, 5, 6))
    assert (
        float(compute_dice(empty, empty, ignore_empty=False)) == overlap(*[empty[0, 0].numpy() > 0] * 2, SPACING).dice
    )


def test_a_summary_says_how_many_distances_it_leaves_out():
    cases = [Overlap(0.5, 2.0, 6.0), Overlap(0.0, math.inf, math.inf, "found"), Overlap(1.0, 0.0, 0.0, "both")]
    assert summary(cases) == {"n": 3, "dice": 0.5, "surface_mm": 1.0, "hausdorff95_mm": 3.0, "no_distance": 1}
    assert math.isnan(summary(cases[1:2])["surface_mm"])
    with pytest.raises(BadInput, match="at least one comparison"):
        summary([])


@pytest.mark.parametrize(
    ("found", "true", "spacing", "words"),
    [
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 4), bool), SPACING, "put both on one grid"),
        (np.ones((3, 3, 3), np.uint8), np.ones((3, 3, 3), bool), SPACING, "found mask is uint8"),
        (np.ones((3, 3), bool), np.ones((3, 3), bool), SPACING, r"give bool \(D, H, W\)"),
        (np.ones((3, 3, 3), bool), [[[True]]], SPACING, "true mask is list"),
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1, 1), "three positive lengths"),
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1, 0, 1), "three positive lengths"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(found, true, spacing, words):
    with pytest.raises(BadInput, match=words):
        overlap(found, true, spacing)
