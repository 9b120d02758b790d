"""The stored answers of the pointing reader: whose they are, and what they show."""

import json

import pytest

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.arm_command import add_arguments, command
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, probes, reliance, scores
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.records import protocol


@pytest.fixture(scope="module")
def cohort():
    return Cohort.of("full", ("test",))


@pytest.fixture(scope="module")
def stored(cohort):
    return {
        name: score_closed(answers.load(RESULTS / name / "test.npz", cohort.records["test"])) for name in probes.PROBES
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", probes.PROBES)
def test_every_condition_and_control_of_the_protocol_was_asked(stored, name):
    table, fixed = stored[name], protocol.load().content["controls"]
    assert set(table["condition"]) == set(CONDITIONS)
    asked = {control.partition(" mm")[0].rstrip("0123456789. ") for control in table["control"]}
    assert asked == ({"as asked"} if name in probes.UNCHANGED else set(fixed["order"]))
    assert table[table["control"] == "as asked"]["patient"].nunique() == protocol.load().size("test", "full")
    assert not table["parsed"].isna().any()


@pytest.mark.slow
def test_an_encoder_that_saw_prompts_passes_on_what_the_words_leave_out(stored):
    for condition in ("contour", "box", "dual"):
        found = scores.difference(stored["pointing-B"], {"condition": condition}, {"condition": "none"}, "unnamed")
        assert found.low > 0.2


@pytest.mark.slow
def test_its_answers_follow_a_moved_prompt(stored, cohort):
    moved = reliance.moved_rows(stored["pointing-B"], cohort.records["test"], cohort.scans["test"])
    found = scores.reliances(moved).set_index(["condition", "stratum"])
    assert (found.loc[(slice(None), "unnamed"), "low"] > 0.5).all()


@pytest.mark.parametrize("name", probes.PROBES)
def test_records_say_what_was_asked_under_which_protocol(name):
    record = json.loads((RESULTS / name / "record.json").read_text(encoding="utf-8"))
    assert record["config"]["encoder"] == probes.PROBES[name]
    assert record["protocol"]["version"] <= protocol.load().content["version"]
    assert record["profile"] == "full"
    assert sum(file.stat().st_size for file in (RESULTS / name).iterdir()) < 200_000


def test_an_unknown_probe_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no probe is called 'pointing-C'"):
        probes.run("pointing-C", results=tmp_path)


def test_a_probe_has_no_seed(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(BadInput, match="pointing-B has no seed"):
        command(parser.parse_args(["pointing-B", "--seed", "1", "--out", str(tmp_path)]))


@pytest.mark.slow
def test_a_probe_is_fitted_asked_and_stored_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    from helpers_questions import _asked, _patients

    from ctvlm_lib.alignment.scans import Scans

    some = dict(train=_patients()[:60], validation=_patients()[60:63], test=_patients()[63:66])
    records = {split: [r for r in _asked() if r.patient in {p.name for p in those}] for split, those in some.items()}
    small = Cohort("quick", {split: Scans.of(those) for split, those in some.items()}, records, some)
    where = {"results": tmp_path, "folder": tmp_path / "on-the-way", "regions": 2}
    first = probes.run("pointing-A-continued", small, **where)
    assert {path.name for path in (tmp_path / "pointing-A-continued").iterdir()} == {
        "test.npz", "validation.npz", "record.json"
    }  # fmt: skip
    monkeypatch.setattr(probes, "ask", None)  # nothing is asked twice
    again = probes.run("pointing-A-continued", small, **where)
    assert (again["answer"].to_numpy() == first["answer"].to_numpy()).all()
