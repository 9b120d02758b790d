"""The explorer without a browser: cases, outlines, prompts, answers, what is kept, and what is refused."""

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from argparse import ArgumentParser
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import lps_affine
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib import checkpoints
from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import ask, cases, files, keep, outline, prompts, server
from ctvlm_lib.explore.ask import Answer, elsewhere, verdict
from ctvlm_lib.explore.ask import given as seen_by_models
from ctvlm_lib.explore.cases import OWN, PHANTOM, Case
from ctvlm_lib.explore.page import Explorer
from ctvlm_lib.explore.questions import question as question_of
from ctvlm_lib.explore.questions import templates
from ctvlm_lib.explore.session import BY_HAND, Drawn, Session
from ctvlm_lib.mask import LabelMap, dice
from ctvlm_lib.prompt.distractor import choose
from ctvlm_lib.prompt.render import Style, draw
from ctvlm_lib.run import PROJECT
from ctvlm_lib.view import PLANES, frame
from ctvlm_lib.volume import Volume


@pytest.fixture
def case(synthetic_case):
    return Case("synthetic", OWN, synthetic_case.volume, synthetic_case.labels)


@pytest.fixture
def session(case):
    return Session(case)


@pytest.fixture
def explorer(case):
    return Explorer(case, background=False)


def test_it_opens_on_the_liver_with_a_contour_and_says_so(explorer):
    say = explorer.panels["Prompt"].say.value
    assert "blue contour around the liver, 3 px" in say and "of 23 axial slices" in say
    assert [entry["label"] for entry in explorer.session.viewer.palette] == ["contour: liver"]
    assert explorer.session.labels.binary("liver")[tuple(explorer.session.viewer.at)]


@pytest.mark.parametrize("plane", PLANES)
def test_a_slice_is_sent_as_the_static_figure_shows_it(session, plane):
    framed, liver = frame(session.case.volume, plane), session.prompt().marks[0].mask
    hu, marks, heat = session.viewer.slice(plane, 9)
    assert np.array_equal(hu, np.rint(framed.cut(session.case.volume.hu, 9)))
    assert np.array_equal(marks == 1, framed.cut(liver, 9)) and heat is None


def test_a_line_lies_over_an_area_and_a_later_line_over_an_earlier_one(session):
    session.show(["liver"])
    line = session.prompt().marks[0].mask
    index = int(line.any((1, 2)).argmax())
    assert (session.viewer.slice("axial", index)[1][line[index]] == 1).all()
    ones = np.ones(session.case.volume.shape, bool)
    session.viewer.show_marks([prompts.Mark(ones, "green", "first"), prompts.Mark(ones, "red", "second", True)])
    assert (session.viewer.slice("axial", 0)[1] == 2).all()


def test_requests_for_what_is_not_there_are_passed_over(session, monkeypatch):
    sent = []
    monkeypatch.setattr(session.viewer, "send", lambda *what: sent.append(what))
    for message in ({"kind": "slice", "plane": "axial", "index": 23}, {"kind": "slice", "plane": "oblique", "index": 1},
                    {"kind": "slice", "plane": "axial", "index": "1"}, {"kind": "other"}):  # fmt: skip
        session.viewer._asked(None, message, [])
    assert sent == []
    session.viewer._asked(None, {"kind": "slice", "plane": "axial", "index": 22, "version": 1}, [])
    assert len(sent) == 1
    session.viewer.at = [99, -4, 3]
    assert session.viewer.at == [22, 0, 3]


@pytest.mark.parametrize(
    ("control", "value", "says"),
    [
        ("region", "spleen", "around the spleen"), ("style", "none", "No prompt"), ("thickness", 5, "5 px"),
        ("style", "box", "green box around the liver"), ("style", "dual", "dashed red box around the"),
        ("side", "both", "both sides of the edge"), ("colours", prompts.SAFE, "sky contour"),
    ],
)  # fmt: skip
def test_each_control_changes_the_prompt_and_its_sentence(explorer, control, value, says):
    before = explorer.session.viewer.version
    explorer.panels["Prompt"].controls[control].value = value
    assert says in explorer.panels["Prompt"].say.value and explorer.session.viewer.version > before


def test_a_distractor_is_chosen_by_hand_and_overlap_is_refused_in_words(explorer):
    panel = explorer.panels["Prompt"]
    panel.style.value, panel.rule.value, panel.named.value = "dual", BY_HAND, "spleen"
    assert "red box around the spleen" in panel.say.value and "named by the user" in panel.say.value
    panel.named.value = "liver"
    assert "shares" in panel.say.value and "can&#x27;t be its distractor" in panel.say.value


def test_a_prompt_is_made_once(session, monkeypatch):
    made = []
    make = prompts.make
    monkeypatch.setattr(prompts, "make", lambda *how: made.append(how) or make(*how))
    for style in ("box", "contour", "box", "contour"):
        session.choose(style=style)
    assert len(made) == 1  # the contour was there from the start


@pytest.mark.parametrize("style", ["contour", "box", "dual"])
def test_a_prompt_is_the_one_that_render_draws(style):
    array = np.zeros((6, 20, 20), np.uint16)
    array[1:5, 2:9, 2:9], array[1:5, 15:18, 15:18] = 1, 1  # two parts: the papers keep the largest
    array[1:5, 2:5, 14:18] = 2
    labels = LabelMap(array, np.eye(4), {1: "liver", 2: "spleen"})
    other = choose(labels, "liver") if style == "dual" else None
    made = prompts.make(labels, "liver", style, 3, "inner", other)
    lines = draw(labels, "liver", Style(style)).lines
    assert [mark.colour for mark in made.marks] == [colour for _, colour, _ in lines]
    assert all(np.array_equal(mark.mask, line) for mark, (line, _, _) in zip(made.marks, lines, strict=True))


def test_med3dvlms_first_layer_reads_all_of_a_whole_picture_that_lies_on_its_lines():
    assert prompts.share_read(np.ones((16, 16, 16), bool), (16, 16, 16)) == pytest.approx(10 / 64)
    line = np.zeros((16, 16, 16), bool)
    line[:, 4, 8] = True
    assert prompts.share_read(line, (16, 16, 16)) == 1
    assert np.isnan(prompts.share_read(np.zeros((4, 4, 4), bool)))


# --- outlines


@given(st.sampled_from(PLANES), st.sampled_from(["LPS", "RAS"]), st.data())
def test_a_box_is_where_it_was_drawn_in_every_plane(plane, axes, data):
    flip = -1.0 if axes == "RAS" else 1.0
    affine = lps_affine()
    affine[:2] *= flip  # rows and columns of the screen may run against the array
    volume = Volume(np.zeros((5, 7, 9), np.float32), affine)
    framed = frame(volume, plane)
    slices, rows, columns = framed.shape
    r, c = (sorted(data.draw(st.tuples(*[st.integers(0, n - 1)] * 2))) for n in (rows, columns))
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, slices - 1)] * 2)))
    mask = outline.region(framed, "box", [(r[0], c[1]), (r[1], c[0])], last, first, volume.shape)
    assert mask.sum() == (last - first + 1) * (r[1] - r[0] + 1) * (c[1] - c[0] + 1)
    assert framed.cut(mask, first)[r[0] : r[1] + 1, c[0] : c[1] + 1].all()


def test_a_polygon_holds_what_lies_between_its_corners(case):
    framed = frame(case.volume, "axial")
    mask = outline.region(framed, "polygon", [(10, 10), (10, 20), (20, 10)], 3, 3, case.volume.shape)
    assert mask[3, 12, 12] and not mask[3, 19, 19] and mask.any((1, 2)).sum() == 1


@pytest.mark.parametrize(
    ("kind", "points", "slices", "sentence"),
    [
        ("box", [(1, 1)], (0, 0), "a box has two corners"),
        ("polygon", [(1, 1), (2, 2)], (0, 0), "at least three"),
        ("circle", [(1, 1), (2, 2), (3, 1)], (0, 0), "can't be drawn"),
        ("box", [(1, 1), (99, 2)], (0, 0), "draw within it"),
        ("box", [(1, 1), (2, 2)], (0, 23), "choose among these"),
        ("polygon", [(1, 1), (5, 5), (9, 9)], (0, 0), "on one line"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(case, kind, points, slices, sentence):
    with pytest.raises(BadInput, match=sentence):
        outline.region(frame(case.volume, "axial"), kind, points, *slices, case.volume.shape)


def test_a_drawn_region_is_asked_about_and_may_share_voxels(session):
    session.draw(Drawn("drawn region", "box", "axial", ((15, 8), (25, 18)), 10, 14))
    assert session.choice.region == "drawn region" and "drawn region" in session.names
    assert (session.labels.binary("drawn region") & session.labels.binary("liver")).any()
    assert session.volumes_ml()["drawn region"] == pytest.approx(session.labels.volume_ml("drawn region"))
    with pytest.raises(BadInput, match="structure 'liver' already"):
        session.draw(Drawn("liver", "box", "axial", ((15, 8), (25, 18)), 10, 14))
    session.take(session.case.labels)
    assert session.drawn == [] and session.choice.region == "aorta"
    session.draw(Drawn("drawn region", "box", "axial", ((15, 8), (25, 18)), 10, 14))
    session.remove_drawn()
    assert session.names == ["aorta", "liver", "spleen"] and session.choice.region == "aorta"


def test_a_ct_without_masks_says_what_to_do(case):
    bare = replace(case, labels=cases.empty_labels(case.volume))
    page = Explorer(bare, background=False)
    assert "This CT has no structure yet" in page.panels["Prompt"].say.value
    page.panels["Ask"].ask.click()
    assert "outline one first" in page.panels["Ask"].say.value
    outliner = page.panels["Outline"]
    page.session.viewer.drawn = {"kind": "box", "plane": "coronal", "index": 20, "points": [[4, 9], [12, 20]]}
    assert [box.value for box in outliner.corners] == [4, 9, 12, 20] and outliner.first.value == 18
    outliner.add.click()
    assert "It is the region asked about now" in outliner.say.value
    assert page.session.labels.binary("drawn region").any((0, 2)).sum() == 5


def test_structures_are_found_by_any_of_their_names(session):
    assert session.found("RID58") == session.found("LIVER") == ["liver"]
    assert session.found("nowhere") == [] and len(session.found("")) == 3
    assert session.volumes_ml()["liver"] == pytest.approx(session.labels.volume_ml("liver"))


@pytest.mark.slow
def test_masks_by_the_small_network_are_marked_as_unreliable():
    phantom = cases.load("Phantom patient 1")
    page = Explorer(replace(phantom, labels=cases.empty_labels(phantom.volume)), background=False)
    panel = page.panels["Outline"]
    panel.predict.click()
    assert "seen phantoms only: unreliable" in panel.say.value and outline.UNRELIABLE in page.session.labels.notes
    assert dice(page.session.labels.binary("liver"), phantom.labels.binary("liver")) > 0.8
    page.session.choose(region="liver", style="contour")
    assert "around the liver" in page.panels["Prompt"].say.value


# --- cases of one's own


def test_a_path_out_of_the_data_folder_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "way out").symlink_to(tmp_path)
    for path in ("../other.nii", "/etc/passwd", "way out/secret.nii"):
        with pytest.raises(BadInput, match="leads out of the data folder"):
            cases.open_path(path, folder)
    monkeypatch.delenv(cases.VARIABLE, raising=False)
    with pytest.raises(BadInput, match="no data folder was chosen"):
        cases.open_path("ct.nii.gz")


def test_own_files_are_listed_and_opened_under_a_neutral_name(synthetic_case, tmp_path):
    synthetic_case.volume.save(tmp_path / "Doe_Jane" / "ct.nii.gz")
    (tmp_path / "Doe_Jane" / "notes.txt").write_text("no CT")
    assert cases.own_files(tmp_path) == ["Doe_Jane/ct.nii.gz"]
    opened = cases.open_path("Doe_Jane/ct.nii.gz", tmp_path)
    assert opened.kind == OWN and opened.labels.present == []
    assert "Doe" not in opened.name + opened.volume.name + "".join(opened.notes)


def test_no_file_of_a_dicom_folder_is_named(asset, tmp_path):
    for file in sorted(asset("ct_dicom/series").iterdir())[:6]:
        shutil.copy(file, tmp_path)
    (tmp_path / "JOHN_DOE.dcm").write_bytes(bytes(128) + b"DICM")
    opened = cases.open_path(".", tmp_path)
    assert any("1 DICOM files are no readable images" in note for note in opened.notes)
    assert "DOE" not in "".join(opened.notes) and "DOE" not in "".join(opened.volume.notes)


def test_labels_without_names_are_called_by_their_numbers(synthetic_case, tmp_path):
    path = tmp_path / "labels.nii.gz"
    stored = nib.Nifti1Image(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4))
    nib.save(stored, path)
    like = Volume(np.zeros((2, 2, 2), np.float32), np.diag([1.0, 1, 1, 1])[[2, 1, 0, 3]])
    assert all(name.startswith("label ") for name in cases.own_labels(path, like).names.values())


def test_a_zip_that_is_none_or_holds_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "series.zip"
    path.write_bytes(b"PK")
    with pytest.raises(BadInput, match="can't be unpacked"), cases.unzipped(path):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../evil.dcm", bytes(2000))
    with cases.unzipped(path) as folder:
        assert [one.name for one in folder.iterdir()] == ["00000.dcm"]
    assert not folder.exists()
    monkeypatch.setattr(cases, "MOST_UNZIPPED", 1000)
    with pytest.raises(BadInput, match="give one series alone"), cases.unzipped(path):
        pass


def test_a_packed_file_that_is_too_large_for_memory_is_refused(synthetic_case, tmp_path, monkeypatch):
    path = synthetic_case.volume.save(tmp_path / "ct.nii.gz")
    monkeypatch.setattr(cases, "MOST_UNZIPPED", 1000)
    with pytest.raises(BadInput, match="unpacks to more than"):
        cases.own_case(path)


class Sent(list):
    """Stands in for the browser: keeps what it is sent."""

    def __call__(self, content, buffers=None):
        self.append((content, buffers))


def uploaded(content: bytes, name: str, take, monkeypatch) -> tuple[files.Upload, Sent]:
    widget, sent = files.Upload("a file", take), Sent()
    monkeypatch.setattr(widget, "send", sent)
    widget._receive(None, {"kind": "begin", "name": name, "size": len(content)}, [])
    for start in range(0, len(content), 4):
        widget._receive(None, {"kind": "part", "start": start}, [content[start : start + 4]])
    return widget, sent


def test_an_upload_arrives_whole_in_a_private_folder_that_is_gone_afterwards(monkeypatch):
    seen = []

    def take(path):
        seen.append((path, path.read_bytes(), path.parent.stat().st_mode & 0o077))
        return "read"

    _, sent = uploaded(b"0123456789", "Doe Jane.NII.GZ", take, monkeypatch)
    [(path, content, others)] = seen
    assert content == b"0123456789" and others == 0 and path.name == "upload.nii.gz" and not path.parent.exists()
    assert sent[-1][0] == {"kind": "end", "text": "read"}


def test_uploads_that_cannot_be_are_refused_and_nothing_stays(monkeypatch):
    def broken(path):
        seen.append(path)
        raise RuntimeError("odd file")

    seen = []
    for content, name, sentence in ((b"x", "ct.exe", "ends in .nii.gz"), (b"", "ct.nii", "1 byte to"),
                                    (b"x", "ct.nii", "RuntimeError")):  # fmt: skip
        assert sentence in uploaded(content, name, broken, monkeypatch)[1][-1][0]["text"]
    assert not seen[0].exists()
    widget, sent = uploaded(b"", "ct.nii", broken, monkeypatch)
    widget._receive(None, {"kind": "begin", "name": "ct.nii", "size": 8}, [])
    widget._receive(None, {"kind": "part", "start": 4}, [b"late"])
    assert "don't fit together" in sent[-1][0]["text"]


# --- questions


def test_the_answers_side_by_side_say_whether_the_prompt_counts():
    same = [Answer(how, "liver", "No", confidence, False) for how, confidence in (("as asked", 0.9), ("removed", 0.7))]
    assert "doesn't hang on the prompt" in verdict(same) and "at most 20 points" in verdict(same)
    assert "another one with: moved" in verdict([*same, Answer("moved", "spleen", "Yes", 0.9, False)])
    assert "reads no prompt" in verdict(same[:1])


def test_a_question_names_its_region_or_not():
    assert question_of("Is there a cyst in the liver?", "liver").names_region
    assert not question_of("What is in the marked region?", "liver", open_ended=True).names_region
    with pytest.raises(BadInput, match="the question is empty"):
        question_of("  ", "liver")


def test_the_offered_questions_are_in_the_cohorts_words():
    asked = [record.question for record in templates("left lung upper lobe").values()]
    assert "Is there emphysema in the left lung upper lobe?" in asked
    assert "Is there a ground-glass opacity in the left lung upper lobe?" in asked
    assert {record.region for record in templates("liver").values()} == {"liver"}


def test_a_namesake_of_a_stored_arm_has_no_threshold():
    name = "vlm-B-contour-small"
    assert ask.threshold_of(name, checkpoints.record(name)["weights"]["sha256"]) == ask.threshold_of(name)
    assert ask.threshold_of(name, "another model's") is None and ask.threshold_of("vlm-of-mine") is None


@pytest.mark.slow
def test_an_answer_to_what_is_no_longer_shown_is_dropped(monkeypatch, case):
    page = Explorer("Phantom patient 2", background=False)
    panel, really = page.panels["Ask"], ask.ask

    def slowly(*how):
        page.session.open(cases.load("Phantom patient 1"))  # somebody goes on while the model is asked
        return really(*how)

    monkeypatch.setattr(ask, "ask", slowly)
    panel.ask.click()
    assert "its answer is dropped" in panel.say.value and panel.answers == [] and panel.result.value == ""


def test_a_prompt_is_moved_to_a_structure_that_the_models_know(case):
    what = seen_by_models(replace(case, kind=PHANTOM), case.labels, ["liver", "aorta"])
    assert set(what.masks) == {"liver", "aorta", "spleen"} and elsewhere(what, "liver") in ("aorta", "spleen")


@pytest.mark.slow
def test_a_phantom_is_asked_under_every_control(tmp_path):
    page = Explorer("Phantom patient 2", background=False)
    panel = page.panels["Ask"]
    panel.ask.click()
    assert [one.how for one in panel.answers][:2] == ["as asked", "prompt removed"] and len(panel.answers) == 4
    assert "Drawn into the phantom:" in panel.result.value and not panel.withheld
    panel.where.click()
    assert page.session.viewer.heat["shown"] and page.session.viewer.slice("axial", 9)[2].max() > 0
    panel.question.value = "own question"
    panel.text.value = "Is there <b>a cyst</b> in the liver?"
    panel.ask.click()
    assert "<b>a cyst</b>" not in panel.worded.value and "&lt;b&gt;" in panel.worded.value
    page.panels["Prompt"].region.value = "spleen"
    assert panel.answers == [] and panel.result.value == "" and not page.session.viewer.heat["shown"]
    record = page.panels["Keep"].summary()
    assert b"phantom-patient-2" in record.name.encode() and b"not a medical device" in record.content


@pytest.mark.slow
def test_a_real_ct_is_not_answered_about_unless_it_is_asked_for(asset):
    asset("abdomen_ct/ct.nii.gz")
    page = Explorer("Abdomen and pelvis CT", background=False)
    panel = page.panels["Ask"]
    panel.ask.click()
    assert panel.result.value.count("withheld") >= 4 and "(confidence" not in panel.result.value
    panel.where.click()
    assert "the answer is withheld" in panel.say.value.lower() and not page.session.viewer.heat["shown"]
    assert b"(confidence" not in page.panels["Keep"].summary().content
    panel.anyway.value = True
    assert "confidence" in panel.result.value and "times as far from the phantoms" in panel.result.value
    page.panels["Case"].case.value = "Phantom patient 1"
    assert not panel.anyway.value  # it was ticked for one CT, not for the next


# --- what is kept


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_exports_lie_on_the_cts_own_grid_in_its_files_axes(case, axes, tmp_path):
    volume = replace(case.volume, orientation=axes)
    volume.save(tmp_path / "ct.nii.gz")
    session = Session(replace(case, volume=volume))
    source = nib.load(tmp_path / "ct.nii.gz")
    for file in (
        keep.rgb_nifti(session.case, session.prompt(), "lung"),
        keep.label_nifti(session.case, session.prompt()),
    ):
        (tmp_path / "kept.nii.gz").write_bytes(file.content)
        made = nib.load(tmp_path / "kept.nii.gz")
        assert made.shape == source.shape and "".join(nib.aff2axcodes(made.affine)) == axes
        np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
    assert int(np.asanyarray(made.dataobj).sum()) == int(session.prompt().marks[0].mask.sum())


def test_a_view_comes_back_from_its_file_and_from_its_link(case):
    first = Explorer(case, background=False)
    first.session.draw(Drawn("box 1", "box", "axial", ((15, 8), (25, 18)), 10, 14))
    first.session.choose(style="dual", region="spleen", rule=BY_HAND, named="liver", thickness=1)
    first.session.show(["aorta"])
    first.session.viewer.at, first.session.viewer.window = [3, 4, 5], [-600, 1500]
    state = first.panels["Keep"].state()
    for back in (keep.read_view(keep.view_json(state).content), keep.view_of_link(keep.view_link(state))):
        second = Explorer(case, background=False)
        second.panels["Keep"].restore(back)
        assert json.dumps(second.panels["Keep"].state()) == json.dumps(state)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff", "isn't JSON"),
        (b"[]", "isn't a view"),
        (b'{"format": "other"}', "isn't a view"),
        (b"[" * 10**5, "isn't JSON"),
    ],
)
def test_what_is_no_view_is_refused(content, sentence):
    with pytest.raises(BadInput, match=sentence):
        keep.read_view(content)


def test_a_view_that_holds_nonsense_is_refused_and_the_page_lives(explorer):
    panel = explorer.panels["Keep"]
    for state, sentence in (({"case": "someone's CT"}, "open that CT first"),
                            ({"case": "synthetic", "viewer": {"at": "x"}}, "can't be shown"),
                            ({"case": "synthetic", "drawn": [{"name": 3}]}, "can't be shown")):  # fmt: skip
        with pytest.raises(BadInput, match=sentence):
            panel.restore(state)
    explorer.session.choose(style="box")
    assert "green box" in explorer.panels["Prompt"].say.value


def test_the_page_opens_without_pytorch():
    """A model takes seconds to load; a person who only looks needs none."""
    code = "import sys; from ctvlm_lib.explore.page import Explorer; Explorer('Phantom patient 1')"
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT).returncode == 0


def test_the_static_figure_shows_the_view(explorer):
    from ctvlm_lib.view import png

    before = png(explorer.figure())
    explorer.session.choose(style="box")
    assert png(explorer.figure()) != before


# --- the server


def test_the_served_notebook_is_valid_and_runs_the_page(tmp_path):
    import nbformat

    path = server.write_notebook(tmp_path / "app")
    nbformat.validate(nbformat.read(path, as_version=4))
    (cell,) = json.loads(path.read_text())["cells"]
    assert "app()" in cell["source"]


def test_a_data_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="there is no folder"):
        server._data_folder(str(tmp_path / "nowhere"), tmp_path)
    assert server._data_folder(None, tmp_path).is_dir()


def test_a_port_in_use_is_refused_before_anything_is_fetched(monkeypatch):
    from ctvlm_lib import assets

    monkeypatch.setattr(assets, "fetch", lambda *_: pytest.fail("fetched"))
    parser = ArgumentParser()
    server.add_arguments(parser)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(BadInput, match=f"port {port} can't be used"):
            server.command(parser.parse_args(["--port", port, "--no-browser"]))
