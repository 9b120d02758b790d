"""What a user can get wrong with ``ctvlm render``: one line ``ctvlm: …``, exit code 2, nothing half-written."""

import gzip
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import SYNTHETIC, block, command_line, lps_affine, small_ct, write_dicom, write_nifti

from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume, save_nifti

SHAPE = (6, 20, 24)
LIVER = block(SHAPE, ((1, 4, 2), (5, 12, 8)))


@pytest.fixture
def good(tmp_path):
    """A CT and its liver mask that can be rendered, and an output folder."""
    folder = tmp_path / "in"
    ct = small_ct(SHAPE).save(folder / "ct.nii.gz")
    mask = save_nifti(folder / "liver.nii.gz", LIVER.astype(np.uint8), lps_affine())
    return {"ct": ct, "mask": mask, "roi": "liver", "out": tmp_path / "out" / "prompt.nii.gz", "folder": folder}


def _refused(capsys, case, *more) -> str:
    """Run the command, hold it to the rules, and give its one line."""
    out = case["out"]
    before = _everything(out.parent)
    code = command_line("render", case["ct"], "--mask", case["mask"], "--roi", case["roi"], "-o", out, *more)
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    assert said.err.startswith("ctvlm: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert _everything(out.parent) == before
    return said.err


def _everything(folder) -> dict:
    """Names and contents of all files below a folder that may not exist."""
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} if folder.is_dir() else {}


def test_the_good_case_is_rendered(good, capsys):
    assert command_line("render", good["ct"], "--mask", good["mask"], "--roi", "liver", "-o", good["out"]) == 0
    assert capsys.readouterr().err == "" and good["out"].exists()


# --- the CT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_nifti(good, capsys, kept):
    whole = good["ct"].read_bytes()
    good["ct"].write_bytes(whole[: int(kept * len(whole))])
    assert "ct.nii.gz is" in (line := _refused(capsys, good)) and "again" in line


def test_truncated_at_every_length_is_refused(good):
    """No length of a packed or plain file passes, and none raises anything but BadInput."""
    small = Volume(small_ct((2, 3, 4)).hu, lps_affine())
    for name in ("a.nii.gz", "a.nii"):
        file = small.save(good["folder"] / name)
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises(BadInput):
                volumes.load(file)


def test_flipped_bits_give_a_volume_or_a_sentence(good):
    """Damage anywhere in header or data never ends in another exception."""
    rng = np.random.default_rng(0)
    whole = gzip.decompress(good["ct"].read_bytes())
    for place in [*range(0, 352, 3), *rng.integers(352, len(whole), 20)]:
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (good["folder"] / "bits.nii").write_bytes(broken)
        try:
            volumes.load(good["folder"] / "bits.nii", check=False)
        except BadInput:
            pass


def test_text_named_nifti(good, capsys):
    good["ct"].write_text("this is a text, not an image\n" * 40)
    assert "ct.nii.gz is not a readable NIfTI file" in _refused(capsys, good)


def test_packed_text_named_nifti(good, capsys):
    good["ct"].write_bytes(gzip.compress(b"this is a text, not an image\n" * 40))
    assert "ct.nii.gz is not a readable NIfTI file" in _refused(capsys, good)


def test_missing_ct(good, capsys):
    good["ct"].unlink()
    assert "there is no file or folder" in _refused(capsys, good)


def test_another_kind_of_file(good, capsys):
    good["ct"] = good["ct"].rename(good["folder"] / "ct.mha")
    assert "ct.mha is neither a .nii/.nii.gz file nor a DICOM folder" in _refused(capsys, good)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(good, capsys, value):
    hu = small_ct(SHAPE).hu.copy()
    hu[2, 3, 4:7] = value
    save_nifti(good["ct"], hu, lps_affine())
    assert "holds 3 voxels that are NaN or infinite" in _refused(capsys, good)


def test_values_that_are_not_finite_stay_refused_without_the_hu_check(good, capsys):
    """Without the check any unit is drawn, but NaN has no grey."""
    hu = small_ct(SHAPE).hu.copy()
    hu[2, 3, 4] = np.nan
    save_nifti(good["ct"], hu, lps_affine())
    assert "NaN or infinite" in _refused(capsys, good, "--no-hu-check")


def test_mr_instead_of_ct(good, capsys):
    values = np.random.default_rng(0).gamma(2.0, 150.0, SHAPE).round()
    save_nifti(good["ct"], values.astype(np.float32), lps_affine())
    assert "it is an MR" in _refused(capsys, good)


def test_image_scaled_to_unit_range_and_the_way_around_the_check(good, capsys):
    hu = (small_ct(SHAPE).hu + 1000) / 1400
    save_nifti(good["ct"], hu, lps_affine())
    assert "already scaled to [0, 1]" in (line := _refused(capsys, good)) and "--no-hu-check" in line
    words = ("render", good["ct"], "--mask", good["mask"], "--roi", "liver", "-o", good["out"], "--window", "0.5/1")
    assert command_line(*words, "--no-hu-check") == 0


def test_rgb_nifti(good, capsys):
    save_nifti(good["ct"], np.zeros((*SHAPE, 3), np.uint8), lps_affine())
    assert "is an RGB NIfTI (a rendered picture)" in _refused(capsys, good)


def test_several_frames(good, capsys):
    write_nifti(good["ct"], np.zeros((4, 5, 6, 3), np.int16))
    assert "4×5×6×3 (3 frames)" in _refused(capsys, good)


def test_label_map_instead_of_ct(good, capsys):
    good["ct"] = SYNTHETIC / "labels.nii.gz"
    assert "looks like a label map" in _refused(capsys, good)


# --- DICOM ---------------------------------------------------------------------------------------------------


def test_dicom_folder_with_two_series(good, capsys):
    good["ct"] = write_dicom(good["folder"] / "dicom", small_ct((4, 5, 6)), uid="1.2.3.41", description="lung")
    write_dicom(good["ct"], small_ct((4, 5, 6)), uid="1.2.3.5", names=[f"b{k}.dcm" for k in range(4)])
    line = _refused(capsys, good)
    assert "1.2.3.41 (4 × CT lung)" in line and "1.2.3.5 (4 × CT chest)" in line and "--series UID" in line
    assert "no single series 7.7" in _refused(capsys, good, "--series", "7.7")


def test_dicom_with_a_missing_slice(good, capsys):
    good["ct"] = write_dicom(good["folder"] / "dicom", small_ct((6, 5, 6)), skip=[2])
    assert "1 missing: 6.00 mm between 103.0 and 109.0 mm" in _refused(capsys, good)


def test_mr_dicom(good, capsys):
    good["ct"] = write_dicom(good["folder"] / "dicom", small_ct((6, 5, 6)), modality="MR")
    assert "is MR, and CT is expected" in _refused(capsys, good)


def test_folder_without_dicom(good, capsys):
    good["ct"] = good["folder"]
    assert "holds no DICOM series" in _refused(capsys, good)


# --- the masks -----------------------------------------------------------------------------------------------


def test_empty_mask(good, capsys):
    save_nifti(good["mask"], np.zeros(SHAPE, np.uint8), lps_affine())
    assert "the mask of 'liver' is empty here" in _refused(capsys, good)


@pytest.mark.parametrize(("shape", "shift"), [(SHAPE, 5000.0), ((8, 9, 10), 5000.0), ((8, 9, 10), -5000.0)])
def test_mask_of_another_shape_or_affine_that_does_not_meet_the_ct(good, capsys, shape, shift):
    save_nifti(good["mask"], block(shape, ((1, 1, 1), (5, 8, 8))).astype(np.uint8), lps_affine(origin=(shift, 0, 0)))
    assert "don't meet the CT" in _refused(capsys, good)


def test_missing_mask(good, capsys):
    good["mask"] = good["folder"] / "none"
    assert "there is no file or folder" in _refused(capsys, good)


def test_truncated_mask(good, capsys):
    good["mask"].write_bytes(good["mask"].read_bytes()[:60])
    assert "liver.nii.gz is" in _refused(capsys, good)


def test_no_such_label_with_a_suggestion(good, capsys):
    good |= {"ct": SYNTHETIC / "ct.nii.gz", "mask": SYNTHETIC / "labels.nii.gz", "roi": "splen"}
    line = _refused(capsys, good, "--names", "vista3d")
    assert "no structure 'splen' in these masks" in line and "did you mean spleen" in line


def test_a_structure_that_is_not_in_these_masks(good, capsys):
    good["roi"] = "aorta"
    assert "no structure 'aorta' in these masks; there are: liver" in _refused(capsys, good)


def test_labels_without_names(good, capsys):
    good["mask"] = SYNTHETIC / "labels.nii.gz"
    line = _refused(capsys, good)
    assert "labels without a name: 1, 3, 5" in line and "--names vista3d" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no file"), ("number,name\n1,liver\n", "needs the columns id and name"),
        ("id,name\none,liver\n", "line 2: an id must be a whole number"),
    ],
)  # fmt: skip
def test_a_table_of_names_that_cannot_be_used(good, capsys, text, told):
    table = good["folder"] / "names.csv"
    if text:
        table.write_text(text)
    assert told in _refused(capsys, good, "--names", table)


def test_an_unknown_vocabulary(good, capsys):
    assert "'snomed' is no vocabulary" in _refused(capsys, good, "--names", "snomed")


def test_ct_given_as_mask(good, capsys):
    good["mask"] = good["ct"]
    assert "is it a CT?" in _refused(capsys, good)


def test_single_case_without_mask_or_region(good, capsys):
    assert command_line("render", good["ct"], "-o", good["out"]) == 2
    assert "a single case needs --mask LABELS and --roi NAME" in capsys.readouterr().err


# --- how it shall be drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--thickness", "4"), "thickness must be an odd number of pixels (1, 3, 5 …), got 4"),
        (("--thickness", "0"), "thickness must be an odd number"),
        (("--window", "chest"), "no window is called 'chest'"),
        (("--thickness", "99999"), "would hide the slice; choose at most 99"),
        (("--window", "nan/400"), "must be finite"), (("--window", "40/inf"), "must be finite"),
        (("--style", "dual", "--distractor", "random", "--seed", "-1"), "seed must be a whole number from 0 on"),
        (("--window", "40/0"), "width must be positive"), (("--window", "40/wide"), "neither a preset's name nor"),
        (("--style", "dual"), "no structure beside 'liver'"),
        (("--style", "dual", "--distractor", "liver"), "'liver' shares 192 voxels with 'liver'"),
        (("--style", "dual", "--distractor", "splen"), "no structure 'splen' in these masks"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rgb", "label", "png"])
def test_options_that_cannot_be_drawn(good, capsys, options, told, kind):
    good["out"] = good["out"].parent / ("prompt" if kind == "png" else "prompt.nii.gz")
    assert told in _refused(capsys, good, "--as", kind, *options)


@pytest.mark.parametrize(
    "options", [("--style", "circle"), ("--side", "outer"), ("--as", "mp4"), ("--thickness", "thin")]
)
def test_a_misspelt_choice_is_answered_with_the_usage_and_the_choices(good, capsys, options):
    code = command_line("render", good["ct"], "--mask", good["mask"], "--roi", "liver", "-o", good["out"], *options)
    assert code == 2 and not good["out"].exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ctvlm render: error: ") and options[1] in last


# --- where it shall go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("a.png", "rgb"), ("a.nrrd", "label"), ("a", "rgb"), ("a.nii.gz", "png")])
def test_wrong_suffix(good, capsys, name, kind):
    good["out"] = good["out"].parent / name
    assert name in _refused(capsys, good, "--as", kind)


@pytest.mark.parametrize("kind", ["rgb", "png"])
def test_existing_output_without_force(good, capsys, kind):
    good["out"] = good["out"].parent / ("slices" if kind == "png" else "a.nii.gz")
    good["out"].parent.mkdir()
    good["out"].write_bytes(b"precious")
    assert "exists already" in _refused(capsys, good, "--as", kind)
    assert good["out"].read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["file/a.nii.gz", "file/deeper/a.nii.gz"])
def test_output_below_a_file(good, capsys, name):
    blocker = good["folder"] / "file"
    blocker.write_text("a file where a folder is expected")
    good["out"] = good["folder"] / name
    assert "can't make the folder" in _refused(capsys, good)
    assert blocker.read_text(encoding="utf-8").startswith("a file")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that nobody can write to")
def test_output_where_nobody_can_write(good, capsys):
    good["out"] = good["out"].with_name("proc")  # for the record of what lies there
    words = ("render", good["ct"], "--mask", good["mask"], "--roi", "liver", "-o", "/proc/none/a.nii.gz")
    assert command_line(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("ctvlm: can't make the folder /proc/none") and err.count("\n") == 1


def test_output_folder_without_permission(good, capsys, monkeypatch):
    """Root may write anywhere, so the answer of the system is simulated."""
    good["out"].parent.mkdir()
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    assert "permission denied" in _refused(capsys, good)


@pytest.mark.parametrize("kind", ["rgb", "png"])
def test_a_full_disk_leaves_nothing(good, capsys, monkeypatch, kind):
    from PIL import Image

    def full(image, path, *args, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(nib, "save", full)
    monkeypatch.setattr(Image.Image, "save", full)
    good["out"] = good["out"].parent / ("slices" if kind == "png" else "a.nii.gz")
    assert "No space left on device" in _refused(capsys, good, "--as", kind)
    assert list(good["out"].parent.iterdir()) == []


def test_the_same_holds_in_a_process_of_its_own(good):
    """Once through ``python -m ctvlm_lib``: the exit code, and no other line on stderr."""
    good["ct"].write_bytes(good["ct"].read_bytes()[:300])
    words = ["--mask", good["mask"], "--roi", "liver", "-o", good["out"]]
    done = subprocess.run(
        [sys.executable, "-m", "ctvlm_lib", "render", good["ct"], *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ctvlm: ct.nii.gz is") and done.stderr.count("\n") == 1
    assert not good["out"].exists()


def test_an_output_name_that_is_too_long(good, capsys):
    good["out"] = good["out"].parent / ("a" * 300 + ".nii.gz")
    assert "File name too long" in _refused(capsys, good)


def test_another_regions_name_and_an_empty_mask(good, capsys):
    save_nifti(good["mask"], np.zeros_like(nib.load(good["mask"]).get_fdata(), dtype=np.uint8).T, lps_affine())
    assert "no structure 'spleen' in these masks; no other has any either" in _refused(capsys, good, "--roi", "spleen")
