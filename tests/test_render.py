"""``ctvlm render`` for one case: what is drawn, and that the file lies on the CT's own grid."""

import json

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import SYNTHETIC, block, command_line, lps_affine, small_ct, write_dicom
from PIL import Image

from ctvlm_lib import mask as masks
from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import box_outline, contour, overlay
from ctvlm_lib.prompt.render import Style, draw, render
from ctvlm_lib.volume import Volume, save_nifti

CT, LABELS = SYNTHETIC / "ct.nii.gz", SYNTHETIC / "labels.nii.gz"
SHAPE = (6, 20, 24)
LIVER = block(SHAPE, ((1, 4, 2), (5, 12, 8)))
SPLEEN = block(SHAPE, ((2, 5, 14), (5, 11, 20)))


@pytest.fixture(scope="module")
def case():
    volume = volumes.load(CT)
    return volume, masks.load(LABELS, like=volume, names="vista3d")


def _rgb(path) -> np.ndarray:
    """(x, y, z, 3) as nibabel reads it, in the file's own axes."""
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    stored = np.asanyarray(image.dataobj)
    return np.stack([stored[channel] for channel in "RGB"], axis=-1)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA"])
def test_rgb_has_the_ct_files_own_affine_and_shape(tmp_path, orientation):
    ct = Volume(small_ct(SHAPE).hu, lps_affine(), orientation).save(tmp_path / "ct.nii.gz")
    # the mask lies in other axes than the CT
    mask = save_nifti(tmp_path / "liver.nii.gz", LIVER.astype(np.uint8), lps_affine(), "PSR")
    made = render(ct, mask, "liver", tmp_path / "out.nii.gz")
    of_ct, written = nib.load(ct), nib.load(tmp_path / "out.nii.gz")
    assert written.shape == of_ct.shape and nib.aff2axcodes(written.affine) == tuple(orientation)
    np.testing.assert_allclose(written.affine, of_ct.affine, atol=1e-5)
    line = contour(LIVER)
    np.testing.assert_array_equal((_in_lps(tmp_path / "out.nii.gz") == (0, 0, 255)).all(-1), line)
    assert made["voxels"] == [int(line.sum())]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA"])
def test_label_output_lies_in_the_ct_files_own_axes(tmp_path, orientation):
    ct = Volume(small_ct(SHAPE).hu, lps_affine(), orientation).save(tmp_path / "ct.nii.gz")
    mask = save_nifti(tmp_path / "liver.nii.gz", LIVER.astype(np.uint8), lps_affine(), "PSR")
    render(ct, mask, "liver", tmp_path / "out.nii.gz", "label")
    of_ct, written = nib.load(ct), nib.load(tmp_path / "out.nii.gz")
    assert written.shape == of_ct.shape
    np.testing.assert_allclose(written.affine, of_ct.affine, atol=1e-5)
    np.testing.assert_array_equal(masks.load(tmp_path / "out.nii.gz", names={1: "line"}).binary("line"), contour(LIVER))


def _in_lps(path) -> np.ndarray:
    """(D, H, W, 3) turned by nibabel alone."""
    image, picture = nib.load(path), _rgb(path)
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    channels = [nib.orientations.apply_orientation(picture[..., c], change) for c in range(3)]
    return np.stack([channel.transpose(2, 1, 0) for channel in channels], axis=-1)


def test_the_synthetic_liver_is_blue_on_the_windowed_ct(tmp_path, case):
    volume, labels = case
    render(CT, LABELS, "liver", tmp_path / "out.nii.gz", names="vista3d")
    expected = overlay(volume, [(contour(labels.binary("liver")), "blue")], "soft tissue")
    np.testing.assert_array_equal(_in_lps(tmp_path / "out.nii.gz"), expected)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").affine, nib.load(CT).affine)


def test_label_output_holds_one_for_the_region_and_two_for_the_distractor(tmp_path, case):
    volume, labels = case
    options = Style("dual", thickness=1, distractor="spleen")
    made = render(CT, LABELS, "liver", tmp_path / "out.nii.gz", "label", options, names="vista3d")
    image = nib.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == np.uint8 and image.shape == nib.load(CT).shape
    written = volumes.read.read_nifti(tmp_path / "out.nii.gz", None)[0]
    liver, spleen = (box_outline(labels.binary(name), 1) for name in ("liver", "spleen"))
    np.testing.assert_array_equal(written, np.where(spleen, 2, np.where(liver, 1, 0)))
    assert "named by the user" in made["prompt"] and made["distractor"] == "spleen"


def test_png_holds_one_picture_a_slice_and_slice_k_shows_hu_k(tmp_path, case):
    volume, labels = case
    render(CT, LABELS, "liver", tmp_path / "slices", "png", Style(window="lung"), names="vista3d")
    files = sorted((tmp_path / "slices").iterdir())
    assert [f.name for f in files] == [f"slice_{k:03d}.png" for k in range(volume.shape[0])]
    expected = overlay(volume, [(contour(labels.binary("liver")), "blue")], "lung")
    for k, file in enumerate(files):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected[k])


def test_styles_draw_their_lines_in_the_papers_colours(case):
    volume, labels = case
    liver = labels.binary("liver")
    for style, colours in (("contour", ["blue"]), ("box", ["green"]), ("dual", ["green", "red"])):
        prompt = draw(labels, "liver", Style(style), volume)
        assert [colour for _, colour in prompt.outlines] == colours
        first = contour(liver) if style == "contour" else box_outline(liver)
        np.testing.assert_array_equal(prompt.lines[0][0], first)
    assert prompt.reason in prompt.describe() and "nearest of" in prompt.reason
    assert prompt.describe().startswith("liver in green on ")


def test_only_the_largest_part_is_outlined():
    stray = block(SHAPE, ((0, 17, 20), (1, 19, 22)))
    labels = masks.LabelMap((LIVER | stray).astype(np.uint16), lps_affine(), {1: "liver"})
    for style in ("contour", "box"):
        np.testing.assert_array_equal(draw(labels, "liver", Style(style)).lines[0][0][0], np.zeros(SHAPE[1:], bool))


@pytest.mark.parametrize(
    "options",
    [
        {"style": "circle"}, {"thickness": 2}, {"side": "outer"}, {"box": "patient"}, {"window": "chest"},
        {"window": (40, 0)},
    ],
)  # fmt: skip
def test_a_style_refuses_what_cannot_be_drawn_before_anything_is_read(options):
    with pytest.raises(BadInput):
        Style(**options)


# --- the command line ----------------------------------------------------------------------------------------


def test_command_line_renders_what_the_library_renders(tmp_path, capsys):
    words = (CT, "--mask", LABELS, "--names", "vista3d", "--roi", "kidney_left")
    options = ("--window", "40/400", "--side", "both", "--thickness", 5)
    assert command_line("render", *words, *options, "-o", tmp_path / "a.nii.gz") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path / 'a.nii.gz'}: kidney_left in blue on ") and said.err == ""
    style = Style(side="both", thickness=5, window=(40, 400))
    render(CT, LABELS, "left kidney", tmp_path / "b.nii.gz", style=style, names="vista3d")
    np.testing.assert_array_equal(_rgb(tmp_path / "a.nii.gz"), _rgb(tmp_path / "b.nii.gz"))


def test_command_line_takes_a_table_of_names_and_a_group(tmp_path, capsys):
    names = json.loads((SYNTHETIC / "names.json").read_text(encoding="utf-8"))
    table = tmp_path / "names.csv"
    table.write_text("id,name\n" + "".join(f"{key},{value}\n" for key, value in names.items()))
    out = tmp_path / "lung.nii.gz"
    words = ("--mask", LABELS, "--names", table, "--roi", "lung", "--as", "label", "-o", out)
    assert command_line("render", CT, *words) == 0
    drawn = volumes.read.read_nifti(out, None)[0] > 0
    labels = volumes.read.read_nifti(LABELS, None)[0]
    np.testing.assert_array_equal(drawn, contour(np.isin(labels, [28, 29, 30, 31, 32])))


def test_command_line_reads_the_chosen_dicom_series(tmp_path, capsys):
    volume = small_ct(SHAPE)
    folder = write_dicom(tmp_path / "dicom", volume, uid="1.2.3.41")
    write_dicom(folder, small_ct(SHAPE, seed=5), uid="1.2.3.5", names=[f"b{k}.dcm" for k in range(SHAPE[0])])
    mask = save_nifti(tmp_path / "liver.nii.gz", LIVER.astype(np.uint8), lps_affine(), "RAS")
    words = ("render", folder, "--mask", mask, "--roi", "liver", "-o", tmp_path / "out.nii.gz")
    assert command_line(*words) == 2
    assert "--series UID" in capsys.readouterr().err
    assert command_line(*words, "--series", "1.2.3.41") == 0
    expected = overlay(volume, [(contour(LIVER), "blue")])
    np.testing.assert_array_equal(_in_lps(tmp_path / "out.nii.gz"), expected)


def test_command_line_says_that_masks_were_resampled(tmp_path, capsys):
    small = block((5, 9, 9), ((1, 1, 1), (4, 8, 8)))
    mask = save_nifti(tmp_path / "liver.nii.gz", small.astype(np.uint8), lps_affine())
    ct = small_ct(SHAPE).save(tmp_path / "ct.nii.gz")
    assert command_line("render", ct, "--mask", mask, "--roi", "liver", "-o", tmp_path / "out.nii.gz") == 0
    assert "note: masks resampled by their affine from 5×9×9" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["rgb", "png"])
def test_force_replaces_an_output_and_only_then(tmp_path, capsys, kind):
    out = tmp_path / ("out.nii.gz" if kind == "rgb" else "out")
    words = ("render", CT, "--mask", LABELS, "--names", "vista3d", "--as", kind, "-o", out)
    assert command_line(*words, "--roi", "liver") == 0
    before = _content(out)
    assert command_line(*words, "--roi", "spleen") == 2
    assert _content(out) == before
    assert command_line(*words, "--roi", "spleen", "--force") == 0
    assert _content(out) != before


def _content(path) -> list[bytes]:
    return [f.read_bytes() for f in (sorted(path.iterdir()) if path.is_dir() else [path])]


def test_force_removes_no_folder_that_holds_other_files(tmp_path, capsys):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    words = ("render", CT, "--mask", LABELS, "--names", "vista3d", "--roi", "liver", "--as", "png", "--force")
    assert command_line(*words, "-o", folder) == 2
    assert "holds other files than slices" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_force_does_not_replace_the_inputs(tmp_path, capsys):
    ct = volumes.load(CT).save(tmp_path / "ct.nii.gz")
    before = ct.read_bytes()
    words = ("render", ct, "--mask", LABELS, "--names", "vista3d", "--roi", "liver", "--force", "-o", ct)
    assert command_line(*words) == 2
    assert "is an input" in capsys.readouterr().err and ct.read_bytes() == before
