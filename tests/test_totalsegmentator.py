"""The reader of the TotalSegmentator data set."""

from pathlib import Path

import numpy as np
import pytest
from helpers_ct import command_line
from helpers_data import chest_hu, write, write_csv

from ctvlm_lib import mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import totalsegmentator

ASKED = ("spleen", "left kidney")


@pytest.fixture
def subjects(tmp_path) -> Path:
    """Two subjects with spleen and without left kidney, a third of which only the row is there."""
    rows = [("s0000", "50", "train"), ("s0001", "60", "val"), ("s0002", "70", "test")]
    write_csv(tmp_path / "meta.csv", ("\ufeffimage_id", "age", "split"), rows, delimiter=";")
    for subject in ("s0000", "s0001"):
        write(tmp_path / subject / "ct.nii.gz")
        write(tmp_path / subject / "segmentations/spleen.nii.gz", (chest_hu() > 500).astype(np.uint8))
        write(tmp_path / subject / "segmentations/kidney_left.nii.gz", np.zeros_like(chest_hu(), np.uint8))
    return tmp_path


def test_masks_answer_whether_a_structure_is_in_the_scan(subjects):
    reading = totalsegmentator.read(subjects, structures=ASKED)
    told = [(r.split, r.question, r.answer, r.mask is None) for r in reading.records]
    spleen, kidney = "Does this CT show the spleen?", "Does this CT show the left kidney?"
    expected = ((spleen, "Yes", False), (kidney, "No", True))
    assert told == [(split, *rest) for split in ("train", "validation") for rest in expected]
    record = reading.records[0]
    assert record.region == "spleen" and mask.load(subjects / record.mask).binary("spleen").any()
    assert reading.missing == {"s0002/ct.nii.gz": 2}
    assert len(totalsegmentator.read(subjects, "validation", structures=ASKED).records) == 2


def test_a_missing_or_damaged_mask_is_listed_and_not_taken_for_empty(subjects):
    folder = subjects / "s0000/segmentations"
    (folder / "spleen.nii.gz").unlink()
    (folder / "kidney_left.nii.gz").write_bytes(b"broken")
    reading = totalsegmentator.read(subjects, "train", structures=ASKED)
    assert not reading.records and list(reading.missing) == ["s0000/segmentations/spleen.nii.gz"]
    assert "readable" in reading.unreadable["s0000/segmentations/kidney_left.nii.gz"]


def test_unknown_splits_structures_and_folders_are_told(subjects, tmp_path_factory):
    with pytest.raises(BadInput, match="no mask called lung"):
        totalsegmentator.read(subjects, structures=("lung",))
    write_csv(subjects / "meta.csv", ("image_id", "split"), [("s0000", "holdout")], delimiter=";")
    with pytest.raises(BadInput, match="split of s0000 is 'holdout'"):
        totalsegmentator.read(subjects)
    with pytest.raises(BadInput, match="holds no meta.csv"):
        totalsegmentator.read(tmp_path_factory.mktemp("empty"))


def test_doctor_knows_the_data_set_by_its_folders(subjects, capsys):
    assert command_line("doctor", "--data", subjects) == 0
    assert "not there: 11 files" in capsys.readouterr().out  # a CT; masks of 5 of 7 structures of two subjects
