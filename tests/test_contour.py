"""The contour is eq. (1) of the contour paper, dilated: checked against plain loops and against scipy."""

import numpy as np
import pytest
from helpers_ct import ORIENTATIONS, block, lps_affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from ctvlm_lib import mask as masks
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import contour
from ctvlm_lib.volume import save_nifti

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7)
MASKS = arrays(bool, SHAPES)
OPTIONS = {"thickness": st.sampled_from([1, 3, 5]), "side": st.sampled_from(["inner", "both"])}


def _is_set(plane, h, w) -> bool:
    """Pixels beyond the image count as background."""
    return 0 <= h < plane.shape[0] and 0 <= w < plane.shape[1] and bool(plane[h, w])


def _equation_1(plane, side) -> set[tuple[int, int]]:
    """Pixels that differ from one of their eight neighbours, on the image and one step around it: a plain loop."""
    edge = set()
    for h in range(-1, plane.shape[0] + 1):
        for w in range(-1, plane.shape[1] + 1):
            around = [_is_set(plane, h + i, w + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            own = _is_set(plane, h, w)
            if any(value != own for value in around) and (own or side == "both"):
                edge.add((h, w))
    return edge


def _plain_contour(mask, thickness, side) -> np.ndarray:
    reach = thickness // 2
    line = np.zeros(mask.shape, bool)
    for k, plane in enumerate(mask):
        for h, w in _equation_1(plane, side):
            line[k, max(0, h - reach) : max(0, h + reach + 1), max(0, w - reach) : max(0, w + reach + 1)] = True
    return line


@settings(max_examples=150)
@given(MASKS, OPTIONS["thickness"], OPTIONS["side"])
def test_contour_equals_the_plain_loop(mask, thickness, side):
    expected = _plain_contour(mask, thickness, side)
    np.testing.assert_array_equal(contour(mask, thickness, side, largest_component=False), expected)


def _scipy_contour(mask, thickness, side) -> np.ndarray:
    """Label, border by erosion or dilation, dilation: slice by slice, on a padded image."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count:
        mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    square, pad = np.ones((3, 3)), 4
    line = np.zeros(mask.shape, bool)
    for k, plane in enumerate(np.pad(mask, ((0, 0), (pad, pad), (pad, pad)))):
        edge = plane & ~ndimage.binary_erosion(plane, square)
        if side == "both":
            edge |= ndimage.binary_dilation(plane, square) & ~plane
        if thickness > 1:
            edge = ndimage.binary_dilation(edge, square, iterations=thickness // 2)
        line[k] = edge[pad:-pad, pad:-pad]
    return line


@settings(max_examples=60)
@given(MASKS, OPTIONS["thickness"], OPTIONS["side"])
def test_contour_with_largest_component_equals_scipy(mask, thickness, side):
    np.testing.assert_array_equal(contour(mask, thickness, side), _scipy_contour(mask, thickness, side))


@pytest.mark.parametrize("side", ["inner", "both"])
@pytest.mark.parametrize("thickness", [1, 3, 7])
def test_contour_of_a_large_irregular_region_equals_scipy(thickness, side):
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(9, 60, 70)), (1, 4, 4))
    mask = noise > 0.02  # several parts, holes, and parts cut by the border
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] > 1 and mask[:, 0].any()
    np.testing.assert_array_equal(contour(mask, thickness, side), _scipy_contour(mask, thickness, side))


@given(MASKS)
def test_inner_line_of_one_pixel_lies_in_the_region(mask):
    line = contour(mask, 1, "inner", largest_component=False)
    assert not (line & ~mask).any()
    assert (line.any(axis=(1, 2)) == mask.any(axis=(1, 2))).all()


@given(MASKS)
def test_two_sided_line_of_one_pixel_is_equation_1_as_printed(mask):
    line = contour(mask, 1, "both", largest_component=False)
    for k, plane in enumerate(mask):
        marked = _equation_1(plane, "both")
        expected = {(h, w) for h, w in marked if 0 <= h < plane.shape[0] and 0 <= w < plane.shape[1]}
        assert set(map(tuple, np.argwhere(line[k]).tolist())) == expected


def test_five_by_five_square_by_hand():
    mask = block((1, 9, 9), ((0, 2, 2), (1, 7, 7)))
    ring = mask.copy()
    ring[0, 3:6, 3:6] = False
    np.testing.assert_array_equal(contour(mask, 1), ring)
    assert contour(mask, 1).sum() == 16
    assert contour(mask, 3).sum() == 7 * 7 - 1  # one pixel further on each side; only the middle is left open
    assert contour(mask, 1, "both").sum() == 7 * 7 - 3 * 3
    assert contour(mask, 5).sum() == 9 * 9


@given(MASKS, OPTIONS["thickness"], OPTIONS["side"], st.data())
def test_turning_and_flipping_the_slices_turns_and_flips_the_line(mask, thickness, side, data):
    def turned(array):
        for axis in (0, 1, 2):
            array = np.flip(array, axis) if flips[axis] else array
        return array.transpose(0, 2, 1) if swap else array

    flips, swap = data.draw(st.tuples(*[st.booleans()] * 3)), data.draw(st.booleans())
    options = {"thickness": thickness, "side": side, "largest_component": False}
    expected = turned(contour(mask, **options))
    np.testing.assert_array_equal(contour(np.ascontiguousarray(turned(mask)), **options), expected)


@given(MASKS, st.tuples(*[st.integers(0, 4)] * 3), OPTIONS["side"])
def test_moving_the_region_moves_the_line(mask, shift, side):
    def placed(at):
        whole = np.zeros(tuple(n + 14 for n in mask.shape), bool)
        whole[tuple(slice(a, a + n) for a, n in zip(at, mask.shape, strict=True))] = mask
        return whole

    first, second = contour(placed((5, 5, 5)), 3, side), contour(placed(tuple(5 + s for s in shift)), 3, side)
    np.testing.assert_array_equal(second, np.roll(first, shift, (0, 1, 2)))


def test_slices_without_the_region_stay_empty():
    mask = block((6, 12, 12), ((2, 3, 3), (4, 9, 9)))
    assert contour(mask, 5).any(axis=(1, 2)).tolist() == [False, False, True, True, False, False]
    assert not contour(np.zeros((3, 4, 5), bool)).any()


def test_only_the_largest_part_is_outlined_unless_all_are_asked_for():
    mask = block((3, 20, 20), ((0, 1, 1), (3, 8, 8)), ((1, 14, 14), (2, 17, 17)))
    assert not contour(mask)[:, 11:, 11:].any()
    assert contour(mask, largest_component=False)[1, 11:, 11:].any()


def test_a_region_cut_by_the_image_border_is_closed_along_it():
    mask = block((1, 8, 8), ((0, 0, 2), (1, 5, 7)))
    assert contour(mask, 1)[0, 0, 2:7].all()


def test_contour_leaves_its_input_alone():
    mask = block((3, 9, 9), ((1, 2, 2), (2, 6, 6)))
    before = mask.copy()
    contour(mask, 3, "both")
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PIR", "SAL"])
def test_contour_survives_a_flipped_affine(tmp_path, orientation):
    """The same anatomy in a file of other axes gives the same line, although the stored arrays differ."""
    assert orientation in ORIENTATIONS
    mask = block((7, 11, 13), ((2, 3, 1), (5, 9, 6)), ((3, 5, 6), (4, 7, 11)))
    file = save_nifti(tmp_path / "liver.nii.gz", mask.astype(np.uint8), lps_affine(), orientation)
    loaded = masks.load(file)
    np.testing.assert_array_equal(contour(loaded.binary("liver")), contour(mask))
    np.testing.assert_allclose(loaded.affine, lps_affine(), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "options", "told"),
    [
        (np.zeros((2, 3, 4), np.uint8), {}, "uint8 array"), (np.zeros((3, 4), bool), {}, r"shape \(3, 4\)"),
        ([[[True]]], {}, "got list"), (np.zeros((2, 3, 4), bool), {"thickness": 2}, "odd number of pixels"),
        (np.zeros((2, 3, 4), bool), {"thickness": 0}, "odd"), (np.zeros((2, 3, 4), bool), {"thickness": -1}, "odd"),
        (np.zeros((2, 3, 4), bool), {"thickness": 1.5}, "odd"),
        (np.zeros((2, 3, 4), bool), {"side": "outer"}, "'inner' or 'both'"),
    ],
)  # fmt: skip
def test_what_has_no_contour_is_refused(mask, options, told):
    with pytest.raises(BadInput, match=told):
        contour(mask, **options)
