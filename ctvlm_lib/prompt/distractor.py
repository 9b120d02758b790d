"""Choose the region of the red box: plausible, elsewhere, and never part of the region that is asked about."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box
from ctvlm_lib.mask.labels import label_counts
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
        shared_slices: share of the region's axial slices that it lies on too, 0…1; on the others no red box is seen.
        box_overlap: intersection over union of the two 3-D bounding boxes, 0…1. The boxes may cross where the
            structures don't.
    """

    name: str
    mask: np.ndarray
    rule: str
    reason: str
    distance_mm: float
    shared_slices: float
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
    minimum_shared: float = 0.0,
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
        minimum_shared: structures that lie on a smaller share of the region's slices are no candidates, 0…1.

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
    candidates = [
        name
        for name in _candidates(labels, region, minimum_voxels)
        if minimum_shared == 0 or _shared_slices(region, labels.binary(name)) >= minimum_shared
    ]
    if not candidates:
        on = f", on {minimum_shared:.0%} of its slices" if minimum_shared else ""
        raise BadInput(
            f"no structure beside {roi!r} has {minimum_voxels} voxels and shares none with it{on}, so there is no"
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
    size = label_counts(labels.labels, max(labels.names, default=0) + 1)
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
    from scipy.spatial import cKDTree

    tree = cKDTree(_surface_mm(region, labels.spacing_mm))
    return {name: float(tree.query(_surface_mm(labels.binary(name), labels.spacing_mm))[0].min()) for name in names}


def _surface_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Positions ``(n, 3)``, mm along the array's axes, of the voxels with a face to the outside.

    The nearest voxels of two disjoint structures are among them: from any other one, a step towards the other
    structure stays inside. A distance map of a whole CT with 512×512×600 voxels would take 8 GB instead.
    """
    from scipy import ndimage

    box = bounding_box(mask)
    inside = mask[box]
    surface = inside & ~ndimage.binary_erosion(inside)  # beyond the box is outside
    return (np.argwhere(surface) + [s.start for s in box]) * np.asarray(spacing_mm)


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
    difference = f"its mean {abs(hu):.0f} HU {'higher' if hu >= 0 else 'lower'}"
    return name, f"most like {roi} of {len(candidates)} structures: {difference}, {ratio:.2f} times its volume"


def _result(labels: LabelMap, region, name: str, rule: str, reason: str, gap: float) -> Distractor:
    mask = labels.binary(name)
    shared = _shared_slices(region, mask)
    text = f"{name}: {reason}, {gap:.1f} mm away, on {shared:.0%} of its slices"
    return Distractor(name, mask, rule, text, gap, shared, _box_overlap(region, mask))


def _shared_slices(region: np.ndarray, mask: np.ndarray) -> float:
    """Share of the region's axial slices on which the other structure lies too."""
    slices, others = (m.any(axis=(1, 2)) for m in (region, mask))
    return float(np.count_nonzero(slices & others) / np.count_nonzero(slices))


def _box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    boxes = [bounding_box(m) for m in (a, b)]
    volumes = [np.prod([s.stop - s.start for s in box]) for box in boxes]
    shared = np.prod([max(0, min(p.stop, q.stop) - max(p.start, q.start)) for p, q in zip(*boxes, strict=True)])
    return float(shared / (sum(volumes) - shared))
