"""One phantom patient: drawn from a seed and an index, the same bytes on any machine."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.phantom import body, findings, organs, scanner
from ctvlm_lib.records.phantom.canvas import Canvas, Draws, Pose, PoseRange
from ctvlm_lib.records.phantom.findings import Finding, FindingRange
from ctvlm_lib.volume import Volume, grid

VERSION = 1  # raised whenever a patient's bytes change, so that no cache mixes two generators
PHASES = {"non-contrast": 0.3, "arterial": 0.15, "portal venous": 0.4, "delayed": 0.15}
SMALLEST, LARGEST = 16, 512
_ANATOMY, _TEXTURE, _LESIONS, _NOISE = range(4)  # independent random streams: another scanner, the same patient


@dataclass(frozen=True, eq=False)
class Patient:
    """A drawn patient with everything that is true of them.

    Attributes:
        name: e.g. ``"phantom-0-00012"``: seed and index.
        volume: whole HU as float32, in the patient's LPS axes like every volume: of a prone patient the table and the
            fluid levels are in front. :attr:`as_scanned` has the array as it lies in the scanner.
        labels: structures by VISTA-3D ids, on the same grid; a lesion's voxels keep their region's label.
        findings: what is drawn in them.
        pose: how they lie.
        attributes: contrast phase, cardiothoracic ratio, fat in mm, scanner, and so on: plain numbers and words.
    """

    name: str
    volume: Volume
    labels: LabelMap
    findings: tuple[Finding, ...]
    pose: Pose
    attributes: dict[str, str | int | float | bool]

    @property
    def hu(self) -> np.ndarray:
        """int16 ``(D, H, W)``: what :func:`fingerprint` is taken of."""
        return self.volume.hu.astype(np.int16)

    @property
    def as_scanned(self) -> np.ndarray:
        """int16 ``(D, H, W)`` with the table below: a prone patient upside down, as files without an affine show it."""
        return np.ascontiguousarray(self.hu[:, ::-1, ::-1]) if self.pose.prone else self.hu


def patient(
    index: int,
    seed: int = 0,
    shape: tuple[int, int, int] = (32, 64, 64),
    scanner: str = "A",
    *,
    pose: PoseRange | None = None,
    findings: FindingRange | None = None,
    phases: Mapping[str, float] | None = None,
) -> Patient:
    """Draw one patient in a field of 340 mm along each axis.

    Args:
        index: number in the cohort, ≥ 0.
        seed: of the cohort, ≥ 0. Training and test cohorts take different seeds.
        shape: (D, H, W) in voxels; 32×64×64 to 128×256×256 are usual.
        scanner: "A", or "B" for external validation: the same patient with other noise, blur and calibration.
        pose: how patients may lie.
        findings: how often findings occur and how large they are.
        phases: contrast phase → weight, out of "non-contrast", "arterial", "portal venous" and "delayed".

    Raises:
        BadInput: a shape below 16 or above 512, a negative seed or index, an unknown scanner or phase.
    """
    shape = check_arguments(index, seed, shape, scanner)
    return _drawn(index, seed, shape, scanner, pose or PoseRange(), findings or FindingRange(), check_phases(phases))


def check_arguments(index: int, seed: int, shape, scanner_name: str) -> tuple[int, int, int]:
    """The shape as three plain numbers, or a sentence about what can't be drawn."""
    try:
        plain = tuple(int(n) for n in shape)
        fits = len(plain) == 3 and all(SMALLEST <= n <= LARGEST and n == m for n, m in zip(plain, shape, strict=True))
    except (TypeError, ValueError):
        plain, fits = shape, False
    if not fits:
        raise BadInput(f"a patient is drawn on (D, H, W) of {SMALLEST} to {LARGEST} voxels each, got {plain}")
    for name, value in (("index", index), ("seed", seed)):
        if isinstance(value, bool) or value != int(value) or value < 0:
            raise BadInput(f"{name} must be a whole number from 0, got {value!r}")
    scanner.profile_named(scanner_name)
    return plain


def check_phases(phases: Mapping[str, float] | None) -> dict[str, float]:
    """The phases' weights, the usual ones if none are given, or a sentence about what is wrong with them."""
    weights = dict(PHASES if phases is None else phases)
    unknown = [phase for phase in weights if phase not in organs.PHASES]
    if unknown:
        raise BadInput(f"no contrast phase is called {unknown[0]!r}; choose from {', '.join(organs.PHASES)}")
    if not weights or min(weights.values()) < 0 or max(weights.values()) <= 0:
        raise BadInput("the phases' weights must not be negative, and at least one must be positive")
    return weights


def _drawn(index, seed, shape, scanner_name, pose_range, finding_range, phases) -> Patient:
    draws, texture, lesions, grain = (Draws(seed, index, stream) for stream in (_ANATOMY, _TEXTURE, _LESIONS, _NOISE))
    pose = Pose.drawn(draws, pose_range)
    habitus = body.Habitus.drawn(draws)
    inner = organs.Organs.drawn(draws, phases, finding_range.cardiomegaly)
    profile = scanner.profile_named(scanner_name)
    canvas = Canvas(shape, pose)

    cavity = body.draw_trunk(canvas, habitus, texture)
    organs.draw_abdomen(canvas, habitus, inner, cavity, texture)
    lungs = {left: body.lung_cover(canvas, habitus, cavity, left) for left in (False, True)}
    body.draw_lungs(canvas, habitus, lungs, texture)
    body.draw_spine(canvas, habitus)
    organs.draw_chest(canvas, inner)
    body.draw_ribs(canvas, habitus, cavity)
    found = findings.draw_effusions(canvas, lungs, finding_range, lesions)
    if inner.enlarged:
        found += findings.cardiomegaly(canvas, inner.heart_scale)
    hu_of = {region: inner.hu[region.split()[-1]] for region in findings.ORGANS if region != "heart"}
    hu_of["heart"] = inner.hu["muscle"]
    found += findings.draw_lesions(canvas, finding_range, hu_of, lesions, texture)
    body.draw_table(canvas, habitus, profile.couch_hu)

    hu = scanner.scan(canvas.hu, profile, grain)
    name = f"phantom-{seed}-{index:05d}"
    attributes = _attributes(canvas, habitus, inner, scanner_name)
    labels, affine = canvas.labels, canvas.affine()
    if pose.prone:  # drawn as it lies in the scanner; turned to the patient's own axes
        hu, labels = (np.ascontiguousarray(array[:, ::-1, ::-1]) for array in (hu, labels))
        affine = grid.shifted(affine, [0, shape[1] - 1, shape[2] - 1]) @ np.diag([1.0, -1.0, -1.0, 1.0])
        found = [finding.turned() for finding in found]
    return assembled(name, hu, labels, affine, tuple(found), pose, attributes)


def assembled(name, hu, labels, affine, found, pose, attributes) -> Patient:
    """A patient from arrays, as they come from the drawing or from the cache."""
    present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    names = {i: name for i, name in anatomy.vocabulary("vista3d").items() if i in present}
    volume = Volume(hu.astype(np.float32), affine, name=name)
    return Patient(name, volume, LabelMap(labels, affine, names), found, pose, attributes)


def _attributes(canvas: Canvas, habitus: body.Habitus, inner: organs.Organs, scanner_name: str) -> dict:
    return {
        "phase": inner.phase,
        "contrast": inner.phase != "non-contrast",
        "scanner": scanner_name,
        "cardiomegaly": inner.enlarged,
        "heart_scale": round(inner.heart_scale, 3),
        "cardiothoracic_ratio": _cardiothoracic_ratio(canvas),
        "fat_mm": round(habitus.fat_mm * canvas.pose.scale, 1),
        "prone": canvas.pose.prone,
    }


def _cardiothoracic_ratio(canvas: Canvas) -> float:
    """Greatest width of the heart over that of both lungs, as on a chest film; 0 if either is outside the field."""
    heart = canvas.labels == anatomy.structure("heart").vista3d
    lungs = (canvas.labels >= 28) & (canvas.labels <= 32)
    widths = [np.flatnonzero(mask.any(axis=(0, 1))) for mask in (heart, lungs)]
    if min(w.size for w in widths) == 0:
        return 0.0
    return round(float((widths[0][-1] - widths[0][0] + 1) / (widths[1][-1] - widths[1][0] + 1)), 3)


def fingerprint(drawn: Patient) -> str:
    """SHA-256 of the integer HU and the labels: 64 hexadecimal digits, the same on any machine."""
    digest = hashlib.sha256(drawn.hu.astype("<i2").tobytes())
    digest.update(drawn.labels.labels.astype("<u2").tobytes())
    return digest.hexdigest()
