"""The reader of Rad-ChestCT."""

import numpy as np
import pytest
from helpers_data import write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import rad_chestct, readers

COLUMNS = tuple(f"{label}*{place}" for label in rad_chestct.ABNORMALITIES for place in ("lung", "left_upper", "svc"))
NODULE, EFFUSION, STENT = "nodule*left_upper", "pleural_effusion*lung", "stent*svc"
SCANS = {"train": ("trn00001", "trn00002"), "valid": ("val00001",), "test": ("tst00001",)}


def row(scan, *positive):
    return (scan, *(int(name in positive) for name in COLUMNS))


def write_labels(folder, split, rows, columns=COLUMNS):
    return write_csv(folder / f"img{split}_Abnormality_and_Location_Labels.csv", ("NoteAcc_DEID", *columns), rows)


def chest() -> np.ndarray:
    """(slices from head to feet, rows, columns) int16: air, soft tissue, and bone in the slice at the head."""
    ct = np.full((5, 8, 9), -1000, np.int16)
    ct[:, 2:6, 2:7] = 40
    ct[0, 3, 2] = 900
    return ct


@pytest.fixture
def rad(tmp_path):
    for split, scans in SCANS.items():
        write_labels(tmp_path, split, [row(scan, NODULE, EFFUSION, "nodule*lung") for scan in scans])
        for scan in scans:
            np.savez_compressed(tmp_path / f"{scan}.npz", ct=chest())
    pairs = [(scan, "MRN7" if scan.startswith("trn") else scan[:3]) for scans in SCANS.values() for scan in scans]
    write_csv(tmp_path / rad_chestct.METADATA, ("NoteAcc_DEID", "MRN_DEID"), pairs)
    return tmp_path


def test_the_lists_are_84_abnormalities_and_52_locations():
    assert len(set(rad_chestct.ABNORMALITIES)) == 84 and len(set(rad_chestct.LOCATIONS)) == 52


def test_each_scan_is_asked_for_each_abnormality_and_where_it_is(rad):
    reading = rad_chestct.read(rad)
    assert reading.counts[("train", "presence")] == 2 * 83 and reading.counts[("validation", "location")] == 2
    told = {r.question: r.answer for r in reading.records if r.split == "test"}
    assert told["Does this CT show pleural effusion?"] == "Yes" and told["Does this CT show mass?"] == "No"
    assert told["Where does this CT show nodule?"] == "lung, left upper"
    assert not any("other" in question for question in told)  # other_path isn't asked
    assert len({r.id for r in reading.records}) == len(reading.records) and not reading.missing


def test_scans_of_one_patient_have_one_patient(rad):
    assert {r.patient for r in rad_chestct.read(rad, "train").records} == {"MRN7"}
    (rad / rad_chestct.METADATA).unlink()
    reading = rad_chestct.read(rad, "train")
    assert {r.patient for r in reading.records} == {"trn00001", "trn00002"}
    assert "each scan counts as its own patient" in repr(reading)


def test_a_partial_copy_is_read_and_a_missing_volume_listed_not_replaced(rad):
    (rad / "imgvalid_Abnormality_and_Location_Labels.csv").unlink()
    (rad / "trn00002.npz").unlink()
    reading = rad_chestct.read(rad)
    assert reading.missing == {"trn00002.npz": 85}
    assert {r.volume for r in reading.records} == {"trn00001.npz", "tst00001.npz"}
    assert "imgvalid_Abnormality_and_Location_Labels.csv is not there" in repr(reading)
    with pytest.raises(BadInput, match="'val' is no split"):
        rad_chestct.read(rad, "val")


def test_volumes_elsewhere_are_found_by_the_users_pattern(rad):
    (rad / "images").mkdir()
    (rad / "trn00001.npz").rename(rad / "images/trn00001.npz")
    reading = rad_chestct.read(rad, "train", volumes="images/{id}.npz")
    assert {r.volume for r in reading.records} == {"images/trn00001.npz"}
    assert reading.missing == {"images/trn00002.npz": 85}
    with pytest.raises(BadInput, match="give a pattern such as 'images/{id}.npz'"):
        rad_chestct.read(rad, volumes="images")


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ((*COLUMNS, "nodule*moon"), [(*row("trn1"), 0)], r"unknown label nodule\*moon"),
        ((*COLUMNS, "gallstone*liver"), [(*row("trn1"), 0)], r"unknown label gallstone\*liver"),
        (COLUMNS[3:], [("trn1", *[0] * (len(COLUMNS) - 3))], r"no column air_trapping\*…"),
        (COLUMNS, [("trn1", 2, *[0] * (len(COLUMNS) - 1))], r"air_trapping\*lung of trn1 is '2'"),
        (COLUMNS, [row("tst1")], "'tst1' doesn't begin with trn; the splits must not mix"),
        (COLUMNS, [row("trn1"), row("trn1", NODULE)], "line 3: NoteAcc_DEID trn1 is there twice"),
    ],
)
def test_labels_that_are_not_the_published_ones_are_refused(rad, columns, rows, message):
    write_labels(rad, "train", rows, columns)
    with pytest.raises(BadInput, match=message):
        rad_chestct.read(rad)


def test_a_row_repeated_word_for_word_is_kept_once(rad):
    write_labels(rad, "train", [row("trn00001", STENT), row("trn00001", STENT)])
    reading = rad_chestct.read(rad, "train")
    assert "1 row repeated word for word" in repr(reading)
    assert [r.answer for r in reading.records if r.kind == "location"] == ["superior vena cava"]


def test_a_volume_is_turned_upwards_and_has_its_documented_spacing(rad):
    found = rad_chestct.load_volume(rad / "trn00001.npz")
    assert found.shape == (5, 8, 9) and found.spacing_mm == pytest.approx((0.8, 0.8, 0.8))
    assert found.hu[-1, 3, 2] == 900  # the head is the last slice, as z grows upwards
    assert found.mm_of([4, 0, 0])[2] > found.mm_of([0, 0, 0])[2]
    assert found.mm_of([0, 0, 8])[0] > found.mm_of([0, 0, 0])[0]  # to the patient's left


def test_a_damaged_volume_is_listed_with_the_reason(rad):
    whole = (rad / "trn00001.npz").read_bytes()
    (rad / "trn00001.npz").write_bytes(whole[:-40])
    np.savez(rad / "trn00002.npz", volume=chest())
    reading = rad_chestct.read(rad, "train", check_volumes=True)
    assert not reading.records and "no array called ct" in reading.unreadable["trn00002.npz"]
    assert "fetch it again" in reading.unreadable["trn00001.npz"]
    np.savez(rad / "trn00002.npz", ct=(chest() + 1000) / 2000)
    with pytest.raises(BadInput, match="already scaled"):
        rad_chestct.load_volume(rad / "trn00002.npz")


def test_a_folder_of_rad_chestct_is_recognised_and_an_empty_one_refused(rad, tmp_path_factory):
    assert readers.recognise(rad) == {"Rad-ChestCT": rad_chestct}
    with pytest.raises(BadInput, match="holds no labels of Rad-ChestCT"):
        rad_chestct.read(tmp_path_factory.mktemp("empty"))
