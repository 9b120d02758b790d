"""The stored answers of the pointing reader, which notebook 80 reads: whose they are, and how they are made again."""

import argparse
import json

import numpy as np
import pytest
from helpers_questions import _asked, _patients

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.arm_command import add_arguments, command
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import probes
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.records import protocol

COLUMNS = ("condition", "control")


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
    again = probes.run("pointing-A-continued", small, **where)
    assert (again["answer"].to_numpy() == first["answer"].to_numpy()).all()
