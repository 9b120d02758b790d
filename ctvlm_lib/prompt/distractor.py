"""Choose the region of the red box: plausible, elsewhere, and never part of the region that is asked about."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box
from ctvlm_lib.volume import Volume

RULES = ("nearest", "similar", "random")


@dataclass(frozen=True, eq=False)
class Distractor:
    """A chosen distractor and why it was chosen.

    Attributes:
        name: its canonical name.
        mask: bool ``(D, H, W)``; shares no voxel with the region.
        rule: ``nearest``, ``similar``, ``random`` or ``named``.
        reason: one sentence with the numbers that decided.
        distance_mm: smallest distance between voxel centres of the two, mm.
        box_overlap: intersection over union of the two 3-D bounding boxes, 0…1. The boxes may cross where the
            structures don't.
    """

    name: str
    mask: np.ndarray
    rule: str
    reason: str
    distance_mm: float
    box_overlap: float

    def __repr__(self) -> str:
        return f"Distractor({self.reason})"


def choose(
    labels: LabelMap,
    roi: str,
    how: str = "nearest",
    volume: Volume | None = None,
    seed: int = 0,
    minimum_voxels: int = 10,
) -> Distractor:
    """Choose a distractor for a region among the other structures of the same patient.

    Args:
        labels: the patient's structures.
        roi: the region that the question asks about.
        how: ``"nearest"`` (smallest gap), ``"similar"`` (closest in mean HU and size; needs ``volume``), ``"random"``,
            or a structure's name.
        volume: the CT on the same grid, read by ``"similar"``.
        seed: of ``"random"``.
        minimum_voxels: smaller structures are no candidates.

    Returns:
        The distractor, its mask and the reason.

    Raises:
        BadInput: no candidate is left, the named one shares voxels with the region, or ``volume`` is missing.

    Source: dualbox.txt §3.1: "a different anatomical structure, often one that is nearby or visually similar"; how to
        choose is not stated.
    """
    region = labels.binary(roi)
    if how not in RULES:
        return _named(labels, roi, region, how)
    candidates = _candidates(labels, region, minimum_voxels)
    if not candidates:
        raise BadInput(
            f"no structure beside {roi!r} has {minimum_voxels} voxels and shares none with it, so there is no"
            " distractor; give other masks"
        )
    gaps = _gaps_mm(labels, region, candidates)
    if how == "nearest":
        name = min(candidates, key=lambda n: (gaps[n], n))
        reason = f"nearest of {len(candidates)} structures to {roi}"
    elif how == "random":
        name = candidates[int(np.random.default_rng(seed).integers(len(candidates)))]
        reason = f"drawn at random (seed {seed}) from {len(candidates)} structures beside {roi}"
    else:
        name, reason = _most_alike(labels, roi, region, candidates, volume)
    return _result(labels, region, name, how, reason, gaps[name])


def _named(labels: LabelMap, roi: str, region: np.ndarray, name: str) -> Distractor:
    mask = labels.binary(name)
    shared = int(np.count_nonzero(mask & region))
    if shared:
        raise BadInput(
            f"{name!r} shares {shared} voxels with {roi!r}, so it can't be its distractor;"
            f" choose another, or one of {', '.join(RULES)}"
        )
    gap = _gaps_mm(labels, region, [name])[name]
    return _result(labels, region, name, "named", f"named by the user for {roi}", gap)


def _candidates(labels: LabelMap, region: np.ndarray, minimum_voxels: int) -> list[str]:
    """Structures large enough that share no voxel with the region, in alphabetical order."""
    size = np.bincount(labels.labels.reshape(-1), minlength=max(labels.names, default=0) + 1)
    within = np.bincount(labels.labels[region], minlength=size.size)
    names = []
    for key, name in sorted(labels.names.items(), key=lambda item: item[1]):
        whole = labels.overlapping.get(name)
        voxels, shared = (size[key], within[key]) if whole is None else (whole.sum(), (whole & region).sum())
        if voxels >= minimum_voxels and shared == 0:
            names.append(name)
    return names


def _gaps_mm(labels: LabelMap, region: np.ndarray, names: list[str]) -> dict[str, float]:
    """Smallest distance from each structure's voxels to the region's, mm."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(~region, sampling=labels.spacing_mm)
    return {name: float(distance[labels.binary(name)].min()) for name in names}


def _most_alike(
    labels: LabelMap, roi: str, region: np.ndarray, candidates: list[str], volume: Volume | None
) -> tuple[str, str]:
    """The candidate with the smallest distance in (mean HU / 100 HU, ln volume)."""
    if volume is None:
        raise BadInput("to choose the most similar structure the CT is needed; pass volume=")
    if volume.shape != labels.shape:
        raise BadInput(
            f"the masks are {labels.shape} but the volume is {volume.shape}; put them on its grid with to(volume)"
        )
    mean, size = float(volume.hu[region].mean()), int(region.sum())
    found = {}
    for name in candidates:
        mask = labels.binary(name)
        hu, ratio = float(volume.hu[mask].mean()) - mean, float(mask.sum()) / size
        found[name] = (np.hypot(hu / 100, np.log(ratio)), hu, ratio)
    name = min(candidates, key=lambda n: (found[n][0], n))
    _, hu, ratio = found[name]
    return name, f"most like {roi} of {len(candidates)} structures: mean {hu:+.0f} HU, {ratio:.2f} times its volume"


def _result(labels: LabelMap, region, name: str, rule: str, reason: str, gap: float) -> Distractor:
    mask = labels.binary(name)
    return Distractor(name, mask, rule, f"{name}: {reason}, {gap:.1f} mm away", gap, _box_overlap(region, mask))


def _box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    boxes = [bounding_box(m) for m in (a, b)]
    volumes = [np.prod([s.stop - s.start for s in box]) for box in boxes]
    shared = np.prod([max(0, min(p.stop, q.stop) - max(p.start, q.start)) for p, q in zip(*boxes, strict=True)])
    return float(shared / (sum(volumes) - shared))
