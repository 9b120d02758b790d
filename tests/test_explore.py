"""The explorer without a browser: each control changes what it should, nothing is made twice."""

import json
import socket
from argparse import ArgumentParser

import numpy as np
import pytest

from ctvlm_lib import explore
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.prompt.distractor import choose
from ctvlm_lib.prompt.render import Style, draw


@pytest.fixture
def explorer(synthetic_case):
    return explore.Explorer(synthetic_case.volume, synthetic_case.labels)


def test_it_opens_on_the_liver_with_a_contour_and_says_so(explorer):
    assert bytes(explorer.image.value).startswith(b"\x89PNG")
    for words in ("blue contour around the liver, 3 px", "of 23 axial slices", explore.NOTICE):
        assert words in explorer.text.value


@pytest.mark.parametrize(
    ("control", "value", "says"),
    [
        ("slice", 9, "contour"), ("window", "bone", "contour"), ("structure", "spleen", "around the spleen"),
        ("style", "none", "No prompt"), ("style", "box", "green box around the liver"), ("thickness", 5, "5 px"),
        ("style", "dual", "dashed red box around the"), ("both sides", True, "both sides of the edge"),
        ("plane", "coronal", "contour"), ("plane", "sagittal", "contour"),
    ],
)  # fmt: skip
def test_each_control_changes_the_picture(explorer, control, value, says):
    before = explorer.image.value
    explorer.controls[control].value = value
    assert explorer.image.value != before
    assert says in explorer.text.value


def test_the_distractor_can_be_named_and_overlap_is_refused_in_words(explorer):
    explorer.controls["style"].value = "dual"
    explorer.controls["distractor"].value = "spleen"
    assert "red box around the spleen" in explorer.text.value and "named by the user" in explorer.text.value
    explorer.controls["distractor"].value = "liver"
    assert "No prompt: &#x27;liver&#x27; shares" in explorer.text.value


def test_a_prompt_is_made_once(explorer, monkeypatch):
    made = []
    make = explore.make_prompt
    monkeypatch.setattr(explore, "make_prompt", lambda *how: made.append(how) or make(*how))
    for style in ("box", "contour", "box", "contour", "box"):
        explorer.controls["style"].value = style
    assert len(made) == 1  # the contour was there from the start
    explorer.controls["slice"].value += 1
    explorer.controls["plane"].value = "coronal"
    assert len(made) == 1


def test_each_plane_keeps_its_figure_and_its_place(explorer):
    explorer.controls["slice"].value = 9
    axial, picture = explorer.view.figure, explorer.image.value
    explorer.controls["plane"].value = "sagittal"
    assert explorer.controls["slice"].max == explorer.volume.shape[2] - 1
    explorer.controls["plane"].value = "axial"
    assert explorer.view.figure is axial and explorer.controls["slice"].value == 9
    assert explorer.image.value == picture


def test_choosing_a_structure_goes_to_where_it_is(explorer, synthetic_case):
    explorer.controls["slice"].value = 0
    explorer.controls["structure"].value = "spleen"
    assert synthetic_case.labels.binary("spleen")[explorer.controls["slice"].value].any()


def test_every_control_has_a_description_and_what_has_no_effect_is_off(explorer):
    assert all(control.description for control in explorer.controls.values())
    off = {}
    for style in ("none", "contour", "box", "dual"):
        explorer.controls["style"].value = style
        off[style] = {name for name, control in explorer.controls.items() if control.disabled}
    assert off == {
        "none": {"distractor", "both sides", "thickness"},
        "contour": {"distractor"},
        "box": {"distractor", "both sides"},
        "dual": {"both sides"},
    }


def test_the_stated_share_is_that_of_the_outline(synthetic_case):
    outlines, sentence = explore.make_prompt(synthetic_case.labels, "liver", "contour", 1)
    met = outlines[0][0].any((1, 2)).sum()
    assert f"On {met} of 23 axial slices ({met / 23:.0%})" in sentence


def test_a_map_without_structures_is_refused(synthetic_case):
    empty = LabelMap(np.zeros(synthetic_case.volume.shape, np.uint16), synthetic_case.volume.affine, {1: "liver"})
    with pytest.raises(BadInput, match="no structure with voxels"):
        explore.explore(synthetic_case.volume, empty)


def test_the_page_lets_a_case_be_chosen(synthetic_case, monkeypatch):
    asked = []
    monkeypatch.setattr(
        explore, "load_case", lambda name: asked.append(name) or (synthetic_case.volume, synthetic_case.labels)
    )
    page = explore.app()
    _, choice, place = page.children
    first = place.children
    choice.value = "Chest CT angiogram"
    assert place.children != first and explore.NOTICE in page.children[0].value
    choice.value = choice.options[0]
    assert place.children == first and asked == list(explore.CASES)


def test_the_served_notebook_is_valid_and_runs_the_page(tmp_path):
    import nbformat

    from ctvlm_lib.explore_server import write_notebook

    path = write_notebook(tmp_path / "app")
    nbformat.validate(nbformat.read(path, as_version=4))
    (cell,) = json.loads(path.read_text())["cells"]
    assert "app()" in cell["source"]


def test_a_port_in_use_is_refused_before_anything_is_fetched(monkeypatch):
    from ctvlm_lib import assets

    monkeypatch.setattr(assets, "fetch", lambda *_: pytest.fail("fetched"))
    parser = ArgumentParser()
    explore.add_arguments(parser)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(BadInput, match=f"port {port} can't be used"):
            explore.command(parser.parse_args(["--port", port, "--no-browser"]))


def test_a_box_is_the_one_that_render_draws():
    array = np.zeros((6, 20, 20), np.uint16)
    array[1:5, 2:9, 2:9], array[1:5, 15:18, 15:18] = 1, 1  # two parts: the papers keep the largest
    array[1:5, 2:5, 14:18] = 2
    labels = LabelMap(array, np.eye(4), {1: "liver", 2: "spleen"})
    for style in ("contour", "box", "dual"):
        other = choose(labels, "liver") if style == "dual" else None
        shown, _ = explore.make_prompt(labels, "liver", style, 3, "inner", other)
        for (mask, colour, _), (line, drawn, _) in zip(shown, draw(labels, "liver", Style(style)).lines, strict=True):
            assert colour == drawn and np.array_equal(mask, line)
