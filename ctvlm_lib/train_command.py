"""``ctvlm train NAME``: train again, from nothing, a network that ships with the workbook."""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ctvlm_lib import checkpoints
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import check_seed, run_folder
from ctvlm_lib.training_processes import alone


@dataclass(frozen=True)
class Trainable:
    """A network that can be trained: where ``make(folder, work, seed=…)`` lies, what it is, and how long it takes."""

    module: str
    what: str
    minutes: int
    options: Mapping[str, str] = field(default_factory=dict)  # further arguments of that ``make``


LADDER = "ctvlm_lib.vlm.ladder_training"
TRAININGS = {
    "vista3d_phantom": Trainable(
        "ctvlm_lib.segment.small_training", "small VISTA-3D of notebook 20: phantoms at 64×64×64, 1,800 steps", 21
    ),
    "ladder-small": Trainable(
        LADDER, "language model of 0.5 M parameters: the cohort's text, 400 steps", 4, {"size": "small"}
    ),
    "ladder-middle": Trainable(LADDER, "language model of 1.5 M parameters, likewise", 7, {"size": "middle"}),
    "ladder-large": Trainable(LADDER, "language model of 3.1 M parameters, likewise", 11, {"size": "large"}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm train``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to train; without it, the list")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the checkpoint (default: full/checkpoints of the output folder)",
    )


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm train``; a run that was stopped goes on where its last checkpoint was written."""
    if args.name is None:
        for name, one in TRAININGS.items():
            print(f"{name:20} {one.what}; about {one.minutes} min on one CPU core")
        return 0
    if args.name not in TRAININGS:
        raise BadInput(f"nothing called {args.name!r} can be trained; there are: {', '.join(TRAININGS)}")
    alone(args.name)
    one = TRAININGS[args.name]
    check_seed(args.seed)
    folder = args.out or run_folder("full") / "checkpoints"
    work = run_folder("full") / "training" / f"{args.name}-seed{args.seed}"
    made = importlib.import_module(one.module).make(folder, work, seed=args.seed, **one.options)
    record = checkpoints.record(made.name, made.parent)
    print(f"{made.name}: {record['seconds'] / 60:.0f} min, {record['weights']['bytes'] / 1e6:.1f} MB, in {made}")
    return 0
