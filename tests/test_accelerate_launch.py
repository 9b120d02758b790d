"""``accelerate launch`` on the command line: two processes train an arm as one does, and one of them stores it."""

import json
import os
import subprocess
import sys

import pytest

from ctvlm_lib import __main__ as command_line
from ctvlm_lib import assets
from ctvlm_lib.alignment import checkpoints
from ctvlm_lib.launch.trial import free_port

ARM = ["arm", "vit3d-clip-8", "--profile", "quick", "--patients", "8", "--steps", "2"]  # it has no batch statistics
LABEL = "vit3d-clip-8-patients8-steps2"


def launched(out, processes: int) -> subprocess.CompletedProcess:
    """Run the arm in several processes of this machine, which talk through gloo."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", str(free_port()), "-m", "ctvlm_lib"]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, *ARM, "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.assets
def test_two_launched_processes_train_an_arm_as_one_does(tmp_path, capsys):
    if not assets.is_present("minilm"):
        pytest.skip("the asset minilm isn't in the cache; fetch it with: ctvlm assets minilm")
    both = launched(tmp_path / "both", 2)
    assert both.returncode == 0, both.stderr[-2000:]
    assert both.stdout.count("tables in") == 1  # the second process stays silent
    assert command_line.main([*ARM, "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    curves = []
    for out in ("one", "both"):
        home = tmp_path / out / "quick"
        record = json.loads((home / "results" / LABEL / "record.json").read_text(encoding="utf-8"))
        assert checkpoints.load(home / "checkpoints" / LABEL)[1]["test"] == record["test"]
        curves.append([row["loss"] for row in record["curve"]])
    assert curves[0] == pytest.approx(curves[1], rel=0.01)  # bfloat16 in another order
