"""The stored answers of the vision–language models: whose they are, under which protocol, and what was asked."""

import hashlib
import json
import re

import pytest

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.checkpoints import FOLDER
from ctvlm_lib.experiments import asked, vlm_tables
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.vlm_arms import recipe_of
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import FILES
from ctvlm_lib.vlm.finetune import Finetuning

STORED = sorted(folder.name for folder in RESULTS.glob("vlm-*"))


def record_of(label: str) -> dict:
    return json.loads((RESULTS / label / "record.json").read_text(encoding="utf-8"))


def test_without_a_prompt_and_with_a_contour_is_there():
    assert {"vlm-B-none-small", "vlm-B-contour-small"} <= set(STORED)


@pytest.mark.parametrize("label", STORED)
def test_an_arm_was_trained_by_its_recipe_and_asked_under_this_protocol(label):
    record = record_of(label)
    name = re.sub(r"-seed\d+$", "", label)
    assert Finetuning.from_dict(record["finetuning"]) == recipe_of(name, record["seed"])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in FILES)).hexdigest()
    assert record["protocol"] == {"version": protocol.load().content["version"], "sha256": digest}
    assert record["profile"] == "full" and record["commit"]
    assert sum(file.stat().st_size for file in (RESULTS / label).iterdir()) < 200_000


@pytest.mark.parametrize("label", STORED)
def test_the_protocols_patients_were_asked_everything(label):
    questions = asked.load(asked.path_of("test"))
    arm = vlm_tables.read(RESULTS / label, questions)
    of_vlm = protocol.load().content["vlm"]
    first = set(questions.names[: of_vlm["patients"]["test"]])
    wanted = set(questions.table["id"][questions.table["patient"].isin(first)])
    asked_as_is = arm.table[arm.table["control"] == AS_ASKED]
    assert set(asked_as_is["id"]) == wanted and not asked_as_is["id"].duplicated().any()
    if arm.seed == 0 and arm.condition != "none":
        controls = {control.split(" mm")[0].rstrip("0123456789. ") for control in arm.table["control"]}
        few = {"removed", "moved", "colours swapped", "wrong neighbour"}
        assert controls >= few | ({"dilated", "eroded", "shifted"} if arm.decoder == "small" else set())


@pytest.mark.parametrize("label", [label for label in STORED if (FOLDER / label).is_dir()])
def test_a_shipped_model_is_the_one_that_was_asked(label):
    shipped = json.loads((FOLDER / label / "record.json").read_text(encoding="utf-8"))
    assert shipped["weights"] == record_of(label)["weights"]
