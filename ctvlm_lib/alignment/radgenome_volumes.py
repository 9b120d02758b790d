"""Volumes as MedVista3D's encoder reads them, with their regions on its patches: made one at a time, and kept or not.

The field is that of :func:`ctvlm_lib.volume.recipe.medvista3d`: ±1000 HU to −1…1, 3×1×1 mm, centre-cropped or padded.
Of a region is kept how many voxels of each patch it fills, and its bounding box. One whose mask can't be used
(:mod:`ctvlm_lib.alignment.radgenome_masks`), or that has no voxel in the field, is left out and told.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ctvlm_lib.alignment.radgenome_masks import on_field
from ctvlm_lib.alignment.radgenome_pairs import Pair
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.records.ct_rate import load_volume
from ctvlm_lib.volume import Volume
from ctvlm_lib.volume.hu import AIR_HU, scale_range
from ctvlm_lib.volume.recipe import CLIP_HU, MEDVISTA3D_MM

VERSION = 1  # of what is kept on disk


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is kept of a volume.

    Attributes:
        volume: float16 ``(D, H, W)`` in −1…1.
        voxels: uint16 ``(R, tokens)``: of each patch those in each region.
        boxes: int16 ``(R, 3, 2)``: first voxel and the one behind the last along each axis; zeros without a voxel.
        notes: regions that aren't there, a sentence each.
    """

    volume: np.ndarray
    voxels: np.ndarray
    boxes: np.ndarray
    notes: tuple[str, ...] = ()

    def share(self) -> np.ndarray:
        """float32 ``(R, tokens)``: of each patch's voxels those in each region, 0…1."""
        return self.voxels.astype(np.float32) / (self.volume.size // self.voxels.shape[1])

    def cut_out(self, region: int) -> np.ndarray:
        """A region cut out along its box and centred in a field of air: float32 ``(D, H, W)``.

        Source: medvista3d.txt §4.2: "we crop the CT volume to the segmentation mask and perform padding".
        """
        made = np.full(self.volume.shape, -1.0, np.float32)
        sides = self.boxes[region, :, 1] - self.boxes[region, :, 0]
        to = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(made.shape, sides, strict=True))
        made[to] = self.volume[tuple(slice(*ends) for ends in self.boxes[region])]
        return made


def field_of(scan: Volume, size_dhw: tuple[int, int, int]) -> Volume:
    """A scan's part that the encoder sees, in HU, with its place in the patient."""
    clipped = replace(scan, hu=scan.hu.clip(*CLIP_HU))
    return clipped.resample(MEDVISTA3D_MM).crop_or_pad(size_dhw, fill=AIR_HU)


@dataclass(frozen=True)
class Volumes:
    """Makes volumes ready, or reads those that are kept.

    Attributes:
        regions: names, in the order of a pair's masks.
        size_dhw: of the encoder's input, voxels. grid: of its patches.
        folder: where they are kept, "" for nowhere: each is made anew whenever a step needs it.
    """

    regions: tuple[str, ...]
    size_dhw: tuple[int, int, int]
    grid: tuple[int, int, int]
    folder: str = ""

    def item(self, pair: Pair) -> Prepared:
        """A volume, made if it isn't kept yet or its files have changed since.

        Raises:
            BadInput: it can't be read; no other one is taken in its place.
        """
        kept = self._kept(pair)
        if kept is not None:
            return kept
        try:
            made = self._made(pair)
        except BadInput as problem:
            raise BadInput(
                f"{pair.name} can't be used: {problem}. No other volume is taken in its place; mend it, or name a"
                " folder with [run] prepared, so that all volumes are read first and damaged ones are left out"
            ) from problem
        if self.folder:
            arrays = {name: getattr(made, name) for name in ("volume", "voxels", "boxes")}
            with atomic_path(self._file(pair)) as partial:
                save_file(arrays, partial, {"of": _stamp(pair), "notes": json.dumps(made.notes)})
        return made

    def prepare(self, pair: Pair) -> tuple[str, tuple[str, ...]]:
        """Make a volume, keep it, and forget it: why it can't be used, "" if it can, and notes on its regions."""
        known = self._known(pair)
        if known is None:
            try:
                known = "", self.item(pair).notes
            except BadInput as problem:
                known = str(problem.__cause__ or problem), ()
                with atomic_path(self._file(pair).with_suffix(".json")) as partial:
                    partial.write_text(json.dumps({"of": _stamp(pair), "why": known[0]}), encoding="utf-8")
        return known

    def files(self, pair: Pair) -> list[Path]:
        """All that is kept of a volume."""
        return [self._file(pair)]

    def bytes_each(self) -> int:
        """Of a volume that is kept."""
        tokens, regions = int(np.prod(self.grid)), len(self.regions)
        return 2 * int(np.prod(self.size_dhw)) + 2 * regions * tokens + 2 * regions * 6

    def _file(self, pair: Pair) -> Path:
        what = json.dumps([VERSION, self.regions, self.size_dhw, self.grid])
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        return Path(self.folder) / key / pair.patient / f"{pair.name}.safetensors"

    def _known(self, pair: Pair) -> tuple[str, tuple[str, ...]] | None:
        """What :meth:`prepare` found before, if the files are still the same."""
        file, stamp = self._file(pair), _stamp(pair)
        try:
            with safe_open(file, "numpy") as stored:
                told = stored.metadata()
                return ("", tuple(json.loads(told["notes"]))) if told["of"] == stamp else None
        except (OSError, SafetensorError):
            pass
        try:
            told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            return (told["why"], ()) if told["of"] == stamp else None
        except (OSError, ValueError, KeyError):
            return None

    def _kept(self, pair: Pair) -> Prepared | None:
        if not self.folder:
            return None
        try:
            with safe_open(self._file(pair), "numpy") as stored:
                told = stored.metadata()
                if told["of"] != _stamp(pair):
                    return None
                arrays = [stored.get_tensor(name) for name in ("volume", "voxels", "boxes")]
                return Prepared(*arrays, tuple(json.loads(told["notes"])))
        except (OSError, SafetensorError):  # not there, or cut short
            return None

    def _made(self, pair: Pair) -> Prepared:
        scan = load_volume(pair.volume, pair.metadata)
        field, counts, boxes, notes = field_of(scan, self.size_dhw), [], [], []
        for region, path in zip(self.regions, pair.masks, strict=True):
            inside = np.zeros(self.size_dhw, bool)
            if path is not None:
                try:
                    inside = on_field(path, pair, scan, field)
                    if not inside.any():
                        notes.append(f"{pair.name}: no voxel of the {region} lies in the field, so it isn't aligned")
                except BadInput as problem:
                    notes.append(f"{pair.name}: the {region} isn't aligned, its mask can't be used: {problem}")
            counts.append(self._voxels(inside))
            box = bounding_box(inside) if inside.any() else (slice(0, 0),) * 3
            boxes.append([(side.start, side.stop) for side in box])
        values = scale_range(field.hu, *CLIP_HU, to=(-1.0, 1.0)).astype(np.float16)
        return Prepared(values, np.stack(counts), np.array(boxes, np.int16), tuple(notes))

    def _voxels(self, inside: np.ndarray) -> np.ndarray:
        sides = [side for n, g in zip(self.size_dhw, self.grid, strict=True) for side in (g, n // g)]
        return inside.reshape(sides).sum(axis=(1, 3, 5)).ravel().astype(np.uint16)


def prepare_all(
    pairs: Sequence[Pair], volumes: Volumes, workers: int, share: tuple[int, int], tell: Callable[[int], None]
) -> list[tuple[str, tuple[str, ...]]]:
    """Make all volumes that aren't kept yet, in threads; each process begins with its own share and helps the others.

    Args:
        pairs: which.
        volumes: with a folder.
        workers: threads; each holds one whole scan.
        share: (number of this process, of all).
        tell: called after each with how many are done.

    Returns:
        For each pair what :meth:`Volumes.prepare` gives.
    """
    order = sorted(range(len(pairs)), key=lambda k: ((k - share[0]) % share[1], k))
    found: list[tuple[str, tuple[str, ...]]] = [("", ())] * len(pairs)
    with ThreadPoolExecutor(workers, "prepare") as pool:
        for done, (k, one) in enumerate(
            zip(order, pool.map(lambda k: volumes.prepare(pairs[k]), order), strict=True), start=1
        ):
            found[k] = one
            tell(done)
    return found


def _stamp(pair: Pair) -> str:
    """What tells the files of a pair from those that lay there before."""
    return stamp([path for path in (pair.volume, *pair.masks) if path is not None])


def stamp(files: Sequence[Path]) -> str:
    """What tells files from those that lay there before: a hash of their names, sizes and times of change."""
    lines = []
    for path in files:
        try:
            facts = path.stat()
            lines.append(f"{path.name} {facts.st_size} {facts.st_mtime_ns}")
        except OSError:
            lines.append(f"{path.name} is gone")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
