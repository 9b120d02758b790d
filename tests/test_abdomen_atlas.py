"""The reader of AbdomenAtlas 3.0."""

from pathlib import Path

import numpy as np
import pytest
from helpers_data import chest_hu, write, write_csv

from ctvlm_lib import mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import abdomen_atlas

LESIONS = tuple(f"total {word} lesion volume (cm^3)" for word in ("liver", "kidney", "pancreatic"))
ATLAS = ("BDMAP ID", *abdomen_atlas.REPORTS, *LESIONS)


@pytest.fixture
def atlas(tmp_path) -> Path:
    """Two train cases, the second without masks, a test case, and one that no list names."""
    cases = [f"BDMAP_0000000{i}" for i in (1, 2, 3, 4)]
    rows = [(case, "structured", "narrative", "fused", "", "3.25", "0.0", "") for case in cases]
    write_csv(tmp_path / abdomen_atlas.TABLE, ATLAS, rows)
    lists = {"IID_train": cases[:2], "IID_test": cases[2:3], "OOD_train": cases[:1], "OOD_test": []}
    for name, members in lists.items():
        write_csv(tmp_path / f"TrainTestIDS/{name}.csv", ("BDMAP ID",), [(case,) for case in members])
    for case in cases:
        write(tmp_path / f"image_only/{case}/ct.nii.gz")
    for name in ("liver", "liver_lesion"):
        write(tmp_path / f"mask_only/{cases[0]}/segmentations/{name}.nii.gz", (chest_hu() > 500).astype(np.uint8))
    return tmp_path


def test_abdomen_atlas_gives_report_presence_and_size(atlas):
    reading = abdomen_atlas.read(atlas)
    assert reading.counts == {(s, k): n * m for s, n in (("train", 2), ("test", 1))
                              for k, m in (("report", 1), ("presence", 2), ("size", 1))}  # fmt: skip
    told = {r.question: r.answer for r in reading.records}
    assert told["Does the liver show a lesion?"] == "Yes" and told["Does the kidney show a lesion?"] == "No"
    assert told["How large are the lesions of the liver together?"] == "3.25 cm^3"
    assert told[abdomen_atlas.REPORT_QUESTION] == "narrative" and "1 case in neither list" in repr(reading)
    assert not abdomen_atlas.read(atlas, "train", report="fusion narrative report").counts.get(("train", "report"))


def test_a_case_of_abdomen_atlas_without_masks_is_listed_and_kept(atlas):
    reading = abdomen_atlas.read(atlas, "train")
    with_masks, without = (next(r for r in reading.records if f"{c}:presence:liver" in r.id) for c in (1, 2))
    assert mask.load(atlas / with_masks.mask).binary("liver").any() and without.mask is None
    assert reading.missing == {"mask_only/BDMAP_00000002/segmentations": 3}


def test_abdomen_atlas_refuses_a_case_in_two_lists_and_a_volume_that_is_no_number(atlas):
    write_csv(atlas / "TrainTestIDS/IID_test.csv", ("BDMAP ID",), [("BDMAP_00000001",)])
    with pytest.raises(BadInput, match="BDMAP_00000001 is in the list of train too"):
        abdomen_atlas.read(atlas)
    write_csv(atlas / abdomen_atlas.TABLE, ATLAS, [("BDMAP_00000001", "", "", "", "", "big", "", "")])
    with pytest.raises(BadInput, match="liver lesion volume .*'big' is no volume"):
        abdomen_atlas.read(atlas, shift="OOD")
