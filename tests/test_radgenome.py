"""The reader of RadGenome-ChestCT: regions, masks, questions."""

import pytest
from helpers_data import PRESENCE, make_radgenome, write_csv

from ctvlm_lib import mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import radgenome


@pytest.fixture
def genome(tmp_path):
    return make_radgenome(tmp_path)


def of_kind(reading, kind):
    return [record for record in reading.records if record.kind == kind]


def test_radgenome_gives_every_kind_with_plain_questions(genome):
    reading = radgenome.read(genome, "train")
    assert {kind: n for (_, kind), n in reading.counts.items()} == {
        "report": 3, "abnormality": 2, "presence": 2, "location": 2, "size": 1, "disorder": 1,
    }  # fmt: skip
    presence = of_kind(reading, "presence")
    assert [(r.question, r.answer, r.form) for r in presence] == [
        ("Does the left lung lower lobe show nodule?", "Yes", "closed"),
        ("Does the heart show clot?", "No", "closed"),
    ]
    assert {r.form for r in reading.records if r.kind != "presence"} == {"open"}
    assert of_kind(reading, "size")[0].answer == "6x4 mm"
    assert of_kind(reading, "location")[0].answer == "left lung lower lobe"
    assert "questions are plain ones of this project" in repr(reading)


def test_radgenome_paths_become_regions_of_the_anatomy_table(genome):
    regions = [r.region for r in of_kind(radgenome.read(genome, "train"), "report")]
    assert regions == ["left lung lower lobe", None, "others"]


def test_the_same_row_at_two_levels_of_the_path_is_kept_once(genome):
    reading = radgenome.read(genome, "train")
    assert len(of_kind(reading, "abnormality")) == 2
    assert "1 row with a question and answer that another" in repr(reading)


def test_the_folder_of_a_scan_has_no_underscore(genome):
    reading = radgenome.read(genome, "validation")
    published = "dataset/valid_preprocessed/valid_101/valid_101a/valid_101_a_1.nii.gz"
    assert {r.volume for r in reading.records} == {published}
    assert not any("valid_preprocessed" in path for path in reading.missing)


def test_a_mask_is_the_leaf_else_the_head_else_listed(genome):
    reading = radgenome.read(genome, "train")
    nodule, clot = of_kind(reading, "presence")
    assert nodule.mask == "dataset/train_anatomy_mask/seg_train_1_a_1/left lung lower lobe.nii.gz"
    assert clot.mask == "dataset/train_region_mask/seg_train_1_a_1/heart.nii.gz"
    assert mask.load(genome / nodule.mask).binary(nodule.region).any()
    whole_lung = "dataset/train_anatomy_mask/seg_train_1_a_1/lung.nii.gz"
    assert reading.missing == {whole_lung: 1} and of_kind(reading, "abnormality")[0].mask is None


def test_no_mask_tree_is_one_note_and_not_a_thousand_missing_files(genome):
    reading = radgenome.read(genome, "validation")
    assert not reading.missing and "neither valid_anatomy_mask nor valid_region_mask" in repr(reading)


def test_whether_a_question_names_its_region(genome):
    named = {r.question: r.names_region for r in radgenome.read(genome, "train").records}
    assert named["Does the heart show clot?"] and named["Where is the left lung lower lobe cyst?"]
    assert not named["Where is the nodule?"] and not named["Describe the findings of this CT."]
    unnamed = radgenome.read(genome, "train", name_region=False)
    assert of_kind(unnamed, "presence")[0].question == "Does the given region show nodule?"
    assert [r.names_region for r in of_kind(unnamed, "presence")] == [False, False]
    assert of_kind(unnamed, "presence")[0].region == "left lung lower lobe"


def test_radgenome_refuses_another_answer_than_yes_and_no(genome):
    path = genome / "dataset/radgenome_files/train_vqa_presence.csv"
    write_csv(path, ("Volumename", *PRESENCE), [("train_1_a_1.nii.gz", "lung", "nodule", "Maybe.")])
    with pytest.raises(BadInput, match="train_vqa_presence.csv, line 2: Presence is 'Maybe.'"):
        radgenome.read(genome)
    write_csv(path, ("Volumename", "Anatomy", "Finding"), [("train_1_a_1.nii.gz", "lung", "nodule")])
    with pytest.raises(BadInput, match="no column Presence"):
        radgenome.read(genome)


def test_radgenome_tells_unknown_regions_contradictions_and_partial_tables(genome):
    files = genome / "dataset/radgenome_files"
    rows = [("lung", "nodule", "Yes."), ("lung", "nodule", "No."), ("lung/fissure x", "cyst", "No."), ("lung", "x", "")]
    table_of_presence = [("train_1_a_1.nii.gz", *row) for row in rows]
    write_csv(files / "train_vqa_presence.csv", ("Volumename", *PRESENCE), table_of_presence)
    (files / "train_case_disorders.csv").unlink()
    text = repr(radgenome.read(genome, "train"))
    assert "1 presence question answered both Yes and No" in text and "under their own names: fissure x" in text
    assert "tables not there: train_case_disorders.csv" in text and "1 row without an answer" in text


def test_radgenome_reads_the_public_subset_where_the_full_tables_are_not(genome):
    files = genome / "dataset/radgenome_files"
    (files / "subset_2000").mkdir()
    for path in files.glob("train_*.csv"):
        path.rename(files / "subset_2000" / path.name)
    assert len(radgenome.read(genome, "train").records) == 11
