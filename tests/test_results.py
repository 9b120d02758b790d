"""What finished arms left: every table follows from the stored predictions, and every record says what was run."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

from ctvlm_lib.alignment import arms
from ctvlm_lib.alignment.scoring import Predictions
from ctvlm_lib.records import phantom, protocol

STORED = sorted(arms.RESULTS.glob("*/test.safetensors"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_tables_follow_from_the_predictions(path):
    said, record = Predictions.load(path), json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
    again = said.table(arm=path.parent.name, split="test")
    pd.testing.assert_frame_equal(pd.read_csv(path.parent / "test.csv"), again, check_dtype=False, atol=1e-4)
    assert asdict(said.ceiling()) == pytest.approx(record["test"]["ceiling"], abs=1e-6)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_records_are_of_this_protocol_and_of_the_arm_by_that_name(path):
    record = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
    used = record["data"]
    assert (used["protocol"], used["generator"]) == (protocol.load().content["version"], phantom.VERSION)
    assert used["splits"]["test"]["patients"] == protocol.load().size("test", "full")
    arm = arms.ARMS[path.parent.name]
    assert record["config"]["training"] == json.loads(json.dumps(asdict(arm.training)))
    assert (record["config"]["objective"], record["config"]["start"]) == (arm.objective, arm.start)
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 200_000


def test_there_are_results_at_all():
    assert {"A", "B", "dcformer-siglip-8", "dcformer-clip-8", "vit3d-clip-8"} <= {p.parent.name for p in STORED}
