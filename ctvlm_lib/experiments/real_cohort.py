"""A user's copy of RadGenome-ChestCT or M3D as experiments read it: questions by split, and pictures from the disk.

RadGenome-ChestCT has masks, so that every condition can be drawn; a question whose mask isn't there is left out of all
of them, so that conditions differ in the prompt alone. M3D has none: its pictures are never drawn on. Each of M3D's
questions with choices is asked a second time as an open one, as Med3DVLM's Table 3 does.

Source: contour.txt §4 and dualbox.txt §4.1 (70/10/20 by patient, which :mod:`ctvlm_lib.records.split` does);
med3dvlm.txt §4 (the published split).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ctvlm_lib import mask, volume
from ctvlm_lib.alignment.m3d_cap import resized
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.conditions import PAPERS_COLOURS, Drawing
from ctvlm_lib.prompt import distractor
from ctvlm_lib.records import m3d, radgenome
from ctvlm_lib.records.record import SPLITS, Record
from ctvlm_lib.records.split import assign_splits
from ctvlm_lib.records.table import Reading, plural
from ctvlm_lib.vlm.image import ImageInput

READERS = {"radgenome": radgenome.read, "m3d": m3d.read}
THICKNESS = 3  # pixels, contour.txt §3.1 (its §4 says one) and dualbox.txt §3.1; on the scan's own grid


@dataclass(frozen=True, eq=False)
class RealCohort:
    """Questions about scans that lie on a disk.

    Attributes:
        data: key of READERS.
        folder: where the data set lies.
        records: split → questions that can be asked under every condition.
        notes: what reading found worth saying, a sentence each.
    """

    data: str
    folder: Path
    records: dict[str, list[Record]]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, data: str, folder: str | Path, patients: int = 0, seed: int = 0) -> "RealCohort":
        """Read a copy.

        Args:
            data: "radgenome" or "m3d".
            folder: as its reader takes it.
            patients: the first so many of each split; 0 takes all.
            seed: of RadGenome-ChestCT's split.

        Raises:
            BadInput: no such data set, nothing of it in the folder, or too few patients for three splits.
        """
        if data not in READERS:
            raise BadInput(f"no data set is called {data!r}; choose one of {', '.join(READERS)}")
        reading = READERS[data](folder)
        records, notes = (_with_masks if data == "radgenome" else _with_open)(reading)
        if not records:
            raise BadInput(f"no question of {reading.dataset} can be asked with what lies in {folder}: {reading!r}")
        if data == "radgenome":
            records = assign_splits(records, "70/10/20", seed=seed)
        split = {name: [record for record in records if record.split == name] for name in SPLITS}
        empty = [name for name, some in split.items() if not some]
        if empty:
            raise BadInput(f"{reading.dataset} has no question in the split {empty[0]}; give a larger part of it")
        return cls(data, Path(folder), {name: _first(some, patients) for name, some in split.items()},
                   (*reading.notes, *notes))  # fmt: skip

    def key(self, record: Record, condition: str) -> str:
        """Name of the picture that a question is asked about; without a prompt a volume has one."""
        plain = condition == "none" or record.mask is None
        return record.volume if plain else f"{record.volume}/{record.mask}"

    def picture(self, record: Record, condition: str, made_by: ImageInput) -> np.ndarray:
        """The picture that a question is asked about, as the encoder wants it.

        Args:
            record: the question; its mask is what is marked.
            condition: of :data:`ctvlm_lib.experiments.conditions.CONDITIONS`.
            made_by: of the model's processor.

        Returns:
            float32 ``(channels, D, H, W)``.

        Raises:
            BadInput: the volume or a mask can't be read, or is empty; no other one is taken in its place.
        """
        path = self.folder / record.volume
        if self.data == "m3d":
            if condition != "none":
                raise BadInput(f"M3D has no masks, so nothing can be drawn for {condition!r}; take the condition none")
            return made_by(resized(m3d.load_array(path), made_by.size_dhw_vox))
        scan = volume.load(path, check=False)
        lines = self.drawing(record, condition, scan).lines(THICKNESS)
        return made_by(scan, lines)

    def drawing(self, record: Record, condition: str, scan: volume.Volume) -> Drawing:
        """What is drawn for a question on a scan's own grid."""
        if condition == "none" or record.mask is None:
            return Drawing("none")
        target, other = self._mask(record.mask, scan), None
        if not target.any():
            raise BadInput(f"{record.mask} is empty, so that nothing can be marked for {record.id}; leave it out")
        if condition == "dual":
            masks = {name: self._mask(path, scan) for name, path in self._masks[record.volume].items()}
            other = _distractor(masks | {record.region: target}, record.region, scan)
        return Drawing(condition, target, other, tuple(PAPERS_COLOURS.items()))

    @cached_property
    def _masks(self) -> dict[str, dict[str, str]]:
        """Volume → region → mask, of all regions that are asked about."""
        found = defaultdict(dict)
        for records in self.records.values():
            for record in records:
                if record.mask is not None:
                    found[record.volume][record.region] = record.mask
        return found

    def _mask(self, path: str, scan: volume.Volume) -> np.ndarray:
        return mask.load(self.folder / path, like=scan).labels > 0


def _with_masks(reading: Reading) -> tuple[list[Record], tuple[str, ...]]:
    """Questions about the whole scan, and about regions whose mask is there."""
    whole = [r if r.region not in ("others", None) else replace(r, region=None, names_region=False)
             for r in reading.records]  # fmt: skip
    kept = [record for record in whole if record.region is None or record.mask is not None]
    left = len(whole) - len(kept)
    return kept, (f"{plural(left, 'question')} about a region without a mask left out",) if left else ()


def _with_open(reading: Reading) -> tuple[list[Record], tuple[str, ...]]:
    """Each question with choices once more without them."""
    opened = [replace(r, id=f"{r.id}:open", form="open", choices=()) for r in reading.records if r.choices]
    return [*reading.records, *opened], (f"{plural(len(opened), 'question')} with choices asked openly, too",)


def _first(records: Sequence[Record], patients: int) -> list[Record]:
    names = list(dict.fromkeys(record.patient for record in records))
    kept = set(names[: patients or None])
    return [record for record in records if record.patient in kept]


def _distractor(masks: dict[str, np.ndarray], region: str, scan: volume.Volume) -> np.ndarray | None:
    """The nearest other structure that is asked about in this scan; None if none can be one, as where it is alone."""
    labels, overlapping = np.zeros(scan.shape, np.uint16), {}
    for number, name in enumerate(masks, start=1):
        if (labels[masks[name]] > 0).any():
            overlapping[name] = masks[name]
        labels[masks[name] & (labels == 0)] = number
    made = mask.LabelMap(labels, scan.affine, dict(enumerate(masks, start=1)), overlapping=overlapping)
    try:
        return distractor.choose(made, region).mask
    except BadInput:
        return None
