"""Many texts as vectors that stay on the disk: computed once, read row by row, none of them kept in memory."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.damaged import map_npy
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.notebook_progress import duration

BLOCK = 4096  # texts computed, and kept, at a time


@dataclass(eq=False)
class TextVectors:
    """Vectors of different texts in a file.

    Attributes:
        file: float32 ``(texts, channels)``, NumPy's format.
        number: text → its row.
        too_long: how many were cut to what the tower takes.
    """

    file: Path
    number: dict[str, int] = field(repr=False)
    too_long: int

    def __post_init__(self) -> None:
        try:
            self._rows = map_npy(self.file)
            if self._rows.ndim != 2 or len(self._rows) != len(self.number):
                raise ValueError(f"its shape is {self._rows.shape}, of {len(self.number)} texts")
        except (OSError, ValueError) as error:
            raise BadInput(f"{Path(self.file).name} can't be read as vectors ({error}); remove it and its .json, which"
                           " makes them anew") from error  # fmt: skip

    @classmethod
    def of(
        cls, texts: Iterable[str], name: str, folder: str | Path, device="cpu",
        tell: Callable[[str], None] = lambda line: None, share: tuple[int, int] = (0, 1),
    ) -> "TextVectors":  # fmt: skip
        """Compute what isn't there yet; a computation that was stopped goes on.

        Args:
            texts: the same as often as you like.
            name: of the tower, see :class:`~ctvlm_lib.alignment.text.TextTower`; in profile ``paper``.
            folder: for the vectors.
            device: that they are computed on.
            tell: called with a line on how far it is.
            share: (number of this process, of all): each begins with its own share.

        Raises:
            BadInput: a tower that can't be had, or an empty text.
        """
        different = list(dict.fromkeys(texts))
        tower = TextTower(name, "paper", cache=folder, device=device)
        key = hashlib.sha256("\0".join([*tower.identity, *different]).encode()).hexdigest()[:24]
        file = Path(folder) / f"texts-{key}.npy"
        counts = file.with_suffix(".json")
        if not counts.is_file():
            blocks = [different[k : k + BLOCK] for k in range(0, len(different), BLOCK)]
            _compute(tower, blocks, tell, *share)
            told = {"texts": len(different), "too_long": _write(tower, blocks, file)}
            with atomic_path(counts) as partial:
                partial.write_text(json.dumps(told), encoding="utf-8")
        too_long = json.loads(counts.read_text(encoding="utf-8"))["too_long"]
        return cls(file, {text: k for k, text in enumerate(different)}, too_long)

    @property
    def channels(self) -> int:
        """Of a vector."""
        return self._rows.shape[1]

    def rows(self, texts: Iterable[str]) -> np.ndarray:
        """int64 ``(n,)``: the row of each text."""
        return np.array([self.number[text] for text in texts])

    def at(self, rows: np.ndarray) -> torch.Tensor:
        """Vectors ``(…, channels)`` of rows ``(…)``."""
        return torch.from_numpy(np.array(self._rows[rows]))

    def centre_and_scale(self, counts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(channels,)`` and spread ``()`` of the vectors, each as often as it occurs; block by block.

        Args:
            counts: ``(texts,)``.
        """
        blocks = [slice(k, k + BLOCK) for k in range(0, len(counts), BLOCK)]
        centre = sum(counts[some] @ self._rows[some].astype(np.float64) for some in blocks) / counts.sum()
        square = sum(counts[some] @ np.square(self._rows[some] - centre).mean(axis=1) for some in blocks)
        scale = max(float(np.sqrt(square / counts.sum())), 1e-6)
        return torch.tensor(centre, dtype=torch.float32), torch.tensor(scale)


def _compute(tower: TextTower, blocks: list[list[str]], tell: Callable[[str], None], rank: int, world: int) -> None:
    """Compute all blocks, this process' share first; what another one has finished meanwhile is only read."""
    order = sorted(range(len(blocks)), key=lambda k: ((k - rank) % world, k))
    begun = time.monotonic()
    for done, k in enumerate(order, start=1):
        tower.embed(blocks[k], cut=True, batch=64)
        left = (time.monotonic() - begun) / done * (len(order) - done)
        tell(f"texts: {done} of {len(order)} blocks" + (f" (about {duration(left)} left)" if done < len(order) else ""))


def _write(tower: TextTower, blocks: list[list[str]], file: Path) -> int:
    """Write the vectors of all blocks into one file; how many texts were too long."""
    first, count = tower.embed(blocks[0], cut=True), sum(map(len, blocks))
    too_long, at = 0, 0
    with atomic_path(file) as partial:
        rows = np.lib.format.open_memmap(partial, "w+", np.float32, (count, first.shape[1]))
        for block in blocks:
            rows[at : at + len(block)] = tower.embed(block, cut=True).numpy()
            too_long, at = too_long + len(tower.too_long), at + len(block)
        rows.flush()
    return too_long
