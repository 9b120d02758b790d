"""The box: tight around the region on each slice, drawn with a line of the asked thickness, clipped at the border."""

import numpy as np
import pytest
from helpers_ct import block
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.prompt import box_outline, contour

MASKS = arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=8))
THICKNESS = st.sampled_from([1, 3, 5])


def _plain_box(mask, thickness, box) -> np.ndarray:
    """A pixel belongs to the line if a frame pixel lies within reach of it, in chessboard distance."""
    line, reach = np.zeros(mask.shape, bool), thickness // 2
    if not mask.any():
        return line
    ds, hs, ws = np.nonzero(mask)
    for k in range(ds.min(), ds.max() + 1):
        if box == "slice":
            hs, ws = np.nonzero(mask[k])
        if len(hs) == 0:
            continue
        top, bottom, left, right = hs.min(), hs.max(), ws.min(), ws.max()
        frame = [(h, w) for h in range(top, bottom + 1) for w in range(left, right + 1)]
        frame = [(h, w) for h, w in frame if h in (top, bottom) or w in (left, right)]
        for h, w in frame:
            line[k, max(0, h - reach) : h + reach + 1, max(0, w - reach) : w + reach + 1] = True
    return line


@given(MASKS, THICKNESS, st.sampled_from(["slice", "volume"]))
def test_box_equals_the_plain_loop(mask, thickness, box):
    np.testing.assert_array_equal(box_outline(mask, thickness, box), _plain_box(mask, thickness, box))


@given(MASKS, THICKNESS, st.sampled_from(["slice", "volume"]))
def test_box_encloses_the_contour_of_the_same_thickness(mask, thickness, box):
    """On every slice that the region meets, no contour pixel lies outside the box's outer rim."""
    line, frame = contour(mask, thickness, largest_component=False), box_outline(mask, thickness, box)
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        for inner, outer in zip(bounding_box(line[k]), bounding_box(frame[k]), strict=True):
            assert outer.start <= inner.start and inner.stop <= outer.stop


@given(MASKS)
def test_box_of_one_pixel_is_tight(mask):
    frame = box_outline(mask, 1)
    for plane, drawn in zip(mask, frame, strict=True):
        assert bounding_box(drawn) == bounding_box(plane)


def test_square_by_hand():
    mask = block((1, 12, 12), ((0, 3, 4), (1, 8, 9)))
    assert box_outline(mask, 1).sum() == 16
    frame = np.ones((7, 7), bool)
    frame[3, 3] = False  # centred on the outermost pixels: one more outside, one more inside
    np.testing.assert_array_equal(box_outline(mask, 3)[0, 2:9, 3:10], frame)
    assert box_outline(mask, 3).sum() == frame.sum()


def test_box_is_clipped_at_the_image_border():
    mask = block((1, 6, 6), ((0, 0, 0), (1, 6, 3)))
    frame = box_outline(mask, 3)
    assert frame[0, 0, :4].all() and frame[0, :, 0].all() and not frame[0, :, 4:].any()


def test_slice_box_follows_the_slice_and_volume_box_does_not():
    mask = block((6, 12, 12), ((1, 4, 4), (2, 6, 6)), ((3, 2, 3), (4, 10, 11)))
    sliced, whole = box_outline(mask, 1), box_outline(mask, 1, box="volume")
    assert bounding_box(sliced[1])[0] == slice(4, 6)
    assert sliced.any(axis=(1, 2)).tolist() == [False, True, False, True, False, False]
    assert whole.any(axis=(1, 2)).tolist() == [False, True, True, True, False, False]
    np.testing.assert_array_equal(whole[1], whole[3])
    assert bounding_box(whole[1]) == (slice(2, 10), slice(3, 11))


def test_an_empty_mask_has_no_box():
    assert not box_outline(np.zeros((2, 3, 4), bool)).any()


@pytest.mark.parametrize("options", [{"thickness": 4}, {"box": "patient"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(BadInput):
        box_outline(np.ones((2, 3, 4), bool), **options)
