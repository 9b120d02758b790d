"""The overlay: prompt pixels in their colour, everything else the windowed grey."""

import numpy as np
import pytest
from helpers_ct import block, small_ct
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import COLOURS, overlay
from ctvlm_lib.volume import WINDOWS, hu_window

CT = small_ct((4, 7, 9))


@given(arrays(bool, CT.shape), arrays(bool, CT.shape), st.sampled_from(sorted(WINDOWS)))
def test_overlay_changes_only_prompt_pixels(first, second, window):
    plain = overlay(CT, [], window)
    drawn = overlay(CT, [(first, "blue"), (second, "red")], window)
    np.testing.assert_array_equal(drawn[~(first | second)], plain[~(first | second)])
    assert (drawn[second] == COLOURS["red"]).all()  # a later line covers an earlier one
    assert (drawn[first & ~second] == COLOURS["blue"]).all()


@given(st.sampled_from(sorted(WINDOWS)) | st.tuples(st.floats(-800, 600), st.floats(1, 3000)))
def test_grey_is_the_rounded_window_within_one_level(window):
    level, width = WINDOWS[window] if isinstance(window, str) else window
    picture = overlay(CT, [], window).astype(int)
    expected = np.rint(hu_window(CT.hu, level, width) * 255.0)
    assert np.abs(picture - expected[..., None]).max() <= 1
    assert (picture[..., 0] == picture[..., 1]).all() and (picture[..., 0] == picture[..., 2]).all()


def test_the_picture_is_rgb_of_the_volumes_shape_and_the_ct_is_left_alone():
    before = CT.hu.copy()
    picture = overlay(CT, [(np.ones(CT.shape, bool), "green")])
    assert picture.shape == (*CT.shape, 3) and picture.dtype == np.uint8
    assert (picture == (0, 255, 0)).all()
    np.testing.assert_array_equal(CT.hu, before)


def test_a_colour_may_be_given_in_rgb():
    line = block(CT.shape, ((0, 0, 0), (1, 1, 1)))
    assert overlay(CT, [(line, (10, 20, 30))])[0, 0, 0].tolist() == [10, 20, 30]


def test_the_papers_colours_are_pure():
    assert (COLOURS["blue"], COLOURS["green"], COLOURS["red"]) == ((0, 0, 255), (0, 255, 0), (255, 0, 0))


@pytest.mark.parametrize(
    ("outline", "window", "told"),
    [
        ((np.zeros((4, 7, 8), bool), "blue"), "lung", "4×7×8 but the volume is 4×7×9"),
        ((np.zeros(CT.shape, bool), "mauve"), "lung", "no colour is called 'mauve'"),
        ((np.zeros(CT.shape, bool), (0, 0, 256)), "lung", "three values 0…255"),
        ((np.zeros(CT.shape, bool), "blue"), "chest", "no window is called 'chest'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(outline, window, told):
    with pytest.raises(BadInput, match=told):
        overlay(CT, [outline], window)
