"""The reader of CT-RATE, and loading its volumes in HU: rescaled once or not at all."""

import numpy as np
import pytest
from helpers_data import REPORT, chest_hu, make_ct_rate, metadata_row, write, write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import ct_rate


@pytest.fixture
def rate(tmp_path):
    return make_ct_rate(tmp_path)


def test_ct_rate_gives_a_report_and_18_labels_for_each_volume(rate):
    reading = ct_rate.read(rate)
    assert len(reading.records) == 4 * 19 and not reading.missing and not reading.unreadable
    assert reading.counts[("validation", "presence")] == 18
    report = next(r for r in reading.records if r.kind == "report")
    assert report.answer == "Clear lungs." and report.form == "open"
    yes = [r.question for r in reading.records if r.answer == "Yes" and "train_1_a_1" in r.volume]
    assert yes == ["Does this CT show lung nodule?", "Does this CT show pleural effusion?"]
    assert len({r.id for r in reading.records}) == len(reading.records)


def test_reconstructions_of_one_scan_have_one_patient(rate):
    patients = {r.volume.rsplit("/", 1)[-1]: r.patient for r in ct_rate.read(rate, "train").records}
    assert patients["train_1_a_1.nii.gz"] == patients["train_1_a_2.nii.gz"] == "train_1"


def test_validation_tables_and_valid_folders_are_one_split(rate):
    reading = ct_rate.read(rate, "validation")
    assert {r.split for r in reading.records} == {"validation"}
    assert {r.volume for r in reading.records} == {"dataset/valid_fixed/valid_3/valid_3_a/valid_3_a_1.nii.gz"}
    assert len(ct_rate.read(rate / "dataset", "validation").records) == 19
    with pytest.raises(BadInput, match="'test' is no split of this data set"):
        ct_rate.read(rate, "test")


def test_ct_rate_prefers_the_fixed_generation_and_says_which_it_found(rate):
    write(rate / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz", chest_hu() + np.int16(1024))
    reading = ct_rate.read(rate, "train")
    assert sum("_fixed/" in path for path in {r.volume for r in reading.records}) == 2
    assert "2 volumes of the fixed generation (HU), 1 of the first" in repr(reading)


def test_a_volume_that_is_not_there_is_listed_and_not_replaced(rate):
    (rate / "dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz").unlink()
    reading = ct_rate.read(rate, "train")
    assert reading.missing == {"dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz": 19}
    assert len(reading.records) == 2 * 19 and not any("train_1_a_2" in r.id for r in reading.records)
    assert "not there: 1 file that 19 records refer to" in repr(reading)


def test_a_damaged_volume_is_listed_with_the_reason(rate):
    path = rate / "dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    assert len(ct_rate.read(rate, "train").records) == 3 * 19  # volumes are opened only when asked to
    reading = ct_rate.read(rate, "train", check_volumes=True)
    assert len(reading.records) == 2 * 19 and "train_1_a_2" in next(iter(reading.unreadable))
    path.write_bytes(b"")
    assert "empty" in next(iter(ct_rate.read(rate, "train").unreadable.values()))


def test_a_copy_without_train_or_without_labels_is_read(rate):
    for file in (rate / "dataset").glob("*/train_*.csv"):
        file.unlink()
    assert {r.split for r in ct_rate.read(rate).records} == {"validation"}
    (rate / "dataset/multi_abnormality_labels/valid_predicted_labels.csv").unlink()
    reading = ct_rate.read(rate)
    assert [r.kind for r in reading.records] == ["report"]
    assert "valid_predicted_labels.csv is not there" in repr(reading)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("VolumeName", *ct_rate.LABELS[:-1]), (0,) * 17, "no column Interlobular septal thickening"),
        (("VolumeName", *ct_rate.LABELS, "Pneumothorax"), (0,) * 19, "unknown label Pneumothorax"),
        (("VolumeName", *ct_rate.LABELS), (0,) * 17 + (2,), "septal thickening of train_1_a_1 is '2'"),
    ],
)
def test_ct_rate_labels_are_the_published_18(rate, columns, row, message):
    path = rate / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    write_csv(path, columns, [("train_1_a_1.nii.gz", *row)])
    with pytest.raises(BadInput, match=message):
        ct_rate.read(rate)


def test_a_volume_that_stands_twice_is_refused_unless_the_rows_agree(rate):
    path = rate / "dataset/radiology_text_reports/train_reports.csv"
    row = ("train_1_a_1.nii.gz", "", "", "Clear.", "")
    write_csv(path, REPORT, [row, row])
    assert "1 row repeated word for word" in repr(ct_rate.read(rate, "train"))
    write_csv(path, REPORT, [row, (*row[:3], "Effusion.", "")])
    with pytest.raises(BadInput, match="train_reports.csv, line 3: VolumeName train_1_a_1.nii.gz is there twice"):
        ct_rate.read(rate)


def test_a_volume_of_the_other_split_is_refused(rate):
    path = rate / "dataset/radiology_text_reports/validation_reports.csv"
    write_csv(path, REPORT, [("train_1_a_1.nii.gz", "", "", "Clear.", "")])
    with pytest.raises(BadInput, match="splits must not mix"):
        ct_rate.read(rate)


def expected_hu() -> np.ndarray:
    return np.sort(chest_hu().ravel())


def test_stored_values_are_rescaled_by_the_metadata(rate):
    row = ct_rate.metadata(rate, "train")["train_22_b_1"]
    found = ct_rate.load_volume(rate / "dataset/train/train_22/train_22_b/train_22_b_1.nii.gz", row)
    assert np.array_equal(np.sort(found.hu.ravel()), expected_hu())
    assert "slope 1 and intercept -1024 applied once" in found.notes[-1]
    assert found.spacing_mm == pytest.approx((2.5, 0.7, 0.8))


def test_hu_are_never_rescaled_a_second_time(rate):
    row = metadata_row()
    found = ct_rate.load_volume(rate / "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz", row)
    assert np.array_equal(np.sort(found.hu.ravel()), expected_hu())
    assert "not applied a second time" in found.notes[-1]


def test_a_header_that_rescales_is_the_only_rescale(tmp_path):
    path = write(tmp_path / "train_1_a_1.nii", chest_hu() + np.int16(1024), slope=1.0, intercept=-1024.0)
    found = ct_rate.load_volume(path, metadata_row())
    assert np.array_equal(np.sort(found.hu.ravel()), expected_hu())
    wrong = write(tmp_path / "train_1_a_2.nii", chest_hu() + np.int16(1034), slope=1.0, intercept=-10.0)
    with pytest.raises(BadInput, match="header has slope 1 and intercept -10 of its own"):
        ct_rate.load_volume(wrong, metadata_row())


def test_padding_does_not_pass_for_air(tmp_path):
    stored = chest_hu() + np.int16(1024)
    stored[:2] = -2000  # outside the scanner's circle, already in the stored values
    found = ct_rate.load_volume(write(tmp_path / "train_1_a_1.nii.gz", stored), metadata_row())
    assert found.hu.min() == -3024 and "applied once" in found.notes[-1]


@pytest.mark.parametrize(
    ("array", "row", "message"),
    [
        (chest_hu() + np.int16(1024), None, "air"),
        (chest_hu() + np.int16(1024), {"RescaleIntercept": "-8192"}, "intercept -8192 don't make it so"),
        ((chest_hu() + 1024) / np.float32(2000), {}, "isn't in HU as stored"),
        (chest_hu() - np.int16(1024), {}, "isn't in HU as stored"),
        (chest_hu() + np.int16(1024), {"RescaleSlope": "one"}, "RescaleSlope 'one'"),
    ],
)
def test_what_cannot_be_brought_to_hu_with_certainty_is_refused(tmp_path, array, row, message):
    path = write(tmp_path / "train_1_a_1.nii.gz", array)
    with pytest.raises(BadInput, match=message):
        ct_rate.load_volume(path, None if row is None else metadata_row(**row))


def test_what_could_be_hu_both_ways_is_refused_unless_its_generation_tells(tmp_path):
    stored = chest_hu() + np.int16(1024)
    stored[:2] = -1000  # padding that looks like air beside the stored values
    with pytest.raises(BadInput, match="could be in HU with and without"):
        ct_rate.load_volume(write(tmp_path / "train_1_a_1.nii.gz", stored), metadata_row())
    dense = chest_hu()
    dense[4:8, 3:7, :] = 1064  # an implant: the values would pass for HU after a second rescale too
    found = ct_rate.load_volume(write(tmp_path / "train_fixed/train_1_a_1.nii.gz", dense), metadata_row())
    assert found.hu.max() == 1064 and "not applied a second time" in found.notes[-1]


def test_a_fixed_volume_in_stored_values_is_refused(tmp_path):
    path = write(tmp_path / "train_fixed/train_1_a_1.nii.gz", chest_hu() + np.int16(1024))
    with pytest.raises(BadInput, match="fixed generation should be"):
        ct_rate.load_volume(path, metadata_row())


def test_spacing_comes_from_the_metadata_where_the_header_has_none(tmp_path):
    path = write(tmp_path / "train_1_a_1.nii.gz", affine=np.eye(4))
    assert "may mean that it has no geometry" in " ".join(ct_rate.load_volume(path).notes)
    found = ct_rate.load_volume(path, metadata_row())
    assert found.spacing_mm == pytest.approx((2.5, 0.7, 0.8)) and "from the metadata" in found.notes[-1]
    with pytest.raises(BadInput, match="NumberofSlices 12"):
        ct_rate.load_volume(path, metadata_row(NumberofSlices="12"))
    with pytest.raises(BadInput, match="XYSpacing 'wide'"):
        ct_rate.load_volume(path, metadata_row(XYSpacing="wide"))


def test_a_header_with_another_spacing_is_kept_and_told(tmp_path):
    path = write(tmp_path / "train_1_a_1.nii.gz")
    found = ct_rate.load_volume(path, metadata_row(ZSpacing="5"))
    assert found.spacing_mm == pytest.approx((2.5, 0.7, 0.8)) and "metadata states 5" in found.notes[-1]
