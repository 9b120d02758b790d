"""Damage to one file, drawn from a seed: what its format is prone to, plain bytes, or the file itself."""

import os
import random
from pathlib import Path

from fuzz import damage_arrays, damage_images, damage_text, damage_weights
from fuzz.damage_bytes import bytewise

OF_FORMAT = {  # ending: damage that knows the format, each (content, rng) -> (content, what was done)
    ".nii": (damage_images.nifti,), ".nii.gz": (damage_images.packed_nifti,), ".gz": (damage_images.packed,),
    ".dcm": (damage_images.dicom,), ".mha": (damage_images.meta_image,), ".npy": (damage_arrays.npy,),
    ".npz": (damage_arrays.npz,), ".zip": (damage_arrays.zipped,), ".pt": (damage_weights.torch_zip,),
    ".pth": (damage_weights.torch_zip,), ".bin": (damage_weights.torch_zip,),
    ".safetensors": (damage_weights.safetensors,), ".gguf": (damage_weights.gguf,), ".json": (damage_text.json_value,),
    ".jsonl": (damage_text.json_line,), ".ipynb": (damage_text.json_value,), ".csv": (damage_text.csv_cell,),
    ".toml": (damage_text.toml_line,), ".txt": (damage_text.plain,),
}  # fmt: skip
TEXTS = (".json", ".jsonl", ".ipynb", ".csv", ".toml", ".txt")


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in place and say how.

    Args:
        path: of a good file.
        rng: decides everything.
    """
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(WHOLE)(path, rng)
    content, told = path.read_bytes(), []
    for _ in range(1 if rng.random() < 0.8 else 2):
        content, what = _once(path.name, content, rng)
        told.append(what)
    path.write_bytes(content)
    return ", then ".join(told)


def _once(name: str, content: bytes, rng: random.Random) -> tuple[bytes, str]:
    ending = next((end for end in sorted(OF_FORMAT, key=len, reverse=True) if name.endswith(end)), "")
    ways = [*OF_FORMAT.get(ending, ())] * 3 + [bytewise] + [damage_text.encoding] * (ending in TEXTS)
    try:
        return rng.choice(ways)(content, rng)
    except Exception:  # noqa: BLE001 – damaged before, so that its format can't be told any more
        return bytewise(content, rng)


def _empty(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "empty file"


def _absent(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "no file"


def _folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def _loop(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def _dangling(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to("nowhere")
    return "a link to nothing"


def _unreadable(path: Path, rng: random.Random) -> str:
    os.chmod(path, 0)  # the worker gives up root's rights for it
    return "no permission"


WHOLE = (_empty, _absent, _folder, _loop, _dangling, _unreadable)
