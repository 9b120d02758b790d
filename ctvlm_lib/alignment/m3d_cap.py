"""M3D-Cap as pretraining reads it: volumes stay on disk, are read a step ahead, and never replaced by others.

The released loader answers a volume that can't be read with a random other one. Here what isn't there is listed and
left out before training starts, and a volume that turns out to be damaged later stops it with the volume's name.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import m3d
from ctvlm_lib.records.table import SPLITS, plural, some
from ctvlm_lib.training import Step

AUGMENTS = ("released", "none")


@dataclass(frozen=True)
class Corpus:
    """The user's copy of M3D-Cap and how it is trained on; the defaults are Med3DVLM's.

    Attributes:
        folder: the one that holds ``M3D_Cap_npy``, as for ``ctvlm doctor --data``.
        size_dhw_vox: that volumes are brought to.
        variant: of the encoder.
        epochs: how often each training volume is seen; 0 trains nothing and only scores what ``start`` names.
        train_text: the text tower is trained as well, as the paper does; False keeps it as it was pretrained.
        augment: of training volumes, "released" (see :func:`augmented`) or "none".
        whole_cases: leave training volumes out whose case also is in validation or test, which the published split by
            volume does not.
        check: read every volume to its end first, so that damaged ones are listed and left out (slow).
        workers: threads that read volumes, in each process; twice its share of a batch is held in memory.

    Source: med3dvlm.txt §3.2.1, §4; Med3DVLM's training script at cbbd633.
    """

    folder: str = ""
    size_dhw_vox: tuple[int, int, int] = (128, 256, 256)
    variant: str = "small"
    epochs: int = 100
    train_text: bool = True
    augment: str = "released"
    whole_cases: bool = False
    check: bool = False
    workers: int = 8

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTS:
            raise BadInput(f"augment is {self.augment!r}; choose one of {', '.join(AUGMENTS)}")
        if self.epochs < 0 or self.workers < 1:
            raise BadInput(f"epochs are 0 or more and workers at least 1, got {self.epochs} and {self.workers}")


@dataclass(frozen=True, eq=False, repr=False)
class Captioned:
    """Volumes on disk with their reports.

    Attributes:
        folder: where the data set lies.
        volumes: paths below it.
        reports: a text for each volume; several volumes of a case have the same.
        cases: which case each volume is of.
        size_dhw_vox: that a volume is brought to when it is read.
    """

    folder: Path
    volumes: tuple[str, ...]
    reports: tuple[str, ...]
    cases: tuple[str, ...]
    size_dhw_vox: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.volumes)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.size_dhw_vox))
        texts = len(set(self.reports))
        return (
            f"Captioned({plural(len(self), 'volume')} of {len(set(self.cases))} cases, {texts} texts, read as {size})"
        )

    @property
    def identity(self) -> np.ndarray:
        """int64 ``(n,)``: equal numbers are equal texts."""
        return np.unique(np.array(self.reports, dtype=object).astype(str), return_inverse=True)[1]

    def volume(self, number: int) -> np.ndarray:
        """Read a volume: float32 ``(D, H, W)`` in 0…1 of the wanted size.

        Raises:
            BadInput: it can't be read any more, or it is damaged.
        """
        path = self.folder / self.volumes[number]
        try:
            return resized(m3d.load_array(path), self.size_dhw_vox)
        except BadInput as problem:
            raise BadInput(
                f"{self.volumes[number]} can't be used: {problem}. No other volume is taken in its place; mend it, or"
                " have all volumes read first and the damaged ones left out (check=True, ctvlm arm --check)"
            ) from problem

    def without(self, cases: set[str]) -> "Captioned":
        """The volumes whose case is none of these."""
        kept = [k for k, case in enumerate(self.cases) if case not in cases]
        taken = {name: tuple(getattr(self, name)[k] for k in kept) for name in ("volumes", "reports", "cases")}
        return replace(self, **taken)

    def digest(self) -> str:
        """Hash of which volumes there are and what their texts say."""
        lines = "\n".join(f"{volume}\t{text}" for volume, text in zip(self.volumes, self.reports, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


def read(corpus: Corpus) -> tuple[dict[str, Captioned], list[str]]:
    """Find the volumes of all splits; none is loaded unless ``corpus.check`` says so.

    Returns:
        Split → volumes, and what there is to know: files that are missing or damaged, cases in several splits.

    Raises:
        BadInput: no folder, no M3D-Cap in it, or a split that would be empty.
    """
    if not corpus.folder:
        raise BadInput("say where your copy of M3D-Cap lies, the folder that holds M3D_Cap_npy (ctvlm arm --data DIR)")
    reading = m3d.read(corpus.folder, check_volumes=corpus.check)
    records = [r for r in reading.records if r.dataset == "M3D-Cap"]
    found, notes = {}, list(reading.notes)
    for split in SPLITS:
        rows = [(r.volume, r.answer, r.patient) for r in records if r.split == split]
        if not rows:
            raise BadInput(
                f"no volume of M3D-Cap's {split} split with its text is there; {len(reading.missing)} files are"
                f" missing{_first(reading.missing)} and {len(reading.unreadable)} damaged{_first(reading.unreadable)}"
            )
        found[split] = Captioned(Path(corpus.folder), *zip(*rows, strict=True), corpus.size_dhw_vox)
    for what, files in (("not there", reading.missing), ("damaged", reading.unreadable)):
        if files:
            notes.append(f"{plural(len(files), 'file')} {what}, left out: {some(files, 20)}")
    if corpus.whole_cases:
        before = len(found["train"])
        found["train"] = found["train"].without({*found["validation"].cases, *found["test"].cases})
        notes.append(f"{plural(before - len(found['train']), 'training volume')} of cases in other splits left out")
    return found, notes


def resized(array: np.ndarray, size_dhw: tuple[int, int, int]) -> np.ndarray:
    """Bring ``(D, H, W)`` to a size by linear interpolation, as the released preparation of the data does."""
    if array.shape == tuple(size_dhw):
        return array
    volume = torch.from_numpy(array)[None, None]
    return functional.interpolate(volume, tuple(size_dhw), mode="trilinear", align_corners=False)[0, 0].numpy()


def augmented(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn, mirror, scale and shift as Med3DVLM's code does in training.

    The mirror images contradict reports that say left or right; the published numbers were reached with them.

    Args:
        volume: ``(D, H, W)`` in 0…1.
        rng: of what is drawn.

    Source: Med3DVLM's data set class: quarter turns in plane p = .5, mirrored along each axis p = .1, intensities
    times 0.9…1.1 p = .5, plus −0.1…0.1 p = .5.
    """
    if rng.random() < 0.5:
        turns = (1, 2, 3) if volume.shape[1] == volume.shape[2] else (2,)  # a quarter turn would change the shape
        volume = np.rot90(volume, rng.choice(turns), axes=(1, 2))
    for axis in range(3):
        if rng.random() < 0.1:
            volume = np.flip(volume, axis)
    scale, shift = (rng.uniform(-0.1, 0.1) if rng.random() < 0.5 else 0.0 for _ in range(2))
    return np.ascontiguousarray(volume * (1 + scale) + shift, dtype=np.float32)


def drawn(count: int, batch: int, step: Step) -> np.ndarray:
    """Indices ``(batch,)`` of a step's volumes: each epoch goes once through all in an order of its own.

    What doesn't fill a batch is left out of an epoch, another few each time.
    """
    epoch, place = divmod(step.number, count // batch)
    order = np.random.default_rng([step.seed, epoch, count]).permutation(count)
    return order[place * batch : (place + 1) * batch]


class Loader:
    """Reads a step's volumes in threads, and those of the next step while this one is computed.

    Args:
        data: the volumes.
        batch: of a step, over all processes and parts.
        augment: one of AUGMENTS.
        workers: threads.

    Use it as a context manager, so that its threads end.
    """

    def __init__(self, data: Captioned, batch: int, augment: str = "none", workers: int = 8):
        if batch > len(data):
            raise BadInput(f"a batch of {batch} is larger than the {plural(len(data), 'training volume')}; lower it")
        self._data, self._batch, self._augment = data, batch, augment == "released"
        self._pool = ThreadPoolExecutor(workers, "volumes")
        self._asked: dict[Step, tuple[np.ndarray, list[Future]]] = {}

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: Step) -> tuple[np.ndarray, torch.Tensor]:
        """Which volumes this call's share of the step is, and float32 ``(b, 1, D, H, W)``."""
        index, volumes = self._asked.pop(step, None) or self._ask(step)
        last = step.part == step.parts - 1
        following = replace(step, number=step.number + last, part=0 if last else step.part + 1)
        self._asked = {following: self._ask(following)}
        return index, torch.from_numpy(np.stack([volume.result() for volume in volumes]))[:, None]

    def _ask(self, step: Step) -> tuple[np.ndarray, list[Future]]:
        places = step.mine(np.arange(self._batch))  # a volume is augmented alike whichever process reads it
        index = drawn(len(self._data), self._batch, step)[places]
        jobs = [self._pool.submit(self._one, k, step, place) for k, place in zip(index, places, strict=True)]
        return index, jobs

    def _one(self, number: int, step: Step, place: int) -> np.ndarray:
        volume = self._data.volume(number)
        return augmented(volume, step.rng(f"augment {place}")) if self._augment else volume


def _first(files: dict) -> str:
    return f" (e.g. {next(iter(files))})" if files else ""
