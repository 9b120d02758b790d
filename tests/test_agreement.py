"""A prompt from a predicted mask against the one from the true mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import contour
from ctvlm_lib.prompt.agreement import agreement

SPACING = (5.0, 1.5, 0.8)


@pytest.fixture(scope="module")
def block():
    mask = np.zeros((9, 30, 40), dtype=bool)
    mask[2:7, 8:20, 11:29] = True
    return mask


def plain(mask, true, spacing):
    """All pairs of pixels, slice by slice."""
    a, b = contour(mask, 1), contour(true, 1)
    found = []
    for k in range(len(a)):
        p, q = np.argwhere(a[k]) * spacing[1:], np.argwhere(b[k]) * spacing[1:]
        if len(p) and len(q):
            apart = np.linalg.norm(p[:, None] - q[None], axis=-1)
            found += [*apart.min(axis=1), *apart.min(axis=0)]
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def test_a_mask_agrees_with_itself(block):
    same = agreement(block, block, SPACING)
    assert (same.contour_mm, same.box_mm, same.slices, same.missed, same.added) == (0, 0, 5, 0, 0)


def test_distances_equal_those_of_all_pairs(block):
    rng = np.random.default_rng(0)
    other = np.roll(block, (0, 3, -2), axis=(0, 1, 2)) & (rng.random(block.shape) < 0.97)
    got = agreement(other, block, SPACING)
    assert (got.contour_mm, got.contour_p95_mm) == pytest.approx(plain(other, block, SPACING), rel=1e-9)


def test_a_moved_box_is_off_by_its_move(block):
    moved = np.roll(block, (3, -2), axis=(1, 2))
    assert agreement(moved, block, SPACING).box_mm == pytest.approx((3 * 1.5 + 2 * 0.8) / 2)


def test_slices_that_only_one_is_drawn_on_are_counted(block):
    higher = np.roll(block, 2, axis=0)
    got = agreement(higher, block, SPACING)
    assert (got.slices, got.missed, got.added) == (5, 2, 2) and got.contour_mm == 0


def test_a_mask_that_was_not_found_has_no_distance(block):
    got = agreement(np.zeros_like(block), block, SPACING)
    assert np.isnan(got.contour_mm) and np.isnan(got.box_mm) and got.missed == got.slices == 5


@given(up=st.integers(-5, 5), left=st.integers(-5, 5))
def test_the_distance_is_symmetric(up, left):
    mask = np.zeros((3, 30, 40), dtype=bool)
    mask[1, 10:18, 12:25] = True
    other = np.roll(mask, (up, left), axis=(1, 2))
    one, two = agreement(mask, other, SPACING), agreement(other, mask, SPACING)
    assert one.contour_mm == pytest.approx(two.contour_mm) and one.box_mm == pytest.approx(two.box_mm)


def test_what_cant_be_compared_is_refused(block):
    with pytest.raises(BadInput, match="put both on one grid"):
        agreement(block[:-1], block, SPACING)
    with pytest.raises(BadInput, match="the true mask is empty"):
        agreement(block, np.zeros_like(block), SPACING)
