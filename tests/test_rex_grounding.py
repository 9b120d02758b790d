"""The reader of ReXGroundingCT and the masks of its findings."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_data import SHAPE, write

from ctvlm_lib import volume
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import rex_grounding

SCAN = "dataset/train_fixed/train_1741/train_1741_b/train_1741_b_2.nii.gz"


def entries(**changes) -> dict:
    train = {"name": "train_1741_b_2.nii.gz", "findings": {"0": "Nodule in the left lung.", "1": "Effusion."}}
    test = {"name": "train_9_a_1.nii.gz", "findings": {"0": "Cyst."}}
    return {"train": [train], "val": [], "test": [test]} | changes


@pytest.fixture
def grounding(tmp_path) -> Path:
    """A train scan with two findings, and a test scan whose mask isn't public."""
    (tmp_path / "dataset.json").write_text(json.dumps(entries()), encoding="utf-8")
    masks = np.zeros((2, *SHAPE), np.uint8)
    masks[0, 1, 2, 3], masks[1, 4:6, 5, 6] = 1, 2
    write(tmp_path / SCAN)
    write(tmp_path / SCAN.replace("1741", "9").replace("9_b_2", "9_a_1").replace("9_b", "9_a"))
    write(tmp_path / "segmentations/train_1741_b_2.nii.gz", masks, np.eye(4))
    return tmp_path


def test_each_finding_with_a_mask_is_one_question_that_names_no_region(grounding):
    reading = rex_grounding.read(grounding)
    assert [r.answer for r in reading.records] == ["Nodule in the left lung.", "Effusion."]
    for record in reading.records:
        assert (record.volume, record.patient, record.split) == (SCAN, "train_1741", "train")
        assert record.region is None and not record.names_region
    assert reading.missing == {"segmentations/train_9_a_1.nii.gz": 1}
    assert not rex_grounding.read(grounding, "validation").records


def test_the_mask_of_a_finding_lies_on_the_grid_of_the_ct(grounding):
    ct = volume.load(grounding / SCAN)
    found = rex_grounding.finding_mask(grounding / "segmentations/train_1741_b_2.nii.gz", 1, grounding / SCAN)
    assert found.shape == ct.shape and np.allclose(found.affine, ct.affine)
    # the header's x and y are negative, which is LPS already: array index (d, h, w) is (z, y, x) as stored
    assert np.argwhere(found.binary("finding")).tolist() == [[6, 5, 4], [6, 5, 5]]


def test_a_mask_of_another_scan_or_finding_is_refused(grounding):
    path = grounding / "segmentations/train_1741_b_2.nii.gz"
    with pytest.raises(BadInput, match="with a finding 2 is expected"):
        rex_grounding.finding_mask(path, 2, grounding / SCAN)
    other = write(grounding / "other.nii.gz", np.zeros((3, 3, 3), np.int16))
    with pytest.raises(BadInput, match="different scans"):
        rex_grounding.finding_mask(path, 0, other)
    path.write_bytes(b"broken")
    with pytest.raises(BadInput, match="not a readable NIfTI"):
        rex_grounding.finding_mask(path, 0, grounding / SCAN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": entries()["train"] * 2}, "stands twice in train"),
        ({"train": [{"name": "case.nii.gz", "findings": {}}]}, "an entry of train"),
        ({"train": None, "val": None, "test": None}, "none of the lists"),
    ],
)
def test_what_the_list_cannot_mean_is_refused(grounding, changes, message):
    (grounding / "dataset.json").write_text(json.dumps(entries(**changes)), encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        rex_grounding.read(grounding)
