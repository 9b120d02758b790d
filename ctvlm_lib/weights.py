"""Released weights: where the file lies, its tensors without pickle, and a table of how they fit a network."""

import io
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def find(weights: str, profile: str, expected: str, choose: Callable[[list[str]], list[str]], example: str) -> Path:
    """Find a weights file or folder of the user's, or fetch a hub's repository where profile ``paper`` allows it.

    Args:
        weights: a path, or ``owner/name`` on the model hub, where ``owner/name@revision`` fixes the revision.
        profile: quick, full or paper.
        expected: what the path should lead to, as a message names it: ``VISTA-3D's model.pt or model.safetensors``.
        choose: the files to fetch, of all names in the repository; empty if none fits.
        example: a repository that has them.

    Returns:
        the path of the file; of the folder, if several files were fetched.

    Raises:
        BadInput: no such file, a hub outside profile ``paper``, or one that can't be reached.
    """
    path = Path(weights).expanduser()
    if path.is_file() or (weights and path.is_dir() and any(path.glob(f"*{suffix}") for suffix in SUFFIXES)):
        return path
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?", weights)
    if not hub or path.suffix in SUFFIXES or path.exists():
        raise BadInput(f"there is no weights file {weights!r}; give the path of {expected}")
    if profile != "paper":
        raise BadInput(
            f"there is no file {weights!r}, and a model hub is asked only in profile paper;"
            " download its weights and give the path, or choose that profile"
        )
    return _from_hub(hub[1], hub[2], choose, example)


def _from_hub(repository: str, revision: str | None, choose: Callable, example: str) -> Path:
    """Fetch a repository's weights into the hub's own cache."""
    import huggingface_hub

    try:
        chosen = choose(huggingface_hub.list_repo_files(repository, revision=revision))
        if not chosen:
            raise BadInput(f"{repository} on the model hub holds no weights that fit here; try {example}")
        paths = [Path(huggingface_hub.hf_hub_download(repository, file, revision=revision)) for file in chosen]
        return paths[0] if len(paths) == 1 else paths[0].parent
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # the hub's own errors are kinds of these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{repository} can't be had from the model hub ({reason}); download its weights and give the path"
        ) from error


def read_tensors(path: Path, expected: str, wanted: Callable[[str], bool] = lambda name: True) -> dict:
    """Read the tensors of a weights file, or of all weights files in a folder, by name.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``, which is read as plain tensors only.
        expected: what the file should have been, for messages.
        wanted: names for which it is false are not read; they map to None.

    Returns:
        name → tensor or None, as stored but for the prefixes ``module.`` and ``network.`` of wrappers.

    Raises:
        BadInput: a damaged file, more than plain tensors in it, or none at all.
    """
    files = [path] if path.is_file() else _of_folder(path)
    tensors = {}
    for file in files:
        tensors |= {re.sub(r"^(module\.|network\.)+", "", name): t for name, t in _content(file, wanted).items()}
    if not tensors:
        raise BadInput(f"{path.name} holds no tensors by name, and {expected} is expected")
    return tensors


def _of_folder(folder: Path) -> list[Path]:
    """safetensors where there are any: a folder may hold the same weights in both forms."""
    return sorted(folder.glob("*.safetensors")) or sorted(p for s in SUFFIXES for p in folder.glob(f"*{s}"))


def _content(path: Path, wanted: Callable[[str], bool]) -> "dict[str, torch.Tensor | None]":
    import torch
    from safetensors import SafetensorError, safe_open

    pickle_errors = (EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError, struct.error,
                     torch.serialization.pickle.UnpicklingError)  # fmt: skip
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) if wanted(name) else None for name in file.keys()}
        zipped = _is_zip(path)
        with _Bounded(io.FileIO(path)) as file:
            content = torch.load(path if zipped else file, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, RuntimeError, ValueError, SafetensorError, *pickle_errors) as error:
        raise BadInput(
            f"{path.name} can't be read as weights ({type(error).__name__}): it is incomplete, or more than plain"
            " tensors; fetch it again"
        ) from error
    for key in ("model", "state_dict"):  # wrappings of training checkpoints
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content.items() if isinstance(content, Mapping) else ()
    return {name: t if wanted(name) else None for name, t in named if isinstance(t, torch.Tensor)}


class _Bounded(io.BufferedReader):
    """A file that is never asked for more than it has: Python makes room for what is asked for, as a pickle claims."""

    def read(self, size: int | None = -1) -> bytes:
        """At most so many bytes, and no more than there are left."""
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, max(left, 0)))


def _is_zip(path: Path) -> bool:
    """Only the zipped form of torch.save can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file fit a network.

    Attributes:
        matched: names in both, with the same shape.
        missing: names that the network has and the file lacks.
        unexpected: names that the file has and the network lacks.
        misshaped: name → (shape in the file, shape in the network).
        ignored: name → why it was left out on purpose.
        renamed: name in the file → name in the network.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: dict[str, str]
    renamed: dict[str, str]

    @classmethod
    def of(cls, given: Mapping, wanted: Mapping, ignored: Mapping = (), renamed: Mapping = ()) -> "Fit":
        """Compare names and shapes."""
        differ = {k: (tuple(given[k].shape), tuple(wanted[k].shape)) for k in wanted if k in given}
        differ = {k: shapes for k, shapes in differ.items() if shapes[0] != shapes[1]}
        return cls(
            tuple(k for k in wanted if k in given and k not in differ),
            tuple(k for k in wanted if k not in given),
            tuple(k for k in given if k not in wanted),
            differ,
            dict(ignored),
            dict(renamed),
        )

    @property
    def complete(self) -> bool:
        """Every tensor of the network is there and has its shape."""
        return not (self.missing or self.misshaped)

    @property
    def exact(self) -> bool:
        """Complete, and nothing is left over."""
        return self.complete and not self.unexpected

    def table(self, shown: int = 3, all_rows: bool = True) -> str:
        """One row a kind: how many, and the first few names; ``all_rows`` adds those that are no problem."""
        shapes = [f"{k} {a}, not {b}" for k, (a, b) in self.misshaped.items()]
        rows = [("missing", self.missing), ("not expected", self.unexpected), ("another shape", shapes)]
        if all_rows:
            left_out = [f"{k} ({why})" for k, why in self.ignored.items()]
            new_names = [f"{a} → {b}" for a, b in self.renamed.items()]
            rows = [("matched", self.matched), *rows, ("renamed", new_names), ("left out", left_out)]
        return "\n".join(_row(what, names, shown) for what, names in rows if names)


def _row(what: str, names: Sequence[str], shown: int) -> str:
    more = f" … and {len(names) - shown} more" if len(names) > shown else ""
    return f"  {what:<13} {len(names):>4}  {', '.join(names[:shown])}{more}"
