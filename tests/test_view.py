"""The pictures: what is left on the screen, what the letters say, how long a millimetre is."""

from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest

from ctvlm_lib import view
from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.one import SliceView, entries
from ctvlm_lib.view.panel import MAX_FILL, STRUCTURE_COLOURS, STRUCTURE_LINES

SHAPE = (12, 20, 30)
SPACING = (3.0, 1.1, 0.9)  # of the LPS axes z, y, x
SIGNS = list(product((1, -1), repeat=3))


def stand_in(signs=(1, 1, 1), order=(2, 1, 0), shape=SHAPE, tilt=None):
    """A volume of air whose array axes run along patient axes ``order`` (0 x, 1 y, 2 z) with these signs."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (patient, sign) in enumerate(zip(order, signs, strict=True)):
        affine[patient, axis] = sign * SPACING[2 - patient]
    if tilt is not None:
        affine[:3, :3] = tilt @ affine[:3, :3]
    affine[:3, 3] = (-20, -15, 100)
    return SimpleNamespace(hu=np.full(shape, -1000, np.float32), affine=affine)


def turned(degrees: float) -> np.ndarray:
    """A rotation about the patient's long axis that brings left towards posterior."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def pixels(figure) -> np.ndarray:
    """What a figure looks like: uint8 (rows, columns, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def image_only(figure) -> np.ndarray:
    """Grey values inside the first axes, as drawn."""
    box = figure.axes[0].get_window_extent()
    height = pixels(figure).shape[0]
    inside = pixels(figure)[height - int(box.y1) + 1 : height - int(box.y0) - 1, int(box.x0) + 1 : int(box.x1) - 1]
    return inside.astype(float).mean(axis=-1)


def bright_place(figure) -> tuple[float, float]:
    """Centre of the bright pixels inside the image: (from the top, from the left), each 0…1."""
    grey = image_only(figure)
    rows, columns = np.nonzero(grey > 200)
    assert rows.size, "the marker is not in the picture"
    return rows.mean() / grey.shape[0], columns.mean() / grey.shape[1]


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.texts] + [text.get_text() for axes in figure.axes for text in axes.texts]


def legend_words(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1, 0, 0), "L"), ((-2, 0, 0), "R"), ((0, 3, 0), "P"), ((0, -1, 0), "A"), ((0, 0, 1), "S"), ((0, 0, -5), "I"),
        ((1, 0.2, 0), "L"), ((-1, -0.5, 0), "RA"), ((0.5, 0, 1), "SL"), ((0.1, 1, -0.6), "PI"),
    ],
)  # fmt: skip
def test_letters_name_a_direction_and_its_tilt(direction, letters):
    assert view.edge_letters(np.array(direction)) == letters


@pytest.mark.parametrize("signs", SIGNS)
def test_every_flip_of_the_affine_is_displayed_radiologically(signs):
    letters = {plane: view.frame(stand_in(signs), plane).letters for plane in view.PLANES}
    assert letters == {
        "axial": ("R", "L", "A", "P"),
        "coronal": ("R", "L", "S", "I"),
        "sagittal": ("A", "P", "S", "I"),
    }


@pytest.mark.parametrize("signs", SIGNS)
def test_letters_agree_with_where_the_affine_puts_the_shown_pixels(signs):
    volume = stand_in(signs)
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ volume.affine[:3, :3].T
    for plane in view.PLANES:
        framed = view.frame(volume, plane)
        shown = framed.cut(place, 3)  # (rows, columns, LPS mm)
        assert view.edge_letters(shown[0, -1] - shown[0, 0]) == framed.letters[1]
        assert view.edge_letters(shown[-1, 0] - shown[0, 0]) == framed.letters[3]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("plane", view.PLANES)
def test_permuted_axes_give_the_same_picture(order, plane):
    reference = stand_in()
    reference.hu[4:9, 3:7, 20:28] = 500
    permuted = stand_in(order=order)
    permuted.hu = np.moveaxis(reference.hu, [2 - patient for patient in order], range(3))
    mine, theirs = view.frame(permuted, plane), view.frame(reference, plane)
    np.testing.assert_array_equal(mine.cut(permuted.hu, 5), theirs.cut(reference.hu, 5))
    assert (mine.letters, mine.spacing_mm) == (theirs.letters, theirs.spacing_mm)


def test_an_oblique_volume_gets_two_letters_only_beyond_twenty_degrees():
    assert view.frame(stand_in(tilt=turned(15)), "axial").letters == ("R", "L", "A", "P")
    assert view.frame(stand_in(tilt=turned(30)), "axial").letters == ("RA", "LP", "AL", "PR")


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, 1, -1), (-1, -1, 1), (-1, -1, -1)])
def test_a_marker_in_the_patient_is_drawn_where_a_radiologist_looks_for_it(signs):
    volume = stand_in(signs)
    # a marker towards the patient's right, front and head, whatever way the array runs
    near = [
        slice(2, 5) if sign * towards > 0 else slice(-5, -2) for sign, towards in zip(signs, (-1, 1, 1), strict=True)
    ]
    volume.hu[tuple(near)] = 1000
    for plane in view.PLANES:
        top, left = bright_place(view.slice_figure(volume, plane, marked_slice(volume, plane)))
        assert top < 0.5 and left < 0.5, plane


def marked_slice(volume, plane: str) -> int:
    return view.slice_index(view.frame(volume, plane), None, [volume.hu > 0])


@pytest.mark.parametrize("plane", view.PLANES)
def test_a_voxel_is_drawn_as_high_and_wide_as_its_spacing(plane):
    volume = stand_in()
    volume.hu[4:8, 6:12, 10:20] = 1000
    figure = view.slice_figure(volume, plane, marked_slice(volume, plane))
    rows, columns = np.nonzero(image_only(figure) > 200)
    drawn = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    size = dict(zip("zyx", (4 * 3.0, 6 * 1.1, 10 * 0.9), strict=True))
    down, across = {"axial": "yx", "coronal": "zx", "sagittal": "zy"}[plane]
    assert drawn == pytest.approx(size[down] / size[across], rel=0.03)  # the marker is a hundred pixels or more


@pytest.mark.parametrize(("width_mm", "bar"), [(336, 50), (349.5, 50), (400, 100), (27, 5), (90, 20), (3, 0.5)])
def test_the_scale_bar_is_a_round_length_of_at_most_a_quarter(width_mm, bar):
    assert view.scale_bar_mm(width_mm) == bar


def test_the_scale_bar_is_as_long_on_the_page_as_the_image_says():
    panel = SliceView(stand_in(), "axial").panel
    panel.figure.canvas.draw()
    ends = panel.axes.transData.transform(np.column_stack(panel.bar.get_data()))
    inches = np.ptp(ends[:, 0]) / panel.figure.dpi
    mm_per_inch = 30 * SPACING[2] / panel.box[2]
    assert inches * mm_per_inch == pytest.approx(view.scale_bar_mm(30 * SPACING[2]))
    assert "5 mm " in words(panel.figure)


def test_the_window_is_stated_and_applied():
    assert view.window_text("lung") == "lung  W 1500 L −600 HU"
    assert view.window_text((50, 350)) == "W 350 L 50 HU"
    volume = stand_in()
    volume.hu[:] = 40
    figure = view.slice_figure(volume, window="soft tissue")
    assert "soft tissue  W 400 L 40 HU" in words(figure)
    assert image_only(figure).mean() == pytest.approx(127.5, abs=1.5)  # the level is mid-grey
    assert image_only(view.slice_figure(volume, window="lung")).mean() > 220
    with pytest.raises(BadInput, match="no window is called 'lungs'"):
        view.slice_figure(volume, window="lungs")


def test_a_slice_is_found_by_number_and_by_millimetres():
    framed = view.frame(stand_in(), "axial")
    assert view.position_text(framed, 2) == "slice 2 of 0–11, z 106.0 mm"
    assert view.slice_index(framed, 106.4) == 2 and view.slice_index(framed, np.int64(2)) == 2
    assert view.slice_index(framed, None) == 6
    for outside in (12, 400.0):
        with pytest.raises(BadInput, match="outside the volume"):
            view.slice_index(framed, outside)


def test_outlines_are_drawn_voxel_by_voxel_with_a_legend():
    volume, mask = stand_in(), np.zeros(SHAPE, bool)
    mask[7, 5:9, 5:9] = True
    figure = view.slice_figure(volume, outlines=[(mask, "blue", "contour: marker")])
    drawn = (np.abs(pixels(figure).astype(int) - (0x3D, 0x7B, 0xFF)).sum(-1) < 6).sum()
    voxel = (figure.axes[0].get_window_extent().width / 30) ** 2 * SPACING[1] / SPACING[2]
    assert "slice 7 of 0–11, z 121.0 mm" in words(figure)
    assert drawn == pytest.approx(16 * voxel, rel=0.15)  # the legend's line adds a little
    assert legend_words(figure) == ["contour: marker"]


def test_red_is_dashed_and_green_is_not():
    volume, mask = stand_in(), np.ones(SHAPE, bool)

    def colours(colour):
        marks = SliceView(volume, "axial").panel
        marks.show(volume.hu[0], "lung", [(mask[0], colour)])
        return np.unique(marks.marks.get_array()[..., 3]).size

    assert (colours("green"), colours("red")) == (1, 2)


def test_structures_are_named_and_told_apart_by_line_style(synthetic_case):
    figure = view.slice_figure(synthetic_case.volume, labels=synthetic_case.labels, names=["liver", "spleen", "aorta"])
    assert legend_words(figure) == ["liver", "spleen", "aorta"]
    assert len({line.get_color() for line in figure.legends[0].get_lines()}) == 3
    assert len({str(line) for _, _, line in entries([], ["a", "b", "c"], {"a", "b", "c"})}) == 3
    assert len(set(map(str, STRUCTURE_LINES))) == len(set(STRUCTURE_COLOURS)) == len(STRUCTURE_LINES)
    with pytest.raises(BadInput, match="no structure 'livr'"):
        view.slice_figure(synthetic_case.volume, labels=synthetic_case.labels, names=["livr"])


def test_changing_the_slice_changes_the_picture_but_not_the_figure(synthetic_case):
    shown = SliceView(synthetic_case.volume, "axial", legend_in=0.3)
    shown.show(5, labels=synthetic_case.labels, names=["liver"])
    first, artists = pixels(shown.figure).copy(), len(shown.figure.findobj())
    shown.show(12, labels=synthetic_case.labels, names=["liver"])
    assert (pixels(shown.figure) != first).any()
    shown.show(5, labels=synthetic_case.labels, names=["liver"])
    assert (pixels(shown.figure) == first).all()
    assert len(shown.figure.findobj()) == artists


def test_what_lies_on_another_grid_is_refused(synthetic_case):
    with pytest.raises(BadInput, match="bring it onto the volume's grid"):
        view.slice_figure(synthetic_case.volume, outlines=[(np.zeros((3, 3, 3), bool), "blue")])
    with pytest.raises(BadInput, match="no colour is called 'blau'"):
        view.slice_figure(synthetic_case.volume, outlines=[(synthetic_case.volume.hu > 0, "blau")])
    with pytest.raises(BadInput, match="no plane is called 'oblique'"):
        view.slice_figure(synthetic_case.volume, "oblique")
    with pytest.raises(BadInput, match="would hide the anatomy"):
        view.slice_figure(synthetic_case.volume, fill=MAX_FILL + 0.1)


def test_a_rendered_prompt_is_shown_in_its_own_colours():
    volume = stand_in()
    rgb = np.zeros((*SHAPE, 3), np.uint8)
    rgb[4, 8:12, 8:12] = (0, 0, 255)
    figure = view.rgb_slice(rgb, volume)
    assert "slice 4 of 0–11, z 112.0 mm" in words(figure)
    assert (pixels(figure) == (0, 0, 255)).all(-1).sum() > 500


def test_a_montage_covers_the_outlined_slices_from_above(synthetic_case):
    liver = synthetic_case.labels.binary("liver")
    figure = view.montage(synthetic_case.volume, n=4, outlines=[(liver, "blue")])
    corners = [int(axes.texts[0].get_text().split()[0]) for axes in figure.axes]
    met = np.flatnonzero(liver.any((1, 2)))
    assert corners[0] == met[-1] and corners[-1] == met[0] and corners == sorted(corners, reverse=True)
    assert len(view.montage(synthetic_case.volume, indices=[1, 2, 3]).axes) == 3


def test_reference_lines_of_the_three_planes_meet_at_the_point(synthetic_case):
    volume = synthetic_case.volume
    figure = view.orthogonal(volume, at=(5, 10, 15))
    assert [next(w for w in words(figure) if w.startswith(start)) for start in ("5  z", "10  y", "15  x")]
    axial = figure.axes[0]
    crossing = [line for line in axial.lines if line.get_gid() is None]
    xs = {x for line in crossing for x in line.get_xdata() if line.get_xdata()[0] == line.get_xdata()[1]}
    ys = {y for line in crossing for y in line.get_ydata() if line.get_ydata()[0] == line.get_ydata()[1]}
    assert (sorted(xs), sorted(ys)) == ([pytest.approx(15.5 * 0.9)], [pytest.approx(10.5 * 1.1)])
    coronal = [line.get_ydata() for line in figure.axes[1].lines if line.get_gid() is None]
    assert [y[0] for y in coronal if y[0] == y[1]] == [pytest.approx((22 - 5 + 0.5) * 3)] * 2  # superior is up
    by_mm = view.orthogonal(volume, at=volume.mm_of(np.array([5, 10, 15])))
    assert (pixels(by_mm) == pixels(figure)).all()
    with pytest.raises(BadInput, match="outside the volume"):
        view.orthogonal(volume, at=(5, 10, 400))


def test_a_bare_image_beside_a_volume_has_no_letters(synthetic_case):
    volume = synthetic_case.volume
    figure = view.compare([("Right", volume), ("Wrong", volume.hu[11][:, ::-1], "mirrored")], index=11)
    assert words(figure).count("R") == words(figure).count("L") == 1
    assert "mirrored" in words(figure)
    mirrored = figure.axes[1].images[0].get_array()[:, ::-1]
    np.testing.assert_array_equal(mirrored, figure.axes[0].images[0].get_array())
    with pytest.raises(BadInput, match="one for each"):
        view.compare([("a", volume), ("b", volume)], window=["lung"])


def test_the_histogram_counts_every_voxel(synthetic_case):
    figure = view.histogram(synthetic_case.volume, window="soft tissue")
    steps = figure.axes[0].patches[0].get_data()
    assert steps.values.sum() == synthetic_case.volume.hu.size
    assert {"lung", "soft tissue  W 400 L 40 HU"} <= set(words(figure))


def test_a_saved_figure_keeps_its_dark_page(tmp_path, synthetic_case):
    from PIL import Image

    figure = view.slice_figure(synthetic_case.volume)
    figure.savefig(tmp_path / "slice.png", facecolor="white")
    assert max(Image.open(tmp_path / "slice.png").convert("RGB").getpixel((2, 2))) < 30
    assert figure._repr_png_().startswith(b"\x89PNG")
