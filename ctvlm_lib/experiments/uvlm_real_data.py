"""A user's CTs as U-VLM's stages read them: made ready once, then read from disk one at a time.

A scan is resized to the paper's 192×256×256 (D, H, W) whatever its spacing, and kept as whole HU with the mean and
spread of the original, by which it is standardised when it is read: memory holds the volumes of one step. Targets of
stage 1 are kept beside it, as class numbers on the same grid. The user's own files are opened to be read and no more.

Source: uvlm.txt §3.1; U-VLM's released code (5d7fde9) for z-scores.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ctvlm_lib import volume
from ctvlm_lib.alignment.radgenome_volumes import stamp
from ctvlm_lib.alignment.scans import shifted
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.records import ct_rate
from ctvlm_lib.records.segmentation_cases import SegmentationCase
from ctvlm_lib.records.uvlm_tables import ABDOMEN_LABELS
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.volume import grid
from ctvlm_lib.volume.hu import AIR_HU

CHEST, ABDOMEN = SCOPES = ("chest", "abdomen")
LABELS = {CHEST: ct_rate.LABELS, ABDOMEN: ABDOMEN_LABELS}
VERSION = 1  # of what is kept on disk


@dataclass(frozen=True)
class Scan:
    """One CT, and what is known of it; what a stage doesn't need may be empty.

    Attributes:
        name, patient: of the scan. ct: its file. metadata: CT-RATE's row.
        report, labels: what is written of it, and which of LABELS it has.
        masks: what stage 1 shall find in it.
    """

    name: str
    patient: str
    ct: Path
    metadata: dict | None = None
    report: str = ""
    labels: tuple[bool, ...] = ()
    masks: SegmentationCase | None = None


@dataclass(frozen=True)
class Store:
    """A folder of volumes, and of targets beside them; each file is written whole or not at all.

    Attributes:
        folder: where.
        size_dhw: voxels that volumes are brought to.
    """

    folder: Path
    size_dhw: tuple[int, int, int]

    def prepare(self, scan: Scan, granularity: str = "") -> None:
        """Make a volume, and with a granularity its target, unless they are kept and their files are the same.

        Raises:
            BadInput: a file of it that can't be used.
        """
        wanted = {"": [scan.ct]} | ({granularity: [scan.ct, *scan.masks.files()]} if granularity else {})
        stamps = {one: stamp(files) for one, files in wanted.items()}
        lacking = [one for one, now in stamps.items() if self._stamp_of(scan, one) != now]
        if not lacking:
            return
        ct = ct_rate.load_volume(scan.ct, scan.metadata) if _is_chest(scan) else volume.load(scan.ct)
        small = ct.resize(self.size_dhw)
        for one in lacking:
            told = {"of": stamps[one]}
            if one:
                target = scan.masks.target(one)
                made = {"target": grid.resample(target, ct.affine, self.size_dhw, small.affine, order="nearest")}
            else:
                made = {"hu": np.rint(small.hu).clip(-32768, 32767).astype(np.int16)}
                told |= {"mean": repr(float(ct.hu.mean())), "std": repr(max(float(ct.hu.std()), 1e-8))}
            with atomic_path(self._file(scan, one)) as partial:
                save_file(made, partial, told)

    def hu(self, scan: Scan) -> np.ndarray:
        """int16 ``(D, H, W)``."""
        return self._read(scan, "", lambda file: file.get_tensor("hu"))

    def target(self, scan: Scan, granularity: str) -> np.ndarray:
        """uint8 ``(D, H, W)``, indices into the class map's names."""
        return self._read(scan, granularity, lambda file: file.get_tensor("target"))

    def mean_and_std(self, scan: Scan) -> tuple[float, float]:
        """Of the original's HU."""
        told = self._read(scan, "", lambda file: file.metadata())
        return float(told["mean"]), float(told["std"])

    def files(self, scan: Scan, granularity: str = "") -> list[Path]:
        """Where a volume is kept, and with a granularity its target."""
        return [self._file(scan, one) for one in dict.fromkeys(("", granularity))]

    def _read(self, scan: Scan, granularity: str, what: Callable):
        path = self._file(scan, granularity)
        try:
            with safe_open(path, "numpy") as file:
                return what(file)
        except (OSError, SafetensorError):
            raise BadInput(
                f"{path.name}, made ready from {scan.name}, can't be read any more; give the same command again, which"
                " makes anew what is missing"
            ) from None

    def _stamp_of(self, scan: Scan, granularity: str) -> str:
        """What a kept file was made of; "" for none, or one that was cut short."""
        try:
            with safe_open(self._file(scan, granularity), "numpy") as file:
                return file.metadata()["of"]
        except (OSError, SafetensorError):
            return ""

    def _file(self, scan: Scan, granularity: str) -> Path:
        size = "x".join(map(str, self.size_dhw))
        ending = f".{granularity.replace('+', '')}.safetensors" if granularity else ".safetensors"
        return self.folder / f"uvlm-{VERSION}-{size}" / scan.patient / f"{scan.name}{ending}"


@dataclass(frozen=True)
class OneByOne:
    """Arrays of one shape that are read when they are asked for: ``shape`` is that of all of them stacked."""

    shape: tuple[int, int, int, int]
    read: Callable[[int], np.ndarray]

    def __getitem__(self, k: int) -> np.ndarray:
        if not 0 <= k < self.shape[0]:
            raise IndexError(k)  # which ends an iteration
        return self.read(k)


@dataclass(frozen=True, eq=False)
class Volumes:
    """A split as the training functions read it, in the place of ``Scans`` and ``Segmented``, from disk.

    Attributes:
        scans: of it. store: where their volumes lie.
        scope: one of SCOPES. granularity: of stage 1, else "".
        notes: what is missing, a sentence each.
    """

    scans: tuple[Scan, ...]
    store: Store
    scope: str
    granularity: str = ""
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.scans)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scans."""
        return tuple(scan.name for scan in self.scans)

    @property
    def reports(self) -> tuple[str, ...]:
        """One text each."""
        return tuple(scan.report for scan in self.scans)

    @property
    def labels(self) -> np.ndarray:
        """bool ``(n, labels)``, in the order of LABELS."""
        return np.array([scan.labels for scan in self.scans], bool).reshape(len(self), -1)

    @property
    def patients(self) -> np.ndarray:
        """int ``(n,)``: whose each scan is, from 0."""
        return np.unique([scan.patient for scan in self.scans], return_inverse=True)[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of stage 1's classes."""
        return ClassMap.of(self.scope, self.granularity).names

    @property
    def hu(self) -> OneByOne:
        """int16 ``(n, D, H, W)``, one at a time."""
        return OneByOne((len(self), *self.store.size_dhw), lambda k: self.store.hu(self.scans[k]))

    @property
    def target(self) -> OneByOne:
        """uint8 ``(n, D, H, W)``, one at a time."""
        shape = (len(self), *self.store.size_dhw)
        return OneByOne(shape, lambda k: self.store.target(self.scans[k], self.granularity))

    def as_input(self, k: int, hu: np.ndarray) -> np.ndarray:
        """HU of the k-th scan, or of a part of it, as z-scores of the original."""
        mean, std = self.store.mean_and_std(self.scans[k])
        return ((hu - mean) / std).astype(np.float32)

    def pictures(self, index: Iterable[int], shifts: np.ndarray | None = None) -> np.ndarray:
        """Some scans, moved by whole voxels: float32 ``(B, 1, D, H, W)``; what comes in from outside is air."""
        index = [int(k) for k in index]
        shifts = np.zeros((len(index), 3), int) if shifts is None else shifts
        moved = [shifted(self.hu[k], by, int(AIR_HU)) for k, by in zip(index, shifts, strict=True)]
        return np.stack([self.as_input(k, hu) for k, hu in zip(index, moved, strict=True)])[:, None]

    def prepare(self, scan: Scan) -> tuple[str, tuple[str, ...]]:
        """Make a scan ready: why it can't be used, "" if it can; in the form that ``prepare_all`` wants."""
        try:
            self.store.prepare(scan, self.granularity)
        except BadInput as problem:
            return str(problem), ()
        return "", ()

    def files(self, scan: Scan) -> list[Path]:
        """All that is kept of a scan."""
        return self.store.files(scan, self.granularity)

    def blocks(self, size: int) -> Iterator["Volumes"]:
        """The same split in parts of so many scans."""
        for first in range(0, len(self), size):
            yield replace(self, scans=self.scans[first : first + size])

    def digest(self) -> str:
        """Hash of which scans there are and what is known of them."""
        lines = (f"{scan.name}\t{scan.report}\t{scan.labels}\t{self.granularity}" for scan in self.scans)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _is_chest(scan: Scan) -> bool:
    return bool(ct_rate.NAME.fullmatch(scan.name))
