"""The reader of M3D-Cap and M3D-VQA, and loading its volumes, which have no HU."""

import json

import numpy as np
import pytest
from helpers_ct import write_nifti
from helpers_data import AXIAL, CORONAL, OTHER, VQA, make_m3d, vqa_row, write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import m3d


@pytest.fixture
def lamed(tmp_path):
    return make_m3d(tmp_path)


def test_m3d_gives_captions_choices_and_yes_no_questions(lamed):
    reading = m3d.read(lamed)
    assert reading.counts == {
        ("train", "report"): 2, ("test", "report"): 1, ("train", "plane"): 1, ("train", "organ"): 1,
        ("train", "presence"): 1, ("test", "plane"): 1,
    }  # fmt: skip
    plane = next(r for r in reading.records if r.kind == "plane")
    assert (plane.answer, plane.choices, plane.form) == ("Axial", ("Axial", "Coronal", "Sagittal", "Oblique"), "closed")
    organ = next(r for r in reading.records if r.kind == "organ")
    assert organ.region == "left kidney" and organ.names_region and not plane.names_region
    assert {r.dataset for r in reading.records} == {"M3D-Cap", "M3D-VQA"}
    assert "1 question without a question or a usable answer" in repr(reading) and "no HU, spacing" in repr(reading)


def test_planes_of_one_case_are_one_patient_and_a_split_through_it_is_told(lamed):
    reading = m3d.read(lamed)
    assert {r.patient for r in reading.records if r.volume in (AXIAL, CORONAL)} == {"M3D_Cap_npy/ct_case/000001"}
    assert "the published splits share 1 patient" in repr(reading)
    assert "share" not in repr(m3d.read(lamed, "train"))


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])  # as nibabel and SimpleITK write it
def test_listed_npy_that_lie_there_as_nifti_are_found(lamed, affine):
    array = np.load(lamed / OTHER)[0]
    (lamed / OTHER).unlink()
    path = write_nifti((lamed / OTHER).with_suffix(".nii.gz"), np.transpose(array, (2, 1, 0)), affine)
    reading = m3d.read(lamed, "train")
    assert any(r.volume == OTHER.replace(".npy", ".nii.gz") for r in reading.records) and not reading.missing
    assert "2 records list a file that is here with the other ending" in repr(reading)
    assert np.array_equal(m3d.load_array(path), array)


def test_m3d_lists_what_is_missing_or_unreadable(lamed):
    (lamed / AXIAL).unlink()
    (lamed / OTHER).write_bytes(b"\x93NUMPY damaged")
    (lamed / CORONAL).with_name("text.txt").unlink()
    reading = m3d.read(lamed, check_volumes=True)
    assert reading.missing == {AXIAL: 3, "M3D_Cap_npy/ct_case/000001/text.txt": 2}
    assert list(reading.unreadable) == [OTHER]
    assert [r.volume for r in reading.records] == [CORONAL]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (vqa_row(kind=6), "line 2: Question Type is '6'"),
        (vqa_row(image="../secret.npy"), "a path within the data set's folder"),
        (vqa_row()[:-1], "line 2: the row doesn't have as many cells"),
    ],
)
def test_m3d_refuses_what_its_tables_cannot_mean(lamed, row, message):
    write_csv(lamed / "M3D-VQA/M3D_VQA_train.csv", VQA, [row])
    with pytest.raises(BadInput, match=message):
        m3d.read(lamed)


def test_an_answer_that_is_not_its_choice_is_left_out_and_told(lamed):
    rows = [vqa_row(), vqa_row(letter="B"), vqa_row(letter=""), vqa_row(answer="Tilted")]
    write_csv(lamed / "M3D-VQA/M3D_VQA_train.csv", VQA, rows)
    reading = m3d.read(lamed, "train")
    assert reading.counts[("train", "plane")] == 1
    assert "3 questions whose Answer isn't its Answer Choice" in repr(reading)


def test_m3d_captions_need_their_splits_keys_and_single_images(lamed):
    path = lamed / "M3D_Cap_npy/M3D_Cap.json"
    lists = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"train": lists["train"] * 2}, "stands twice in train"),
        ({"train": [{"image": AXIAL}]}, "an entry of train"),
    ):
        path.write_text(json.dumps(lists | change), encoding="utf-8")
        with pytest.raises(BadInput, match=message):
            m3d.read(lamed)
    path.write_text(json.dumps({"train": []}), encoding="utf-8")
    with pytest.raises(BadInput, match="no split validation, test"):
        m3d.read(lamed)
    path.write_text("[", encoding="utf-8")
    with pytest.raises(BadInput, match="not readable JSON"):
        m3d.read(lamed)


def test_an_m3d_array_is_in_unit_range_and_three_dimensional(tmp_path):
    for array, message in (
        (np.full((4, 5, 6), -1000.0), "scaled to"),
        (np.zeros((2, 4, 5, 6)), "has shape"),
        (np.full((4, 5, 6), np.nan), "NaN"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(BadInput, match=message):
            m3d.load_array(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(BadInput, match="not a readable"):
        m3d.load_array(tmp_path / "a.npy")
