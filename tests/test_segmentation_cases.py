"""Stage 1's cases of the real data sets, from miniature copies, and U-VLM's tables; no file of a user is touched."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_data import CHEST, SHAPE, write, write_csv

from ctvlm_lib import volume
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import ct_rate, uvlm_tables
from ctvlm_lib.records.segmentation_cases import abdomen_cases, chest_cases
from ctvlm_lib.segment.class_maps import GRANULARITIES, ClassMap
from ctvlm_lib.segment.containment import content

SCAN = "train_1741/train_1741_b/train_1741_b_2.nii.gz"
MASK_FILES = content()["released"]["abdomen"]["config"]
FINDINGS = {"0": "Consolidation.", "1": "Nodule.", "2": "Effusion."}
CODES = {"0": "2b", "1": "2d", "2": "2e"}
LUNGS = {10: (0, 3), 11: (3, 6), 12: (6, 8), 13: (8, 9), 14: (9, 12)}  # TotalSegmentator's lobes: columns


def anatomy_ids() -> np.ndarray:
    """Lobes in rows 2 and above, heart and humerus in row 1; (x, y, z)."""
    ids = np.zeros(SHAPE, np.uint8)
    for number, (start, stop) in LUNGS.items():
        ids[start:stop, 2:, :] = number
    ids[:6, 1, :], ids[6:, 1, :] = 51, 69
    return ids


def entry(name="train_1741_b_2.nii.gz", **changes) -> dict:
    return {"name": name, "findings": FINDINGS, "categories": CODES} | changes


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def rex(tmp_path) -> Path:
    """A train scan with all its parts, another without anatomy, and a test scan without masks."""
    lists = {"train": [entry(), entry("train_5_a_1.nii.gz")], "val": [], "test": [entry("train_9_a_1.nii.gz")]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
    masks = np.zeros((3, *SHAPE), np.uint8)
    masks[0, 0:2, 4:6, 3], masks[1, 1, 4, 3], masks[2, 4:6, 0:3, :] = 1, 2, 1
    for name in (SCAN, "train_5/train_5_a/train_5_a_1.nii.gz", "train_9/train_9_a/train_9_a_1.nii.gz"):
        write(tmp_path / "dataset/train_fixed" / name)
    for name in ("train_1741_b_2", "train_5_a_1"):
        write(tmp_path / f"segmentations/{name}.nii.gz", masks, np.eye(4))
    write(tmp_path / "dataset/ts_seg/ts_total/train_fixed" / SCAN, anatomy_ids())
    return tmp_path


def test_a_chest_scan_has_anatomy_and_findings_on_the_grid_of_its_ct(rex):
    (case,) = chest_cases(rex)
    assert (case.name, case.patient, case.split) == ("train_1741_b_2", "train_1741", "train")
    classes = ClassMap.of("chest", "F+L")
    target = case.target("F+L")
    assert target.shape == volume.load(case.ct).shape and target.dtype == np.uint8
    at = {name: target == classes.names.index(name) for name in classes.names}
    assert at["pulmonary nodules or masses"][3, 4, 1] and at["atelectasis or consolidation"].sum() == 3
    assert at["pleural effusion or thickening"].sum() == 2 * 3 * SHAPE[2]
    assert at["upper limb bones"][:, 1, 6:].all() and at["left lung upper lobe"][0, 4, 0]
    merged = ClassMap.of("chest", "C")
    coarse = case.target("C")
    lung, heart = (coarse == merged.names.index(name) for name in ("lung", "heart"))
    assert lung[:, 2:, :].all() and heart[:, 1, :6].all() and not coarse[:, 1, 6:].any()
    assert not coarse[:, 0, :].any()  # an effusion is no lung
    lesions = [len(np.intersect1d(np.unique(case.target(g)), range(16, 30))) for g in ("C", "C+L")]
    assert lesions == [0, 3]


def test_what_is_missing_is_listed_and_no_case_takes_its_place(rex):
    found = chest_cases(rex)
    assert found.missing == {
        "segmentations/train_9_a_1.nii.gz": 1,
        "ts_total/train_fixed/train_5/train_5_a/train_5_a_1.nii.gz": 1,
        "ts_total/train_fixed/train_9/train_9_a/train_9_a_1.nii.gz": 1,
    }
    assert len(found) == 1 and "pulmonary artery" in repr(found)
    assert not chest_cases(rex, split="test").cases
    (rex / "dataset/ts_seg/ts_total/train_fixed" / SCAN).unlink()
    assert not chest_cases(rex).cases


def test_anatomy_may_lie_in_a_folder_of_masks_and_an_incomplete_one_only_on_request(rex, tmp_path):
    own, ids = tmp_path / "own", anatomy_ids()
    names = {
        10: "lung_upper_lobe_left", 11: "lung_lower_lobe_left", 12: "lung_upper_lobe_right",
        13: "lung_middle_lobe_right", 14: "lung_lower_lobe_right", 51: "heart", 69: "humerus_left",
    }  # fmt: skip
    for number, name in names.items():
        write(own / f"train_1741_b_2/{name}.nii.gz", (ids == number).astype(np.uint8))
    found = chest_cases(rex, own)
    assert not found.cases and found.missing["own/train_1741_b_2/spleen.nii.gz"] == 1
    assert "own/train_1741_b_2/brain.nii.gz" not in found.missing  # no class needs it
    (case,) = chest_cases(rex, own, incomplete=True)
    (other,) = chest_cases(rex)
    assert all(np.array_equal(case.target(g), other.target(g)) for g in GRANULARITIES)


def test_anatomy_in_another_orientation_is_put_on_the_grid_of_the_ct(rex):
    (case,) = chest_cases(rex)
    before = case.target("F+L")
    turned = CHEST.copy()
    turned[0, 0], turned[0, 3] = -CHEST[0, 0], CHEST[0, 0] * (SHAPE[0] - 1)
    write(rex / "dataset/ts_seg/ts_total/train_fixed" / SCAN, anatomy_ids()[::-1], turned)
    assert np.array_equal(case.target("F+L"), before)


def test_names_in_the_header_are_believed_before_version_2s_numbers(rex):
    path = rex / "dataset/ts_seg/ts_total/train_fixed" / SCAN
    image = nib.Nifti1Image((anatomy_ids() == 51).astype(np.uint8), CHEST)
    table = b'<LabelTable><Label Key="1"><![CDATA[heart]]></Label></LabelTable>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table))
    nib.save(image, path)
    (case,) = chest_cases(rex)
    assert (case.target("C")[:, 1, :6] == ClassMap.of("chest", "C").names.index("heart")).all()


def test_labels_of_totalsegmentator_1_are_refused(rex):
    version_1 = {10: 13, 11: 14, 12: 15, 13: 16, 14: 17, 51: 0, 69: 0, 0: 0}
    ids = np.vectorize(version_1.get)(anatomy_ids()).astype(np.uint8)
    write(rex / "dataset/ts_seg/ts_total/train_fixed" / SCAN, ids)
    (case,) = chest_cases(rex)
    with pytest.raises(BadInput, match="TotalSegmentator 1, segment the CT anew"):
        case.target("C")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"categories": {"0": "2b", "1": "2d"}}, "finding 2 has the category ''"),
        ({"categories": ["2b", "2d", "2e"]}, "finding 0 has the category ''"),
        ({"categories": CODES | {"1": "3a"}}, "finding 1 has the category '3a'; one of 1a, 1b"),
        ({"findings": {"first": "Cyst."}, "categories": {"first": "2h"}}, "numbered 'first'"),
    ],
)
def test_a_finding_whose_category_is_not_told_makes_its_scan_unusable(rex, changes, reason):
    lists = {"train": [entry(**changes), entry("train_5_a_1.nii.gz")]}
    (rex / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
    found = chest_cases(rex)
    assert not found.cases and reason in found.unreadable["dataset.json, train_1741_b_2"]


def test_a_list_without_categories_or_anatomy_is_refused(rex, tmp_path):
    plain = {"train": [{"name": "train_1741_b_2.nii.gz", "findings": FINDINGS}]}
    (rex / "dataset.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(BadInput, match="no finding's category"):
        chest_cases(rex)
    (rex / "dataset/ts_seg").rename(rex / "dataset/elsewhere")
    with pytest.raises(BadInput, match="give the folder as anatomy_labels="):
        chest_cases(rex)


@pytest.fixture
def atlas(tmp_path) -> Path:
    """A whole train case, one without the mask of the rectum, a test case without the mask of liver lesions."""
    cases = [f"BDMAP_0000000{i}" for i in (1, 2, 3)]
    write_csv(tmp_path / "TrainTestIDS/IID_train.csv", ("BDMAP ID",), [(case,) for case in cases[:2]])
    write_csv(tmp_path / "TrainTestIDS/IID_test.csv", ("BDMAP ID",), [(cases[2],)])
    for case in cases:
        write(tmp_path / f"image_only/{case}/ct.nii.gz")
        for number, name in enumerate(MASK_FILES):
            mask = np.zeros(SHAPE, np.uint8)
            mask.reshape(-1)[number * 10 : number * 10 + 15] = 1  # each shares voxels with the next
            write(tmp_path / f"mask_only/{case}/segmentations/{name}.nii.gz", mask)
    (tmp_path / f"mask_only/{cases[1]}/segmentations/rectum.nii.gz").unlink()
    (tmp_path / f"mask_only/{cases[2]}/segmentations/liver_lesion.nii.gz").unlink()
    return tmp_path


def test_an_abdomen_case_is_painted_from_its_masks_lesions_last(atlas):
    (case,) = abdomen_cases(atlas)
    for granularity in ("C", "F+L"):
        classes, target = ClassMap.of("abdomen", granularity), case.target(granularity)
        stored = target.transpose(2, 1, 0).reshape(-1)  # x and y point left and back, as LPS does
        for number, name in enumerate(MASK_FILES):
            own = classes.names.index(classes.class_of(name))
            assert np.all(stored[number * 10 : number * 10 + 15] >= own)
        assert set(stored) == set(range(len(classes.names)))
        assert target.shape == volume.load(case.ct).shape
    assert np.sum(target == classes.names.index("pancreatic lesion")) == 15


def test_an_incomplete_abdomen_case_is_listed_and_kept_only_on_request(atlas):
    found = abdomen_cases(atlas)
    assert found.missing == {
        "mask_only/BDMAP_00000002/segmentations/rectum.nii.gz": 1,
        "mask_only/BDMAP_00000003/segmentations/liver_lesion.nii.gz": 1,
    }
    more = abdomen_cases(atlas, incomplete=True)
    assert [case.name for case in more] == ["BDMAP_00000001", "BDMAP_00000002"]  # never one without a lesion's mask
    assert "1 case without some structures, which count as background" in repr(more)
    assert not abdomen_cases(atlas, "test").cases
    with pytest.raises(BadInput, match="choose IID or OOD"):
        abdomen_cases(atlas, shift="random")
    write_csv(atlas / "TrainTestIDS/IID_test.csv", ("BDMAP ID",), [("BDMAP_00000001",)])
    with pytest.raises(BadInput, match="is in the list of train too"):
        abdomen_cases(atlas)


def test_reading_leaves_every_file_as_it_was_even_where_it_fails(rex, atlas):
    damaged = rex / "dataset/ts_seg/ts_total/train_fixed" / SCAN
    before = hashes(rex)
    for case in (*chest_cases(rex), *abdomen_cases(atlas)):
        case.target("C+L")
    assert hashes(rex) == before
    for path in (damaged, rex / "mask_only/BDMAP_00000001/segmentations/liver_lesion.nii.gz"):
        path.write_bytes(path.read_bytes()[:-20])
    after = hashes(rex)
    for case in (chest_cases(rex).cases[0], abdomen_cases(atlas).cases[0]):
        with pytest.raises(BadInput, match="again"):
            case.target("C+L")
    cut = rex / "dataset/train_fixed" / SCAN
    cut.write_bytes(b"no NIfTI")
    with pytest.raises(BadInput, match="train_1741_b_2.nii.gz"):
        chest_cases(rex).cases[0].target("C")
    after |= {str(cut.relative_to(rex)): hashlib.sha256(b"no NIfTI").hexdigest()}
    assert hashes(rex) == after and set(after) == set(before)


CHEST_TABLE = ("series_id", "case_id", "volume_name", "report", "processed_shape", "blosc2_path", *ct_rate.LABELS)


def chest_row(name="train_1741_b_2", labels=(0,) * 17 + (1,), path="/data/a.b2nd") -> tuple:
    return (name, name[:-2], f"{name}.nii.gz", "Findings: Clear. Impressions: None.", "[4]", path, *labels)


def test_a_table_of_uvlm_is_a_list_of_cases_with_report_and_labels(rex):
    path = write_csv(rex / "train_merged.csv", CHEST_TABLE, [chest_row(), chest_row("train_77_a_1")])
    found = uvlm_tables.read(path, rex)
    (case,) = found
    assert (case.name, case.patient, case.report) == (
        "train_1741_b_2", "train_1741", "Findings: Clear. Impressions: None.",
    )  # fmt: skip
    assert case.ct.is_file() and list(case.labels) == list(ct_rate.LABELS)
    assert [label for label, there in case.labels.items() if there] == ["Interlobular septal thickening"]
    assert list(found.missing) == ["dataset/train_fixed/train_77/train_77_a/train_77_a_1.nii.gz"]


def test_a_table_for_segmentation_and_one_of_the_abdomen_are_known_by_their_columns(rex, atlas):
    columns = ("series_id", "blosc2_path", "seg_blosc2_path")
    rows = [("train_1741_b_2_0000", "TODO_DATA_PATH/a.b2nd", "TODO_DATA_PATH/b.b2nd")]
    found = uvlm_tables.read(write_csv(rex / "seg.csv", columns, rows), rex)
    assert [(case.name, case.labels, case.report) for case in found] == [("train_1741_b_2", {}, "")]
    assert "the placeholder TODO_DATA_PATH; it isn't used" in repr(found)
    columns = ("case_id", "series_id", *uvlm_tables.REPORTS, "blosc2_path", *uvlm_tables.ABDOMEN_LABELS)
    rows = [("BDMAP_00000001", "BDMAP_00000001", *uvlm_tables.REPORTS, "", "1.0", "0", "0")]
    path = write_csv(atlas / "iid.csv", columns, rows)
    (case,) = uvlm_tables.read(path, atlas, report="report_narrative")
    assert case.report == "report_narrative"
    assert case.labels == {"Liver lesion": True, "Kidney lesion": False, "Pancreas lesion": False}


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (CHEST_TABLE, [chest_row(labels=("0",) * 6 + ("TODO_DATA_PATH/0",) + ("0",) * 11)],
         "Lymphadenopathy of train_1741_b_2 is 'TODO_DATA_PATH/0', where 0 or 1 is expected"),
        (CHEST_TABLE, [chest_row(labels=(2,) * 18)], "is '2'; 0 or 1 is expected"),
        (CHEST_TABLE, [chest_row(labels=("",) * 18)], "is ''; 0 or 1 is expected"),
        (CHEST_TABLE[:-1], [chest_row()[:-1]], "no column Interlobular septal thickening"),
        (CHEST_TABLE, [chest_row("case_1")], "names the series 'case_1'"),
        (CHEST_TABLE, [], "has no rows"),
        (("series_id", "blosc2_path"), [("train_1_a_1", "a")], "is it a table of U-VLM's preprocessing"),
        (("series_id", "path"), [("train_1_a_1", "a")], "no column blosc2_path"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_mean_is_refused(tmp_path, columns, rows, message):
    path = write_csv(tmp_path / "train_merged.csv", columns, rows)
    with pytest.raises(BadInput, match=message):
        uvlm_tables.read(path, tmp_path)


def test_a_table_that_ends_within_a_report_is_refused(tmp_path):
    columns = ("case_id", "series_id", "report", "blosc2_path", *uvlm_tables.ABDOMEN_LABELS)
    path = write_csv(tmp_path / "train_merged.csv", columns, [])
    path.write_text(
        path.read_text() + 'BDMAP_00000001,BDMAP_00000001,"CT Arterial Phase\nFINDINGS:\n', encoding="utf-8"
    )
    with pytest.raises(BadInput, match="doesn't have as many cells as the header"):
        uvlm_tables.read(path, tmp_path)
