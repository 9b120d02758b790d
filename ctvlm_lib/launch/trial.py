"""A small training to try several processes with: a DCFormer on phantoms and their reports, by SigLIP's loss.

It is the workbook's own training (the loop, the objective, the encoder with its BatchNorms, the loss that goes round
between processes), only small, with random vectors in the place of a text tower's.

    ACCELERATE_USE_CPU=true accelerate launch --config_file FILE -m ctvlm_lib.launch.trial FOLDER --steps 12
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput, atomic_path, exit_code
from ctvlm_lib.launch import path

if TYPE_CHECKING:
    import pandas

PATIENTS, TEXT_WIDTH, LIMIT_S = 8, 24, 300


@dataclass(frozen=True)
class Compared:
    """Two curves of one training.

    Attributes:
        curves: columns step, loss and gradient of one process and of several, and the losses' relative difference.
        largest: the largest relative difference of the losses.
    """

    curves: "pandas.DataFrame"
    largest: float


def run(folder: str | Path, steps: int = 12, batch: int = 4, checkpoint_every: int = 4) -> list[dict[str, float]]:
    """Train this process' share; the first process writes ``curve.json`` and ``weights.safetensors`` into the folder.

    Args:
        folder: also gets the checkpoints, from which a run that was killed goes on.
        steps, checkpoint_every: optimiser steps.
        batch: volumes a step, over all processes.
    """
    import numpy as np
    import torch
    from accelerate import PartialState
    from safetensors.torch import save_file

    from ctvlm_lib.alignment.heads import Aligned
    from ctvlm_lib.alignment.objectives import Objective, pairings_for
    from ctvlm_lib.alignment.pretrain import encoder_widths
    from ctvlm_lib.alignment.scans import Scans
    from ctvlm_lib.encoder import dcformer
    from ctvlm_lib.records import phantom
    from ctvlm_lib.training import Training, train

    scans = Scans.of(phantom.cohort(PATIENTS, seed=5))
    texts = torch.from_numpy(np.random.default_rng(0).normal(size=(PATIENTS, TEXT_WIDTH))).float()
    encoder = dcformer("phantom", seed=0)
    widths = encoder_widths(encoder, scans.hu.shape[1:])
    model = Aligned(encoder, pairings_for("report", *widths, TEXT_WIDTH, 16, batch, seed=0))
    settings = Training(steps, 3e-3, checkpoint_every=checkpoint_every)
    curve = train(model, Objective(scans, texts, batch=batch), settings, folder=Path(folder) / "steps", progress=False)
    if PartialState().is_main_process:
        with atomic_path(Path(folder) / "weights.safetensors") as partial:
            save_file({name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}, partial)
        with atomic_path(Path(folder) / "curve.json") as partial:
            partial.write_text(json.dumps(curve), encoding="utf-8")
    return curve


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launched(folder: str | Path, processes: int = 2, steps: int = 12, batch: int = 4) -> subprocess.Popen:
    """Start the trial in several processes of this machine's CPU.

    Args:
        folder, steps, batch: see :func:`run`.
        processes: how many.

    Returns:
        the launcher; its outputs are pipes of text.
    """
    words = [
        "-m", "accelerate.commands.launch", "--config_file", path("cpu_pair"), "--num_processes", processes,
        "--main_process_port", free_port(), "-m", "ctvlm_lib.launch.trial", folder, "--steps", steps, "--batch", batch,
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def compare(folder: str | Path | None = None, processes: int = 2, steps: int = 12, batch: int = 4) -> Compared:
    """Train the trial in one process and in several, and hold the curves beside each other; about 20 s on two cores.

    Args:
        folder: gets ``one`` and ``several``, see :func:`run`; None keeps nothing.
        processes, steps, batch: see :func:`launched`.

    Raises:
        BadInput: the launched processes failed, or took longer than LIMIT_S.
    """
    import pandas

    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return compare(made, processes, steps, batch)
    several = launched(Path(folder) / "several", processes, steps, batch)
    try:
        alone = run(Path(folder) / "one", steps, batch)
        _, said = several.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"{processes} processes took longer than {LIMIT_S} s; close what else computes here") from error
    finally:
        several.terminate()  # does nothing if it has ended
    if several.returncode:
        told = [line for line in said.splitlines() if "ctvlm: " in line] or said.splitlines()[-1:]
        raise BadInput(f"training in {processes} processes failed ({told[0] if told else 'without a word'})")
    together = json.loads((Path(folder) / "several" / "curve.json").read_text(encoding="utf-8"))
    table = pandas.DataFrame(
        {
            "step": [int(row["step"]) for row in alone],
            **{f"{what}, {name}": [row[what] for row in curve] for what in ("loss", "gradient")
               for name, curve in (("1 process", alone), (f"{processes} processes", together))},
        }
    )  # fmt: skip
    one, more = table["loss, 1 process"], table[f"loss, {processes} processes"]
    table["relative difference"] = (more - one).abs() / one.abs()
    return Compared(table, float(table["relative difference"].max()))


def main(words: list[str]) -> int:
    """Run the trial with the words of a command line."""
    parser = argparse.ArgumentParser(prog="python -m ctvlm_lib.launch.trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args(words)
    return exit_code(lambda: run(given.folder, given.steps, given.batch))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
