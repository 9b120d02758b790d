"""Volumes are brought to a paper's input many at a time: as one at a time, resumable, and read by the trainings."""

import csv
import pickle
from dataclasses import replace

import helpers_pairs
import numpy as np
import pytest
from helpers_ct import command_line, small_ct
from safetensors.numpy import load_file

from ctvlm_lib import sources
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import local_global_real, local_global_real_data, prepared_arms
from ctvlm_lib.records import m3d
from ctvlm_lib.volume import RECIPES, load
from ctvlm_lib.volume.prepare import find_cases, prepare_all

SHAPE = (5, 14, 16)


@pytest.fixture
def cases_folder(tmp_path):
    """Two good CTs and one that is cut short."""
    source = tmp_path / "cases"
    for number, name in enumerate(["anna", "bert", "cora"]):
        small_ct(SHAPE, seed=number).save(source / name / "ct.nii.gz")
    ct = source / "cora" / "ct.nii.gz"
    ct.write_bytes(ct.read_bytes()[:400])
    return source


def _run(source, out, scheduler, **options):
    rows = prepare_all(find_cases(source), out, scheduler=scheduler, say=lambda line: None, **options)
    return {row["case"]: row for row in rows}


def _written(folder, pattern="*.npy"):
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob(pattern)}


def test_a_prepared_volume_is_the_recipes_and_what_pretraining_on_m3d_reads(cases_folder, tmp_path, scheduler):
    rows = _run(cases_folder, tmp_path / "out", scheduler)
    assert {name: row["status"] for name, row in rows.items()} == {"anna": "done", "bert": "done", "cora": "failed"}
    assert rows["anna"]["shape"] == "128×256×256" and "ct.nii.gz is" in rows["cora"]["error"]
    for name in ("anna", "bert"):
        expected = RECIPES["Med3DVLM"](load(cases_folder / name / "ct.nii.gz"))[0, 0]
        read = m3d.load_array(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_allclose(read, expected, atol=1 / 4096)  # half a step of 16 bits below 1
    with open(tmp_path / "out" / "prepare.csv", newline="", encoding="utf-8") as file:
        table = {row["case"]: row for row in csv.DictReader(file)}
    assert table["bert"]["recipe"] == "Med3DVLM" and table["cora"]["error"] == rows["cora"]["error"]
    assert sorted(_written(tmp_path / "out")) == ["anna.npy", "bert.npy"] and not list(tmp_path.rglob("*.partial.*"))


def test_a_second_run_keeps_what_is_finished_and_replaces_nothing_unasked(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    _run(cases_folder, out, scheduler, recipe="VISTA-3D")
    before = _written(out)
    small_ct(SHAPE, seed=2).save(cases_folder / "cora" / "ct.nii.gz")
    (out / ".0123abcd.partial.cora.npy").touch()  # kill -9 in the middle of writing
    rows = _run(cases_folder, out, scheduler, recipe="VISTA-3D")
    assert [row["status"] for row in rows.values()] == ["kept", "kept", "done"]
    assert {name: _written(out)[name] for name in before} == before and not list(out.rglob("*.partial.*"))
    small_ct(SHAPE, seed=9).save(cases_folder / "anna" / "ct.nii.gz")
    rows = _run(cases_folder, out, scheduler, recipe="VISTA-3D")
    assert rows["anna"]["status"] == "failed" and "exists already" in rows["anna"]["error"]
    assert {name: _written(out)[name] for name in before} == before


def test_another_recipe_replaces_nothing_unless_it_shall(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    _run(cases_folder, out, scheduler, recipe="VISTA-3D")
    before = _written(out)
    rows = _run(cases_folder, out, scheduler, recipe="Merlin")
    assert {row["status"] for row in rows.values()} == {"failed"} and _written(out) == before
    rows = _run(cases_folder, out, scheduler, recipe="Merlin", force=True)
    assert rows["anna"]["status"] == "done" and np.load(out / "anna.npy").shape == (1, 224, 224, 160)


def test_a_table_that_render_takes_will_do(cases_folder, tmp_path):
    table = cases_folder / "cases.csv"
    table.write_text("ct,mask,roi,name\nanna/ct.nii.gz,anna/segmentations,liver,a\n", encoding="utf-8")
    assert [(case.name, case.ct) for case in find_cases(table)] == [("a", cases_folder / "anna/ct.nii.gz")]
    table.write_text("ct,nmae\nanna/ct.nii.gz,a\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"unknown columns \['nmae'\]; the columns are ct and, if wished, mask, name"):
        find_cases(table)
    table.write_text("ct,name\n,a\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 2 needs ct$"):
        find_cases(table)


def test_the_command_says_what_it_lacks(cases_folder, tmp_path, capsys):
    for words, told in (
        ((cases_folder,), "say where prepared volumes shall lie"),
        ((cases_folder / "anna", "-o", tmp_path / "out"), "is neither a CSV nor a folder whose folders hold"),
        ((cases_folder, "-o", tmp_path / "out", "--workers", 0), "at least one worker, got 0"),
        ((cases_folder, "-o", tmp_path / "out", "--arm", "align-full"), "--arm takes --workers and --scheduler, not"),
    ):
        assert command_line("prepare", *words) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(BadInput, match="no recipe is called 'CLIP'; choose one of Med3DVLM"):
        prepare_all(find_cases(cases_folder), tmp_path / "out", "CLIP")


def test_the_command_lists_what_failed(cases_folder, tmp_path, scheduler, capsys):
    words = ("prepare", cases_folder, "-o", tmp_path / "out", "--recipe", "VISTA-3D", "--scheduler", scheduler)
    assert command_line(*words) == 1
    said = capsys.readouterr()
    assert f"2 of 3 cases prepared in {tmp_path / 'out'}" in said.out and "failed: cora: ct.nii.gz is" in said.err


# --- what an arm of profile paper keeps -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return helpers_pairs.make_all(tmp_path_factory.mktemp("own"))


def test_an_arm_finds_what_was_made_ready_ahead_of_it(file, tmp_path, scheduler, capsys):
    given = sources.load(file)
    assert command_line("prepare", file, "--arm", "align-global", "--scheduler", scheduler) == 0
    assert "15 of 15 cases ready for align-global" in capsys.readouterr().out
    made = _written(file.parent / "prepared", "*.safetensors")
    assert len(made) == 15
    corpora = local_global_real_data.read(local_global_real.config_of("align-global", given), given, tmp_path)
    assert sum(len(corpus) for corpus in corpora.values()) == 15  # what `ctvlm arm` reads
    assert _written(file.parent / "prepared", "*.safetensors") == made


def test_volumes_of_an_arm_are_kept_or_made_again_alike(file, scheduler):
    given = sources.load(file)
    first, table = prepared_arms.prepare_all("align-full", given, scheduler=scheduler, say=lambda line: None)
    kept = sorted((file.parent / "prepared").rglob("*.safetensors"))
    before, gone = {path: load_file(path) for path in kept}, kept[3]
    gone.unlink()
    (gone.parent / f".0123abcd.partial.{gone.name}").touch()  # kill -9 in the middle of writing
    again, _ = prepared_arms.prepare_all("align-full", given, scheduler=scheduler, say=lambda line: None)
    assert table.name == "prepare-align-full.csv" and {row["status"] for row in first} <= {"done", "kept"}
    assert {row["case"] for row in again if row["status"] == "done"} == {gone.name.removesuffix(".safetensors")}
    for path, arrays in before.items():
        assert all(np.array_equal(array, arrays[name]) for name, array in load_file(path).items())
    assert not list((file.parent / "prepared").rglob("*.partial.*"))


def test_an_arm_that_keeps_no_volumes_or_has_no_folder_is_refused(file):
    given = sources.load(file)
    with pytest.raises(BadInput, match="radgenome-contour-0.5B keeps no volumes"):
        prepared_arms.cases_of("radgenome-contour-0.5B", given)
    with pytest.raises(BadInput, match=r"\[run\] prepared"):
        prepared_arms.cases_of("align-full", replace(given, prepared=""))


def test_a_case_of_an_arm_travels_without_the_others(file):
    cases = prepared_arms.cases_of("align-full", sources.load(file))
    assert max(len(pickle.dumps(case)) for case in cases) < 8_000
