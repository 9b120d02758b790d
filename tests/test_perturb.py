"""Masks that are wrong by a known number of millimetres."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import perturb

SPACING = (10.0, 5.0, 4.0)


def ball():
    z, y, x = np.ogrid[:9, :21, :25]
    return ((z - 4) * 10) ** 2 + ((y - 9) * 5) ** 2 + ((x - 13) * 4) ** 2 <= 26**2


def test_dilation_reaches_every_voxel_within_the_distance():
    grown, at = perturb.dilate(ball(), 11, SPACING), np.argwhere(ball()) * SPACING
    for voxel in np.argwhere(np.ones(grown.shape)):
        near = np.linalg.norm(at - voxel * SPACING, axis=1).min() <= 11
        assert grown[tuple(voxel)] == near


def test_erosion_is_the_dilation_of_what_is_outside():
    assert np.array_equal(perturb.erode(ball(), 6, SPACING), ~perturb.dilate(~ball(), 6, SPACING))


def test_erosion_never_leaves_nothing():
    kept = perturb.erode(ball(), 500, SPACING)
    assert kept.any()
    assert (kept <= ball()).all()


@given(st.floats(0, 40), st.floats(0, 40))
def test_more_millimetres_give_a_larger_mask(a, b):
    small, large = (perturb.dilate(ball(), mm, SPACING) for mm in sorted((a, b)))
    assert (small <= large).all()
    less, more = (perturb.erode(ball(), mm, SPACING) for mm in sorted((b, a), reverse=True))
    assert less.sum() <= more.sum()


@pytest.mark.parametrize(("direction", "axis", "sign"), [("left", 2, 1), ("right", 2, -1), ("back", 1, 1)])
def test_a_shift_moves_the_middle_by_the_distance(direction, axis, sign):
    moved = perturb.shift(ball(), 8.1, SPACING, direction)
    way = (np.array(ndimage.center_of_mass(moved)) - ndimage.center_of_mass(ball())) * SPACING
    wanted = np.zeros(3)
    wanted[axis] = sign * round(8.1 / SPACING[axis]) * SPACING[axis]
    assert way == pytest.approx(wanted)


@given(st.floats(0, 500), st.sampled_from(sorted(perturb.DIRECTIONS)))
def test_a_shift_keeps_the_shape_and_stops_at_the_border(mm, direction):
    assert perturb.shift(ball(), mm, SPACING, direction).sum() == ball().sum()


def test_zero_millimetres_change_nothing():
    for change in (perturb.dilate, perturb.erode, perturb.shift):
        assert np.array_equal(change(ball(), 0, SPACING), ball())


def test_the_neighbour_is_the_nearest_in_millimetres():
    masks = {name: np.zeros((9, 21, 25), bool) for name in ("liver", "near in mm", "near in voxels", "absent")}
    masks["liver"][4, 10, 12] = masks["near in mm"][4, 10, 16] = masks["near in voxels"][6, 10, 12] = True
    assert perturb.neighbour(masks, "liver", SPACING) == "near in mm"
    assert perturb.neighbour({"liver": masks["liver"]}, "liver", SPACING) is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: perturb.dilate(ball(), -1, SPACING), "0 or more, got -1"),
        (lambda: perturb.erode(np.zeros((3, 3, 3), bool), 1, SPACING), "the mask is empty"),
        (lambda: perturb.shift(ball(), 1, SPACING, "up"), "no direction is called 'up'"),
        (lambda: perturb.neighbour({"liver": ball()}, "spleen", SPACING), "spleen isn't in the volume"),
    ],
)
def test_impossible_changes_are_refused(call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call()
