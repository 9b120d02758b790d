"""What is drawn: the right lines in the right colours, for encoders of one and of three channels."""

import numpy as np
import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.conditions import CONDITIONS, SWAPPED_COLOURS, Drawing, draw
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.records import protocol
from ctvlm_lib.vlm.colour import WAYS
from ctvlm_lib.vlm.image import ImageInput


@pytest.fixture
def masks():
    target, other = np.zeros((2, 6, 20, 24), bool)
    target[1:5, 4:12, 3:10] = True
    other[2:4, 5:15, 14:22] = True
    return target, other


def grey():
    return np.linspace(-1, 1, 6 * 20 * 24, dtype=np.float32).reshape(6, 20, 24)


def test_the_conditions_are_the_protocols():
    fixed = protocol.load().content["conditions"]
    assert list(CONDITIONS) == fixed["order"]
    assert dict(Drawing("none").colours) == fixed["colours"]


def test_no_prompt_leaves_the_picture_grey():
    picture = draw(grey(), Drawing("none"), 3)
    assert all(np.array_equal(channel, grey()) for channel in picture)


@pytest.mark.parametrize(("condition", "line"), [("contour", contour), ("box", box_outline)])
def test_a_prompt_paints_its_line_and_nothing_else(masks, condition, line):
    picture, on = draw(grey(), Drawing(condition, masks[0]), 3), line(masks[0], thickness=1)
    colour = {"contour": (-1, -1, 1), "box": (-1, 1, -1)}[condition]
    assert np.array_equal(np.unique(picture[:, on], axis=1)[:, 0], colour)
    assert np.array_equal(picture[:, ~on], np.repeat(grey()[None], 3, axis=0)[:, ~on])


def test_dual_draws_green_around_the_region_and_red_around_the_distractor(masks):
    picture = draw(grey(), Drawing("dual", *masks), 3)
    assert (picture[:, box_outline(masks[0], thickness=1)] == np.array([[-1], [1], [-1]])).all()
    assert (picture[:, box_outline(masks[1], thickness=1)] == np.array([[1], [-1], [-1]])).all()


def test_without_a_distractor_dual_is_the_box_alone(masks):
    assert np.array_equal(draw(grey(), Drawing("dual", masks[0]), 3), draw(grey(), Drawing("box", masks[0]), 3))


def test_swapped_colours_change_colours_only(masks):
    papers = draw(grey(), Drawing("dual", *masks), 3)
    swapped = draw(grey(), Drawing("dual", *masks, tuple(SWAPPED_COLOURS.items())), 3)
    red, green, blue = papers
    assert np.array_equal(swapped, [green, red, blue])


def test_a_grey_encoder_sees_the_colours_luminance(masks):
    on = contour(masks[0], thickness=1)
    seen = draw(grey(), Drawing("contour", masks[0]), 1)[0, on]
    assert seen == pytest.approx(0.114 * 255 / 127.5 - 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_draws_what_the_models_input_does(masks, way, channels):
    drawing = Drawing("dual", *masks)
    if (way, channels) == ("rgb", 1):
        with pytest.raises(BadInput, match="colours need an encoder of 3 channels and this one has 1"):
            draw(grey(), drawing, channels, colour=way)
        return
    picture = draw(grey(), drawing, channels, colour=way)
    made_by = ImageInput(grey().shape, channels, "cohort", way)
    assert np.array_equal(picture, made_by(grey(), drawing.lines()))
    own = "rgb" if channels == 3 else "luminance"
    assert np.array_equal(draw(grey(), drawing, channels), picture) == (way == own)


def test_out_of_window_lines_have_values_that_no_tissue_has(masks):
    drawing = Drawing("dual", *masks)
    picture, on = draw(grey(), drawing, 1, colour="out of window")[0], np.zeros(grey().shape, bool)
    for line, _ in drawing.lines():
        on |= line
    assert (picture[on] > grey().max()).all()
    assert len(np.unique(picture[on])) == 2  # green and red
    assert np.array_equal(picture[~on], grey()[~on])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda m: Drawing("circle", m[0]), "no condition is called 'circle'"),
        (lambda m: Drawing("contour"), "its mask is empty"),
        (lambda m: Drawing("box", np.zeros_like(m[0])), "its mask is empty"),
        (lambda m: draw(grey(), Drawing("none"), 2), "1 channel or 3, got 2"),
        (lambda m: draw(grey(), Drawing("none"), 1, colour="violet"), "colour is 'violet'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(masks, wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        wrong(masks)
