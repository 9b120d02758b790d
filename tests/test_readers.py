"""What the readers of the data sets share: tables, folders, and ``ctvlm doctor --data``."""

import pytest
from helpers_ct import command_line
from helpers_data import make_ct_rate, make_m3d, make_radgenome, write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import abdomen_atlas, ct_rate, m3d, naming, pmc_vqa, radgenome, table


def test_an_empty_folder_or_none_is_told(tmp_path):
    for reader in (ct_rate, radgenome, m3d, abdomen_atlas, pmc_vqa):
        with pytest.raises(BadInput, match="holds n"):
            reader.read(tmp_path)
        with pytest.raises(BadInput, match="no folder"):
            reader.read(tmp_path / "elsewhere")


def test_doctor_says_which_data_set_lies_there(tmp_path, capsys):
    for make in (make_ct_rate, make_radgenome, make_m3d):
        make(tmp_path)
    assert command_line("doctor", "--data", tmp_path) == 0
    told = capsys.readouterr().out
    assert "Reading(CT-RATE: 76 records (train 57, validation 19) on 4 volumes of 3 patients" in told
    assert "Reading(RadGenome-ChestCT: 22 records" in told and "Reading(M3D-Cap and M3D-VQA: 7 records" in told
    assert "RadGenome-ChestCT: records by split and kind: train abnormality 2" in told


def test_doctor_points_at_what_is_broken(tmp_path, capsys, tmp_path_factory):
    rate = make_ct_rate(tmp_path)
    (rate / "dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz").write_bytes(b"")
    assert command_line("doctor", "--data", rate) == 1
    assert "unreadable: 1 file" in capsys.readouterr().out
    write_csv(rate / "dataset/radiology_text_reports/train_reports.csv", ("VolumeName",), [("train_1_a_1.nii.gz",)])
    assert command_line("doctor", "--data", rate) == 1
    assert "attention  CT-RATE: train_reports.csv has no column" in capsys.readouterr().out
    assert command_line("doctor", "--data", tmp_path_factory.mktemp("empty")) == 2
    assert "known by their files are: CT-RATE" in capsys.readouterr().err


def test_the_longest_anatomical_name_in_a_text_counts():
    assert naming.structure_in("Is the left kidney larger?") == "left kidney"
    assert naming.structure_in("Is the liver brighter than the spleen?") is None
    assert naming.structure_in("What is the plane?") is None


def test_a_table_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(BadInput, match="not a readable CSV"):
        list(table.rows(path, ("a",)))
    path.write_text("\ufeffa,b\n x ,nan\n", encoding="utf-8")
    assert list(table.rows(path, ("a",))) == [(2, {"a": "x", "b": ""})]
