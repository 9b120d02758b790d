"""Oracle: a reader who sees the region's mask, the lesions' masks and the HU, and measures the answer.

It shows that the closed questions can be answered from the image. It reads no stored answer and no stored attribute of
a finding: kind, size and place are measured again, by other code than the one that made them. The thresholds lie
between what the phantom's tissues are drawn with, so they hold for phantoms only, on both scanners.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.records.questions import NONE
from ctvlm_lib.records.record import Record

_KIND_ASKED = re.compile("nodule|mass|cyst|calcification|consolidation|ground-glass opacity|emphysema")
_PHASE_HU = ((185, "arterial"), (103, "portal venous"), (45, "delayed"))  # the middle of the aorta is above
_CORE_VOXELS = 5  # a mean of fewer says little


@dataclass(frozen=True)
class OracleScore:
    """How well the oracle does on one kind of closed question in one stratum."""

    kind: str
    names_region: bool
    records: int
    accuracy: float


def oracle(records: Iterable[Record], patients: Iterable[Patient]) -> list[OracleScore]:
    """Score the oracle on the closed questions, per kind and stratum.

    Args:
        records: of any form; open ones and reports are left out.
        patients: those of the records; others are passed over, so that a cohort can be given as it is.

    Raises:
        BadInput: a closed record whose patient isn't there.
    """
    records = [record for record in records if record.form == "closed"]
    answers = oracle_answers(records, patients)
    right = defaultdict(list)
    for record in records:
        right[record.kind, record.names_region].append(answers[record.id] == record.answer)
    return [OracleScore(kind, named, len(hits), sum(hits) / len(hits)) for (kind, named), hits in sorted(right.items())]


def oracle_answers(records: Iterable[Record], patients: Iterable[Patient]) -> dict[str, str]:
    """Record id → the oracle's answer to a closed question, "" where it can't tell."""
    waiting = defaultdict(list)
    for record in records:
        if record.form != "closed":
            raise BadInput(f"the oracle answers closed questions, and {record.id} is open; leave the open ones out")
        waiting[record.patient].append(record)
    answers = {}
    for patient in patients:
        seen = _Seen(patient)
        answers |= {record.id: seen.answer(record) for record in waiting.pop(patient.name, ())}
    if waiting:
        raise BadInput(f"patient {next(iter(waiting))} of the records isn't among those given; give the whole cohort")
    return answers


class _Seen:
    """One patient as the oracle sees them: HU, regions, and the lesions as bare masks."""

    def __init__(self, patient: Patient):
        self._hu, self._labels, self._volume = patient.volume.hu, patient.labels, patient.volume
        self._masks = [finding.mask for finding in patient.findings]
        self._known: dict[str, tuple] = {}

    def answer(self, record: Record) -> str:
        if record.kind == "phase":
            return self._phase()
        if record.region not in self._known:
            region = self._labels.binary(record.region)
            self._known[record.region] = region, *self._lesion(region)
        region, lesion, kind, size = self._known[record.region]
        if record.kind == "presence":
            asked = _KIND_ASKED.search(record.question)
            return "Yes" if kind != NONE and (not asked or asked[0] == kind) else "No"
        if record.kind == "abnormality":
            return kind
        if record.kind == "organ":
            return self._labels.names[int(np.bincount(self._labels.labels[region]).argmax())]
        if lesion is None:
            return ""
        return _class_of(size, record.choices) if record.kind == "size" else self._part(region, lesion)

    def _lesion(self, region: np.ndarray) -> tuple[np.ndarray | None, str, float]:
        """Mask, kind and size of what lies in a region and isn't the region (an enlarged heart is)."""
        volume = np.count_nonzero(region)
        for mask in self._masks:
            inside = np.count_nonzero(mask & region)
            if 2 * inside > np.count_nonzero(mask) and inside < 0.9 * volume:
                size = self._diameter_mm(mask)
                return mask, self._kind(region, mask, size), size
        return None, NONE, 0.0

    def _kind(self, region: np.ndarray, lesion: np.ndarray, size: float) -> str:
        around = region & ~lesion
        low, middle, high = np.percentile(self._hu[lesion], [10, 50, 90])
        in_lung = np.median(self._hu[around]) < -500
        if high > (120 if in_lung else 300):
            return "calcification"
        if not in_lung:
            return "cyst" if self._core_hu(lesion) < 42 else "mass"
        if low < -800:  # air, with a wall or without
            return "cyst" if high > -700 else "emphysema"
        if middle < -450:
            return "ground-glass opacity"
        if size <= 30:
            return "nodule"
        return "mass" if size < 45 or self._core_hu(lesion) > 25 else "consolidation"

    def _core_hu(self, mask: np.ndarray) -> float:
        """Mean HU away from the border's partial volume; of a small mask, of the few voxels that lie deepest."""
        from scipy import ndimage

        box = bounding_box(mask)
        inside = np.pad(mask[box], 1)
        depth = ndimage.distance_transform_edt(inside, self._volume.spacing_mm)[1:-1, 1:-1, 1:-1]
        core = ndimage.binary_erosion(inside)[1:-1, 1:-1, 1:-1]
        if np.count_nonzero(core) < _CORE_VOXELS:
            core = depth >= np.sort(depth[mask[box]])[-_CORE_VOXELS:][0]
        return float(self._hu[box][core].mean())

    def _diameter_mm(self, lesion: np.ndarray) -> float:
        """Longest distance between two voxels of a slice, and a voxel, mm to one decimal."""
        from scipy.spatial.distance import pdist

        _, dy, dx = self._volume.spacing_mm
        slices = [np.argwhere(plane) * (dy, dx) for plane in lesion if plane.any()]
        longest = max(float(pdist(points).max()) if len(points) > 1 else 0.0 for points in slices)
        return round(longest + (dy + dx) / 2, 1)

    def _part(self, region: np.ndarray, lesion: np.ndarray) -> str:
        _, back, up = self._middle(lesion) - self._middle(region)
        return f"{'upper' if up > 0 else 'lower'} {'posterior' if back > 0 else 'anterior'}"

    def _middle(self, mask: np.ndarray) -> np.ndarray:
        """Middle of a mask in LPS mm, from its sums along the axes and the affine."""
        marginals = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        index = [float(counts @ np.arange(counts.size)) / counts.sum() for counts in marginals]
        return (self._volume.affine @ [*index, 1.0])[:3]

    def _phase(self) -> str:
        if "aorta" not in self._labels.present:
            return ""
        blood = self._core_hu(self._labels.binary("aorta"))
        return next((name for level, name in _PHASE_HU if blood > level), "non-contrast")


def _class_of(size: float, choices: tuple[str, ...]) -> str:
    """The choice whose limits, as its words state them, hold the size; a limit belongs to the smaller class."""
    for choice in choices:
        numbers = [float(number) for number in re.findall(r"\d+", choice)]
        low, high = (numbers[0], np.inf) if choice.startswith("more") else (-np.inf, numbers[0])
        if len(numbers) == 2:
            low, high = numbers
        if low < size <= high:
            return choice
    return ""
