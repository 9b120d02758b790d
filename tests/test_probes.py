"""The stored answers of the pointing reader and the questions beside them, which notebook 80 reads: whose they are, and
how they are made again."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from helpers_questions import _asked, _patients

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.arm_command import add_arguments, command
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, asked, probes, reliance
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.records import phantom, protocol
from ctvlm_lib.records.questions import candidates

COLUMNS = ("condition", "control")
SPLITS = ("validation", "test")


@pytest.mark.parametrize("name", probes.PROBES)
def test_every_condition_and_control_of_the_protocol_was_asked(name):
    with np.load(RESULTS / name / "test.npz", allow_pickle=False) as file:
        conditions, controls = (set(file[f"{what}.values"].tobytes().decode().split("\0")) for what in COLUMNS)
    assert conditions == set(CONDITIONS)
    asked = {control.partition(" mm")[0].rstrip("0123456789. ") for control in controls}
    fixed = protocol.load().content["controls"]["order"]
    assert asked == ({"as asked"} if name in probes.UNCHANGED else set(fixed))


@pytest.mark.parametrize("name", probes.PROBES)
def test_records_say_what_was_asked_under_which_protocol(name):
    record = json.loads((RESULTS / name / "record.json").read_text(encoding="utf-8"))
    assert record["config"]["encoder"] == probes.PROBES[name]
    assert record["protocol"]["version"] <= protocol.load().content["version"]
    assert record["profile"] == "full"
    assert sum(file.stat().st_size for file in (RESULTS / name).iterdir()) < 200_000


@pytest.mark.parametrize("split", SPLITS)
def test_stored_answers_are_to_the_stored_questions(split):
    questions = asked.load(asked.path_of(split))
    assert len(questions.names) == len(questions.found) == protocol.load().size(split, "full")
    assert set(questions.table["patient"]) == set(questions.names)
    for name in probes.PROBES:
        with np.load(RESULTS / name / f"{split}.npz", allow_pickle=False) as file:
            assert file["records"].tobytes().decode() == questions.digest
    said = answers.load(RESULTS / "pointing-A-continued" / f"{split}.npz", questions)  # the smallest
    assert (said["form"] == "closed").all() and len(said) > 10_000
    assert sum(asked.path_of(split).stat().st_size for split in SPLITS) < 200_000


def test_stored_questions_are_the_protocols_about_its_patients(tmp_path):
    questions = asked.load(asked.path_of("test"))
    rows = questions.table.set_index("id")
    for k, patient in enumerate(protocol.load().patients("test", "full", n=2, cache=tmp_path)):
        assert questions.names[k] == patient.name
        assert (Scans.of([patient]).found[0] == questions.found[k]).all()
        possible = {r.id: r for r in candidates(patient, "test", protocol.load().content["questions"]["seed"])}
        kept = rows[rows["patient"] == patient.name]
        assert 20 < len(kept) <= len(possible)
        for name, row in kept.iterrows():
            record = possible[name]
            assert (row["question"], row["truth"]) == (record.question, record.answer)
            assert sorted(row["choices"]) == sorted(record.choices)


@pytest.fixture(scope="module")
def few():
    """Three small patients' scans, and all their questions."""
    patients = list(phantom.cohort(3, seed=21))
    return Scans.of(patients), [r for one in patients for r in candidates(one)]


def test_questions_come_back_from_their_file_as_they_were(few, tmp_path):
    scans, records = few
    before = asked.Asked.of(records, scans)
    one, two = (asked.save(before, tmp_path / name) for name in ("a.npz", "b.npz"))
    assert one.read_bytes() == two.read_bytes()
    after = asked.load(one)
    pd.testing.assert_frame_equal(after.table, before.table)
    assert after.names == scans.names and (after.found == scans.found).all()
    assert after.digest == before.digest == asked.Asked.of(records).digest
    assert after.digest != asked.Asked.of(records[::-1]).digest


def test_scoring_with_the_file_equals_scoring_with_records_and_scans(few, tmp_path):
    scans, records = few
    told = [r for r in records if r.form == "closed" and r.kind in ("presence", "abnormality", "organ")]
    said = [r.choices[len(r.id) % 4] if r.choices else ("Yes", "No")[len(r.id) % 2] for r in told]
    marked = ["heart" if r.region != "heart" else "liver" for r in told]
    table = answers.answer_table(told, said, condition="contour", control="moved", marked=marked)
    path = answers.save(table, records, tmp_path / "answers.npz")
    questions = asked.load(asked.save(asked.Asked.of(records, scans), tmp_path / "questions.npz"))
    pd.testing.assert_frame_equal(answers.load(path, questions), answers.load(path, records))
    by_file = reliance.moved_rows(score_closed(answers.load(path, questions)), questions.questions, questions)
    plain = reliance.moved_rows(score_closed(table), records, scans)
    pd.testing.assert_frame_equal(by_file, plain, check_dtype=False)
    assert len(by_file) > 20


def test_questions_that_do_not_fit_are_refused(few, tmp_path):
    scans, records = few
    with pytest.raises(BadInput, match="without their patients' findings; give the scans"):
        asked.save(asked.Asked.of(records), tmp_path / "a.npz")
    odd = asked.Asked.of(records, scans)
    odd.table.loc[3, "question"] = "Is there\0 a mass?"
    with pytest.raises(BadInput, match="control characters"):
        asked.save(odd, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    for name in ("b.npz", "c.npz"):
        with pytest.raises(BadInput, match=f"{name} can't be read as a table of questions"):
            asked.load(tmp_path / name)
    path = answers.save(answers.answer_table(records[:5], [""] * 5, condition="none"), records, tmp_path / "d.npz")
    with pytest.raises(BadInput, match="holds answers to other records than these"):
        answers.load(path, asked.Asked.of(records[1:], scans))


def test_an_unknown_probe_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no probe is called 'pointing-C'"):
        probes.run("pointing-C", results=tmp_path)


def test_a_probe_has_no_seed(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(BadInput, match="pointing-B has no seed"):
        command(parser.parse_args(["pointing-B", "--seed", "1", "--out", str(tmp_path)]))


@pytest.mark.slow
def test_a_probe_is_fitted_asked_and_stored_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    some = dict(train=_patients()[:60], validation=_patients()[60:63], test=_patients()[63:66])
    records = {split: [r for r in _asked() if r.patient in {p.name for p in those}] for split, those in some.items()}
    small = Cohort("quick", {split: Scans.of(those) for split, those in some.items()}, records, some)
    where = {"results": tmp_path, "folder": tmp_path / "on-the-way", "regions": 2}
    first = probes.run("pointing-A-continued", small, **where)
    assert {path.name for path in (tmp_path / "pointing-A-continued").iterdir()} == {
        "test.npz", "validation.npz", "record.json"
    }  # fmt: skip
    monkeypatch.setattr(probes, "ask", None)  # nothing is asked twice
    questions = asked.load(asked.path_of("test", tmp_path))
    assert len(answers.load(tmp_path / "pointing-A-continued" / "test.npz", questions)) == len(first)
    again = probes.run("pointing-A-continued", small, **where)
    assert (again["answer"].to_numpy() == first["answer"].to_numpy()).all()
