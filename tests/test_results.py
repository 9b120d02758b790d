"""What finished arms left: every table follows from the stored predictions, and every record says what was run."""

import json
import re
from dataclasses import asdict, replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.alignment import arm_tables, arms
from ctvlm_lib.alignment.scoring import Predictions
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.retrieval import DIRECTIONS
from ctvlm_lib.records import phantom, protocol

STORED = sorted(arms.RESULTS.glob("*/test.safetensors"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_tables_follow_from_the_predictions(path):
    said, record = Predictions.load(path), json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
    again = said.table(arm=path.parent.name, split="test")
    pd.testing.assert_frame_equal(pd.read_csv(path.parent / "test.csv"), again, check_dtype=False, atol=1e-4)
    assert asdict(said.ceiling()) == pytest.approx(record["test"]["ceiling"], abs=1e-6)


@pytest.mark.parametrize("k", [1, 10])
def test_hits_of_patients_average_to_the_recall_among_all(k):
    found = Predictions.load(STORED[-1])
    recall = [row.recall for row in found.recalls() if (row.gallery, row.k) == (len(found.identity), k)]
    assert len(recall) == len(DIRECTIONS)
    assert sum(found.hits(k).values()) / len(found.identity) == pytest.approx(sum(recall) / len(recall))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_records_are_of_the_protocols_cohort_and_of_the_arm_and_seed_by_that_name(path):
    record = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
    used, content = record["data"], protocol.load().content
    assert 1 <= used["protocol"] <= content["version"] and used["generator"] == phantom.VERSION
    later = [change["what"] for change in content["changes"] if change["version"] > used["protocol"]]
    assert all(re.search(r"[Cc]ohort\b.*\bas in version \d", what, re.DOTALL) for what in later)
    assert used["splits"]["test"]["patients"] == protocol.load().size("test", "full")
    name, seed = arm_tables.name_and_seed(path.parent.name)
    arm = arms.ARMS[name]
    training = asdict(replace(arm.training, seed=seed))
    assert record["seed"] == seed
    # when these were trained there were no such settings: what they do by default was all there was
    later = {"rates": [], "optimizer": "AdamW", "schedule": "cosine"}
    assert later | record["config"]["training"] == json.loads(json.dumps(training))
    assert (record["config"]["objective"], record["config"]["start"]) == (arm.objective, arm.start)
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 200_000


def test_there_are_results_at_all():
    assert {"A", "B", "dcformer-siglip-8", "dcformer-clip-8", "vit3d-clip-8"} <= {p.parent.name for p in STORED}


def test_the_arms_that_are_compared_have_every_seed_of_the_protocol():
    compared = [f"{encoder}-{batch}" for encoder in ("dcformer-siglip", "dcformer-clip", "vit3d-clip")
                for batch in arms.BATCHES]  # fmt: skip
    for name in compared:
        assert set(arm_tables.table(name)["seed"]) == set(protocol.load().seeds("full")), name
        said = [Predictions.load(arms.RESULTS / arm_tables.of_seed(name, seed) / "test.safetensors").image
                for seed in protocol.load().seeds("full")]  # fmt: skip
        assert all((a != b).any() for a, b in zip(said, said[1:], strict=False)), f"{name}: two seeds are one"


@given(name=st.sampled_from(sorted(arms.ARMS)), seed=st.integers(0, 2**32 - 1))
def test_the_folder_of_an_arm_and_seed_tells_both(name, seed):
    assert arm_tables.name_and_seed(arms.of_seed(name, seed)) == (name, seed)


def stored(folder, name, recalls):
    """A test table as arms leave it, one row a direction."""
    rows = [{"arm": name, "split": "test", "direction": d, "gallery": 100, "k": 1, "recall": r, "low": r - 0.1,
             "high": r + 0.1, "ceiling": 0.5 + r} for d, r in zip(DIRECTIONS, recalls, strict=True)]  # fmt: skip
    (folder / name).mkdir()
    pd.DataFrame(rows).to_csv(folder / name / "test.csv", index=False)


def test_the_seeds_of_an_arm_become_points_and_their_range(tmp_path):
    for name, recalls in {"a": (0.2, 0.3), "a-seed2": (0.4, 0.1), "a-seed10": (0.6, 0.2), "a-8": (0.9, 0.9)}.items():
        stored(tmp_path, name, recalls)
    rows = arm_tables.table("a", tmp_path)
    assert rows["seed"].tolist() == [0, 0, 2, 2, 10, 10] and set(rows["arm"]) == {"a"}
    assert list(rows.columns[:2]) == ["arm", "seed"] and rows["recall"].tolist() == [0.2, 0.3, 0.4, 0.1, 0.6, 0.2]
    found = arm_tables.over_seeds(pd.concat([rows, arm_tables.table("a-8", tmp_path)]))
    assert found["arm"].tolist() == ["a", "a", "a-8", "a-8"] and found["seeds"].tolist() == [3, 3, 1, 1]
    first = found.iloc[0]
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((0.4, 0.2, 0.6))
    assert arm_tables.over_seeds(rows, "ceiling")["high"].tolist() == pytest.approx([1.1, 0.8])
    with pytest.raises(BadInput, match="no test results of an arm 'b'; there are results of a, a-8"):
        arm_tables.table("b", tmp_path)


def test_a_ceiling_is_told_as_the_record_has_it(tmp_path):
    (tmp_path / "A").mkdir()
    record = {"test": {"ceiling": {"four_way": 0.9424, "low": 0.9, "high": 0.96}}}
    (tmp_path / "A" / "record.json").write_text(json.dumps(record), encoding="utf-8")
    told = arm_tables.ceilings(("A",), tmp_path)
    assert told == "ceiling of the four-way finding, % by encoder: A 94.2 (90.0 to 96.0)"
    (tmp_path / "A" / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match="record of A holds no ceiling"):
        arm_tables.ceilings(("A",), tmp_path)


def test_stored_arms_are_read_as_one_table():
    names = sorted({arm_tables.name_and_seed(path.parent.name)[0] for path in STORED})
    rows = pd.concat([arm_tables.table(name) for name in names])
    assert set(rows["arm"]) == set(names) and {"seed", "recall", "ceiling"} <= set(rows)
    assert len(rows.groupby(["arm", "seed"])) == len(STORED)
