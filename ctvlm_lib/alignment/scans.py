"""The cohort as pretraining reads it: HU, region and finding of each voxel as small integers, and the report's text."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import LOBES, REGIONS, Patient
from ctvlm_lib.records.questions import LUNG_KINDS, NONE, ORGAN_KINDS
from ctvlm_lib.records.report import focal_findings, report

KINDS = (*LUNG_KINDS, "pleural effusion")  # value k + 1 in Scans.kind
# HU → input: straight pieces between −1 and 1, the steepest over soft tissue, where findings differ least
KNOTS_HU, KNOTS = (-1000.0, -500.0, -60.0, 220.0, 1000.0), (-1.0, -0.7, -0.45, 0.8, 1.0)
SHIFT_VOX = (3, 6, 6)  # largest shift in training, voxels along each axis
# a look-up is five times faster than interpolating each voxel
_TABLE = np.interp(np.arange(KNOTS_HU[0], KNOTS_HU[-1] + 1), KNOTS_HU, KNOTS).astype(np.float32)
_IDS = {anatomy.structure(name).vista3d: k + 1 for k, name in enumerate(REGIONS)}


@dataclass(frozen=True, eq=False)
class Scans:
    """A cohort in memory: 0.5 MB a patient at 32×64×64.

    Attributes:
        names: of the patients.
        hu: int16 ``(n, D, H, W)``.
        region: uint8 ``(n, D, H, W)``; k + 1 is ``REGIONS[k]``, 0 anything else.
        kind: uint8 ``(n, D, H, W)``; k + 1 is a voxel of a finding of ``KINDS[k]``, 0 none.
        found: int8 ``(n, 10)``: index into ``kinds_of(region)``, 0 = none; −1 where the region isn't in the field.
        reports: one text each.
        facts: pose and attributes of each patient, as plain values.
    """

    names: tuple[str, ...]
    hu: np.ndarray
    region: np.ndarray
    kind: np.ndarray
    found: np.ndarray
    reports: tuple[str, ...]
    facts: tuple[dict, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, patients: Iterable[Patient]) -> "Scans":
        """Take patients of one size.

        Raises:
            BadInput: none, or of different sizes.
        """
        rows = [_row(patient) for patient in patients]
        if not rows:
            raise BadInput("there are no patients to align; give at least one")
        if len({row[1].shape for row in rows}) > 1:
            raise BadInput("the patients differ in size; draw all of them with the same shape")
        names, hu, region, kind, found, reports, facts = zip(*rows, strict=True)
        return cls(names, np.stack(hu), np.stack(region), np.stack(kind), np.stack(found), reports, facts)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some patients, shifted: image float32 ``(B, 1, D, H, W)`` in −1…1, region and kind uint8 ``(B, D, H, W)``."""

    index: np.ndarray
    image: np.ndarray
    region: np.ndarray
    kind: np.ndarray


def kinds_of(region: str) -> tuple[str, ...]:
    """What a region can show, "no focal finding" first."""
    return (NONE, *(LUNG_KINDS if region in LOBES else ORGAN_KINDS))


def batch_of(scans: Scans, index: np.ndarray, shifts: np.ndarray | None = None) -> Batch:
    """Cut a batch out of the cohort.

    Args:
        scans: the cohort.
        index: which patients.
        shifts: int ``(B, 3)``, voxels that each image is moved by; what comes in from outside is air. None: none.
    """
    shifts = np.zeros((len(index), 3), int) if shifts is None else shifts
    parts = []
    for array, fill in ((scans.hu, int(KNOTS_HU[0])), (scans.region, 0), (scans.kind, 0)):
        parts.append(np.stack([shifted(array[i], by, fill) for i, by in zip(index, shifts, strict=True)]))
    return Batch(np.asarray(index), as_input(parts[0])[:, None], parts[1], parts[2])


def drawn_batch(scans: Scans, rng: np.random.Generator, size: int, shift: tuple[int, int, int] = SHIFT_VOX):
    """Indices ``(size,)`` without repetition, and shifts ``(size, 3)``: the same from the same generator."""
    if size > len(scans):
        raise BadInput(f"a batch of {size} is larger than the cohort of {len(scans)}; choose a smaller one")
    index = rng.choice(len(scans), size, replace=False)
    return index, np.stack([rng.integers(-s, s + 1, size) for s in shift], axis=1)


def as_input(hu: np.ndarray) -> np.ndarray:
    """HU → float32 in −1…1: a wide window whose middle part, soft tissue, is stretched."""
    return _TABLE[np.clip(hu, KNOTS_HU[0], KNOTS_HU[-1]).astype(np.int32) - int(KNOTS_HU[0])]


def _row(patient: Patient) -> tuple:
    table = np.zeros(256, np.uint8)
    for number, value in _IDS.items():
        table[number] = value
    kind = np.zeros(patient.labels.shape, np.uint8)
    for finding in patient.findings:
        if finding.kind in KINDS:
            kind[finding.mask] = KINDS.index(finding.kind) + 1
    lesions, present = focal_findings(patient), set(patient.labels.present)
    found = [kinds_of(r).index(lesions[r].kind if r in lesions else NONE) if r in present else -1 for r in REGIONS]
    pose, kinds = patient.pose, {finding.kind for finding in patient.findings}
    facts = {"rotation_deg": pose.rotation_deg, "scale": pose.scale, "shift_mm": pose.shift_mm} | patient.attributes
    facts |= {"prone": pose.prone, "effusion": "pleural effusion" in kinds, "cardiomegaly": "cardiomegaly" in kinds}
    region = table[patient.labels.labels.astype(np.uint8)]
    return patient.name, patient.hu, region, kind, np.array(found, np.int8), report(patient).text, facts


def shifted(volume: np.ndarray, by: np.ndarray, fill: int) -> np.ndarray:
    """Move a volume ``(D, H, W)`` by whole voxels; what comes in from outside is ``fill``."""
    if not np.any(by):
        return volume
    out = np.full_like(volume, fill)
    to = tuple(slice(max(0, b), n + min(0, b)) for b, n in zip(by, volume.shape, strict=True))
    come = tuple(slice(max(0, -b), n + min(0, -b)) for b, n in zip(by, volume.shape, strict=True))
    out[to] = volume[come]
    return out
