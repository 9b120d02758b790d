"""Batches: every case is rendered or listed with its reason; what is finished is kept."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import block, command_line, lps_affine, small_ct

from ctvlm_lib import made_once, many
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import batch, contour
from ctvlm_lib.prompt.batch import find_cases, output_name, render_all
from ctvlm_lib.prompt.render import Style
from ctvlm_lib.volume import save_nifti

SHAPE = (5, 14, 16)
LIVER = block(SHAPE, ((1, 3, 2), (4, 9, 7)))
SPLEEN = block(SHAPE, ((1, 4, 10), (4, 9, 14)))


@pytest.fixture
def cases_folder(tmp_path):
    """Two good cases (a folder of masks, a label file), one whose CT is cut short and one without masks."""
    source = tmp_path / "cases"
    for number, name in enumerate(["anna", "bert", "cora", "dirk"]):
        small_ct(SHAPE, seed=number).save(source / name / "ct.nii.gz")
    for name in ("anna", "cora"):
        for structure, mask in (("liver", LIVER), ("spleen", SPLEEN)):
            file = source / name / "segmentations" / f"{structure}.nii.gz"
            save_nifti(file, mask.astype(np.uint8), lps_affine(), "RAS")
    save_nifti(source / "bert" / "labels.nii.gz", (LIVER + 3 * SPLEEN).astype(np.uint8), lps_affine())
    ct = source / "cora" / "ct.nii.gz"
    ct.write_bytes(ct.read_bytes()[:400])
    return source


def _run(source, out, scheduler, roi="liver", style=None, **options):
    said = []
    cases = find_cases(source, roi, style or Style())
    rows = render_all(cases, out, scheduler=scheduler, names="vista3d", say=said.append, **options)
    return {row["case"]: row for row in rows}, said


def _written(out) -> dict[str, int]:
    """Finished pictures and when they were written."""
    return {f.name: f.stat().st_mtime_ns for f in out.iterdir() if f.name.endswith(".nii.gz")}


def test_broken_cases_are_listed_and_the_rest_is_finished(cases_folder, tmp_path, scheduler):
    rows, said = _run(cases_folder, tmp_path / "out", scheduler)
    assert {name: row["status"] for name, row in rows.items()} == {
        "anna": "done", "bert": "done", "cora": "failed", "dirk": "failed",
    }  # fmt: skip
    assert "ct.nii.gz is" in rows["cora"]["error"] and "there is no file or folder" in rows["dirk"]["error"]
    assert sorted(_written(tmp_path / "out")) == ["anna_liver_contour.nii.gz", "bert_liver_contour.nii.gz"]
    assert len(said) == 4 and said[-1].startswith("[4/4]") and "s left)" in said[0]
    with open(tmp_path / "out" / "render.csv", newline="", encoding="utf-8") as file:
        table = {row["case"]: row for row in csv.DictReader(file)}
    assert table["anna"]["status"] == "done" and table["cora"]["error"] == rows["cora"]["error"]
    assert not list((tmp_path / "out").rglob("*.partial.*"))


def test_a_case_of_a_batch_is_the_single_cases_picture(cases_folder, tmp_path, scheduler):
    _run(cases_folder, tmp_path / "out", scheduler, kind="label")
    for name in ("anna", "bert"):
        image = nib.load(tmp_path / "out" / f"{name}_liver_contour.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), contour(LIVER))


def test_a_second_run_keeps_what_is_finished_and_takes_up_what_was_repaired(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    first, _ = _run(cases_folder, out, scheduler)
    before = _written(out)
    small_ct(SHAPE, seed=2).save(cases_folder / "cora" / "ct.nii.gz")
    second, _ = _run(cases_folder, out, scheduler)
    assert [row["status"] for row in second.values()] == ["kept", "kept", "done", "failed"]
    after = _written(out)
    assert {name: after[name] for name in before} == before
    assert second["anna"]["prompt"] == first["anna"]["prompt"] != ""


def test_a_changed_option_fails_without_force_and_replaces_with_it(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    _run(cases_folder, out, scheduler)
    before = _written(out)
    thick = Style(thickness=5)
    rows, _ = _run(cases_folder, out, scheduler, style=thick)
    assert rows["anna"]["status"] == "failed" and "exists already" in rows["anna"]["error"]
    assert _written(out) == before
    rows, _ = _run(cases_folder, out, scheduler, style=thick, force=True)
    assert rows["anna"]["status"] == "done" and _written(out)["anna_liver_contour.nii.gz"] != before
    rows, _ = _run(cases_folder, out, scheduler, style=thick)
    assert rows["anna"]["status"] == "kept"


def test_a_changed_input_is_not_taken_for_the_old_one(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    _run(cases_folder, out, scheduler)
    small_ct(SHAPE, seed=9).save(cases_folder / "anna" / "ct.nii.gz")
    rows, _ = _run(cases_folder, out, scheduler)
    assert rows["anna"]["status"] == "failed" and rows["bert"]["status"] == "kept"


@pytest.mark.parametrize("moment", ["before the picture", "after the picture"])
def test_a_batch_that_is_killed_goes_on_where_it_stopped(cases_folder, tmp_path, scheduler, monkeypatch, moment):
    out = tmp_path / "out"
    true_render, true_note = batch.render, made_once.write_note
    cases = [case for case in find_cases(cases_folder, "liver", Style()) if case.name in ("anna", "bert")]

    class Killed(BaseException):
        pass

    def stop(*args, **options):
        raise Killed

    batch._one(cases[0], out, "rgb", "vista3d", True, False)  # the first case is finished
    if moment == "before the picture":
        monkeypatch.setattr(batch, "render", stop)
    else:  # the picture is written, and its note not yet
        notes = {True: true_note, False: stop}
        monkeypatch.setattr(made_once, "write_note", lambda path, content: notes["begun" in content](path, content))
    with pytest.raises(Killed):
        batch._one(cases[1], out, "rgb", "vista3d", True, False)
    assert (out / "bert_liver_contour.nii.gz").exists() == (moment == "after the picture")
    (out / ".0123abcd.partial.bert_liver_contour.nii.gz").touch()  # kill -9 in the middle of writing
    monkeypatch.setattr(batch, "render", true_render)
    monkeypatch.setattr(made_once, "write_note", true_note)
    rows, _ = _run(cases_folder, out, scheduler)
    assert rows["anna"]["status"] == "kept" and rows["bert"]["status"] == "done"
    assert not list(out.rglob("*.partial.*"))


def test_a_failed_replacement_leaves_the_old_picture_and_its_note(cases_folder, tmp_path, scheduler):
    out = tmp_path / "out"
    _run(cases_folder, out, scheduler)
    ct, copy = cases_folder / "anna" / "ct.nii.gz", tmp_path / "copy.nii.gz"
    shutil.copy2(ct, copy)
    ct.write_bytes(b"broken")
    rows, _ = _run(cases_folder, out, scheduler, force=True)
    assert rows["anna"]["status"] == "failed"
    shutil.copy2(copy, ct)  # with its time
    rows, _ = _run(cases_folder, out, scheduler)
    assert rows["anna"]["status"] == "kept"


def test_a_case_that_no_worker_can_begin_costs_itself_and_not_the_batch(
    cases_folder, tmp_path, scheduler, monkeypatch
):
    def lost(case, *how):
        if case.name == "bert":
            raise ImportError("no such library")
        return true_one(case, *how)

    true_one = many._guarded
    monkeypatch.setattr(many, "_guarded", lost)
    rows, _ = _run(cases_folder, tmp_path / "out", scheduler)
    assert rows["anna"]["status"] == "done"
    assert rows["bert"]["status"] == "failed" and rows["bert"]["error"].startswith("no worker could begin it: Im")


def test_a_scheduler_that_does_not_answer_is_said(cases_folder, tmp_path):
    with pytest.raises(BadInput, match="no Dask scheduler answers at nonsense://here"):
        _run(cases_folder, tmp_path / "out", "nonsense://here")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_with_dots_can_be_rendered_to_folders_of_pictures(cases_folder, tmp_path, scheduler):
    (cases_folder / "anna").rename(cases_folder / "1.2.840.5")
    rows, _ = _run(cases_folder, tmp_path / "out", scheduler, kind="png")
    assert rows["1.2.840.5"]["status"] == "done"
    assert len(list((tmp_path / "out" / "1.2.840.5_liver_contour").glob("slice_*.png"))) == SHAPE[0]


# --- the list of cases ---------------------------------------------------------------------------------------


def _table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_gives_cases_with_their_own_options(tmp_path):
    table = _table(
        tmp_path / "cases.csv",
        "name,ct,mask,roi,style,thickness,window\na,x/ct.nii.gz,x/seg,liver,dual,5,90/150\n,y.nii.gz,y/seg,spleen,,,\n",
    )
    first, second = find_cases(table, None, Style(thickness=1, window="lung"))
    assert first.ct == tmp_path / "x/ct.nii.gz" and first.mask == tmp_path / "x/seg" and first.name == "a"
    assert first.style == Style("dual", thickness=5, window=(90.0, 150.0))
    assert second.name == "y" and second.style == Style(thickness=1, window="lung")
    assert [output_name(c) for c in (first, second)] == ["a_liver_dual", "y_spleen_contour"]


def test_a_csv_is_rendered_with_one_distractor_a_row(cases_folder, tmp_path, scheduler):
    rows = "anna/ct.nii.gz,anna/segmentations,liver,a\nanna/ct.nii.gz,anna/segmentations,spleen,b\n"
    table = _table(cases_folder / "cases.csv", "ct,mask,roi,name\n" + rows)
    done, _ = _run(table, tmp_path / "out", scheduler, roi=None, style=Style("dual"))
    assert "spleen in red" in done["a"]["prompt"] and "liver in red" in done["b"]["prompt"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ct,mask\na,b\n", r"lacks \['roi'\]"),
        ("ct,mask,roi,thicknes\na,b,liver,3\n", r"unknown columns \['thicknes'\]"),
        ("ct,mask,roi\na,,liver\n", "line 2 needs ct, mask and roi"), ("ct,mask,roi\n", "holds no cases"),
        ("ct,mask,roi,thickness\na,b,liver,thick\n", "line 2: invalid literal"),
        ("ct,mask,roi,thickness\na,b,liver,4\n", "line 2: thickness must be an odd"),
        ("ct,mask,roi,window\na,b,liver,chest\n", "line 2: no window is called 'chest'"),
        ("ct,mask,roi\na/ct.nii.gz,b,liver\nc/ct.nii.gz,d,liver\n", "several cases for the output ct_liver_contour"),
        ("name,ct,mask,roi\nA,b,c,liver\na,b,c,liver\n", "several cases for the output A_liver_contour"),
    ],
)  # fmt: skip
def test_a_csv_that_cannot_be_followed_is_refused_with_the_line(tmp_path, text, told):
    with pytest.raises(BadInput, match=told):
        find_cases(_table(tmp_path / "cases.csv", text), None, Style())


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_bytes("ct,mask,roi\nmüller.nii.gz,b,liver\n".encode("latin-1"))
    with pytest.raises(BadInput, match="UTF-8"):
        find_cases(table, None, Style())


def test_command_line_batch_in_processes_lists_what_failed(cases_folder, tmp_path, capsys):
    """The whole way once: worker processes, the table, exit code 1 because two of four failed."""
    out = tmp_path / "out"
    words = ("render", cases_folder, "--roi", "liver", "--names", "vista3d", "--workers", 2, "-o", out)
    assert command_line(*words) == 1
    said = capsys.readouterr()
    assert f"2 of 4 cases rendered into {out}" in said.out
    assert said.err.count("failed: ") == 2 and "failed: cora: ct.nii.gz is" in said.err
    assert len(_written(out)) == 2


def test_command_line_batch_needs_a_region_and_a_folder_it_can_write_to(cases_folder, tmp_path, capsys):
    assert command_line("render", cases_folder, "-o", tmp_path / "out") == 2
    assert "give --roi NAME" in capsys.readouterr().err
    assert command_line("render", cases_folder, "--roi", "liver", "--workers", 0, "-o", tmp_path / "out") == 2
    assert "at least one worker, got 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command_line("render", cases_folder, "--roi", "liver", "-o", tmp_path / "file") == 2
    assert capsys.readouterr().err.startswith("ctvlm: can't make the folder")


def test_a_folder_named_csv_is_refused(tmp_path):
    (tmp_path / "cases.csv").mkdir()
    with pytest.raises(BadInput, match="can't be read as a CSV"):
        find_cases(tmp_path / "cases.csv", "liver", Style())


def test_an_outputs_name_is_one_on_every_system():
    case = batch.Case(r"a:b\c d", "ct", "mask", "left/right?", Style())
    assert output_name(case) == "a-b-c-d_left-right-_contour"


def test_the_same_files_spelt_another_way_are_kept(cases_folder, monkeypatch):
    first = find_cases(cases_folder, "liver", Style())[0]
    monkeypatch.chdir(cases_folder.parent)
    again = find_cases(Path(cases_folder.name), "liver", Style())[0]
    assert again.ct != first.ct and batch._key(again, "rgb", None) == batch._key(first, "rgb", None)
