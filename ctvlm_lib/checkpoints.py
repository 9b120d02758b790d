"""Small trained networks that ship with the workbook, each with the record of how it was made.

``data_samples/checkpoints/NAME/`` holds ``model.safetensors`` (16-bit floats) and ``record.json``: settings, curve,
scores, hardware in words, and the hash of the weights. Weights that aren't those of their record are refused.
"""

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.run import PROJECT, commit, package_version

if TYPE_CHECKING:
    import torch

FOLDER = PROJECT / "data_samples" / "checkpoints"
HELD_OUT = "held out"  # loss on validation patients: a column of a curve where it was looked at, and a curve of its own
WEIGHTS, RECORD = "model.safetensors", "record.json"


def names(folder: str | Path = FOLDER) -> list[str]:
    """Names of the checkpoints that are there; what a killed training left half-written begins with a dot."""
    return sorted(path.parent.name for path in Path(folder).glob(f"[!.]*/{RECORD}"))


def save(name: str, tensors: "dict[str, torch.Tensor]", record: dict, folder: str | Path = FOLDER) -> Path:
    """Write a checkpoint, whole or not at all; floating-point weights are rounded to 16 bits.

    Args:
        name: of the checkpoint.
        tensors: a state dict.
        record: how it was made, as JSON can hold it; the weights' hash and size are added.

    Raises:
        BadInput: a weight that 16 bits can't hold, or a folder that can't be written.
    """
    import torch
    from safetensors.torch import save_file

    half = {key: value.detach().cpu() for key, value in tensors.items()}
    half = {key: value.half() if value.is_floating_point() else value for key, value in half.items()}
    for key, value in half.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BadInput(f"{name}: {key} holds numbers that aren't finite in 16 bits; train again, or clip them")
    with atomic_path(Path(folder) / name) as partial:
        partial.mkdir()
        save_file({key: value.contiguous() for key, value in half.items()}, partial / WEIGHTS)
        write_record(record | {"weights": _facts(partial / WEIGHTS)}, partial)
    return Path(folder) / name


def write_record(content: dict, folder: Path) -> None:
    """Write a record into a folder, a checkpoint's or one of results, that is being made."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def load(name: str, folder: str | Path = FOLDER) -> "tuple[dict[str, torch.Tensor], dict]":
    """Read a checkpoint: its tensors, floating-point ones as float32, and its record.

    Raises:
        BadInput: no such checkpoint, a record that can't be read, or weights that aren't those of the record.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    home = Path(folder) / name
    content = record(name, folder)
    try:
        if _facts(home / WEIGHTS) != content["weights"]:
            raise BadInput(f"{name}/{WEIGHTS} isn't the file that {RECORD} describes; restore both, or train again")
        tensors = load_file(home / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{name}/{WEIGHTS} can't be read ({type(error).__name__}); restore it, or train again") from None
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}, content


def record(name: str, folder: str | Path = FOLDER) -> dict:
    """How a checkpoint was made.

    Raises:
        BadInput: no such checkpoint, or a record that can't be read.
    """
    path = Path(folder) / name / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weights"]["sha256"]
    except OSError:
        there = ", ".join(names(folder)) or "none"
        raise BadInput(f"there is no checkpoint {name!r}; there are: {there}") from None
    except (KeyError, TypeError, *NOT_JSON) as error:
        raise BadInput(f"{name}/{RECORD} can't be read ({type(error).__name__}); restore it, or train again") from None
    return content


def circumstances(curves: dict[str, Sequence[dict[str, float]]], points: int = 60) -> dict:
    """What a record says of any training: when, by which code, on what, how long, and its curves at a few points.

    Args:
        curves: stage → rows of :func:`ctvlm_lib.training.train`.
        points: how many windows of steps a curve is averaged over.
    """
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "hardware": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "versions": {name: package_version(name) for name in ("torch", "monai", "transformers", "numpy")},
        "seconds": round(sum(curve[-1]["seconds"] for curve in curves.values())),
        "curves": {stage: _thinned(curve, points) for stage, curve in curves.items()},
    }


def _thinned(curve: Sequence[dict[str, float]], points: int) -> list[dict[str, float]]:
    """Means of the losses over windows of steps, and the last step of each."""
    left_out = ("step", "seconds", "lr", "gradient", "stopped", HELD_OUT)  # the last has a curve of its own
    names = [name for name in curve[-1] if name not in left_out]
    width = max(1, -(-len(curve) // points))
    windows = [curve[first : first + width] for first in range(0, len(curve), width)]
    return [
        {"step": int(window[-1]["step"])}
        | {name: round(sum(row.get(name, 0.0) for row in window) / len(window), 4) for name in names}
        for window in windows
    ]


def _facts(path: Path) -> dict:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
