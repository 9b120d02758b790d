"""What a CT's masks can be asked for: which structures are whole, on their side, certainly in view or certainly not."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box, largest_component
from ctvlm_lib.volume import Volume

Box = tuple[slice, slice, slice]
MINIMUM_ML = 2.0  # less is a branch that nobody could name
CUT_MINIMUM_ML = 5.0  # less is a sliver at the border of the field
MINIMUM_VOXELS = 150  # fewer are mostly surface: their volume depends on the grid
MIDLINE_MARGIN_MM = 5.0
BODY_HU = -300
FAR_LEVELS = 3  # vertebrae between the field and what certainly isn't in it
SPINE = tuple(f"vertebrae {part}{n}" for part, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count + 1))
SPINE = (*SPINE, "vertebrae S1")
LEVELS = {  # the vertebrae that a structure reaches from and to in an adult, generously
    "brain": ("C1", "C1"), "skull": ("C1", "C3"), "thyroid gland": ("C4", "T2"), "trachea": ("C5", "T6"),
    "left common carotid artery": ("C2", "T5"), "right common carotid artery": ("C2", "T4"),
    "left clavicula": ("C6", "T4"), "right clavicula": ("C6", "T4"), "brachiocephalic trunk": ("T1", "T5"),
    "left subclavian artery": ("C7", "T5"), "right subclavian artery": ("C7", "T5"),
    "left brachiocephalic vein": ("T1", "T5"), "right brachiocephalic vein": ("T1", "T5"),
    "superior vena cava": ("T2", "T8"), "left atrial appendage": ("T4", "T8"), "pulmonary artery": ("T3", "T8"),
    "liver": ("T6", "L4"), "spleen": ("T7", "L4"), "pancreas": ("T11", "L4"), "left kidney": ("T10", "L5"),
    "right kidney": ("T10", "L5"), "sacrum": ("L5", "S1"), "bladder": ("L4", "S1"), "prostate": ("S1", "S1"),
    "left femur": ("S1", "S1"), "right femur": ("S1", "S1"), "left iliac artery": ("L3", "S1"),
    "right iliac artery": ("L3", "S1"), "left iliac vena": ("L3", "S1"), "right iliac vena": ("L3", "S1"),
    "left hip": ("L3", "S1"), "right hip": ("L3", "S1"),
}  # fmt: skip
APART = {  # parts that some vocabularies label apart from the whole, which then isn't whole
    "sacrum": "vertebrae S1", "left kidney": "left kidney cyst", "right kidney": "right kidney cyst",
    "heart": "left atrial appendage",
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        volume_ml: structure → mL of its mask, for all that are asked about.
        middle_mm: structure → centre of its mask, LPS mm (x, y, z).
        whole: those whose mask is a whole structure, so that its volume means something.
        side: structure → "left" or "right", for pairs of which both lie on their side.
        absent: structures of the vocabulary that are certainly out of the field.
        notes: what was left out and why.
    """

    volume_ml: dict[str, float]
    middle_mm: dict[str, np.ndarray]
    whole: tuple[str, ...]
    side: dict[str, str]
    absent: tuple[str, ...]
    notes: tuple[str, ...]


def survey(
    volume: Volume, labels: LabelMap, regions: Collection[str] | None = None, boxes: Mapping[str, Box] | None = None
) -> Survey:
    """Measure the masks of one CT.

    Args:
        volume: the CT, for the body's midline.
        labels: masks on its grid.
        regions: the structures to ask about; by default all with voxels that have a canonical name and aren't lesions.
        boxes: structure → the part of the grid that its mask was drawn on, where that isn't all of it.

    Raises:
        BadInput: masks on another grid, or a region without voxels.
    """
    if labels.shape != volume.shape:
        raise BadInput(f"the masks are {labels.shape} but the volume is {volume.shape}; use labels.to(volume)")
    known, notes = anatomy.structures(), []
    there = [n for n in labels.present if n in known and known[n].group != "lesion"] if regions is None else regions
    masks = {anatomy.structure(name).name: labels.binary(name) for name in there}
    sizes = {name: labels.volume_ml(name) for name in masks}
    cut = {name for name, mask in masks.items() if touches_border(mask, (boxes or {}).get(name))}
    small = sorted(name for name in masks if sizes[name] < (CUT_MINIMUM_ML if name in cut else MINIMUM_ML))
    if small:
        limits = f"under {MINIMUM_ML:g} mL, or {CUT_MINIMUM_ML:g} mL if cut by the border of the field"
        notes.append(f"{limits}, not asked about: {', '.join(small)}")
    masks = {name: mask for name, mask in sorted(masks.items()) if name not in small}
    middles = {name: volume.mm_of(np.argwhere(mask).mean(axis=0)) for name, mask in masks.items()}
    side, wrong = _sides(volume, masks, middles, notes)
    masks = {name: mask for name, mask in masks.items() if name not in wrong}
    cut &= set(masks)
    notes += [f"cut by the border of the field, not asked for volume: {', '.join(sorted(cut))}"] if cut else []
    large = {name for name, mask in masks.items() if np.count_nonzero(mask) >= MINIMUM_VOXELS}
    present = set(labels.present)
    whole = tuple(n for n in masks if n in large - cut and _has_volume(n, present))
    return Survey(
        {name: sizes[name] for name in masks}, {name: middles[name] for name in masks}, whole, side,
        _absent(labels), tuple(notes),
    )  # fmt: skip


def touches_border(mask: np.ndarray, box: Box | None = None) -> bool:
    """Whether a mask reaches the first or last plane, along any axis, of the grid or of a box within it."""
    found = bounding_box(mask)
    if found is None:
        return False
    limits = [s.indices(n)[:2] for s, n in zip(box or (slice(None),) * 3, mask.shape, strict=True)]
    return any(s.start <= low or s.stop >= high for s, (low, high) in zip(found, limits, strict=True))


def partner(name: str) -> str | None:
    """The structure of the other side: "left kidney" → "right kidney"; None for one that isn't paired."""
    swap = {"left": "right", "right": "left"}
    other = re.sub(r"\b(left|right)\b", lambda match: swap[match[0]], name)
    known = anatomy.structures()
    paired = other != name and other in known and known[name].side == swap.get(known[other].side or "")
    return other if paired else None


def _sides(volume: Volume, masks: dict, middles: dict, notes: list[str]) -> tuple[dict[str, str], set[str]]:
    """Structure → side where both of a pair lie on theirs; and the pairs of which one doesn't."""
    body = _body_sums(largest_component(volume.hu > BODY_HU))
    away = {name: _from_midline_mm(volume, body, masks[name], middles[name]) for name in masks if partner(name)}
    sign = {"left": 1, "right": -1}  # x grows to the patient's left in LPS
    right = {n: mm * sign[anatomy.structure(n).side] > MIDLINE_MARGIN_MM for n, mm in away.items()}
    wrong = {name for name, fits in right.items() if not fits}
    for name in sorted(wrong):
        where = f"{abs(away[name]):.0f} mm to the patient's {'left' if away[name] > 0 else 'right'} of the midline"
        notes.append(f"{name} lies {where}; neither it nor {partner(name)} is asked about")
    wrong |= {partner(name) for name in wrong}
    pairs = [name for name in away if name not in wrong and partner(name) in away]
    return {name: anatomy.structure(name).side for name in pairs}, wrong


def _from_midline_mm(volume: Volume, body: np.ndarray, mask: np.ndarray, middle: np.ndarray) -> float:
    """How far a structure's centre lies to the patient's left of the body's centre, in the slices that it is on."""
    count, *sums = body[bounding_box(mask)[0]].sum(axis=0)
    return float(middle[0] - volume.mm_of(np.array(sums) / count)[0]) if count else 0.0


def _body_sums(body: np.ndarray) -> np.ndarray:
    """For each slice the number of the body's voxels, and the sums of their indices: ``(D, 4)`` float64."""
    depth, height, width = body.shape
    rows, columns = body.sum(axis=2), body.sum(axis=1)
    count = rows.sum(axis=1)
    sums = (count * np.arange(depth), rows @ np.arange(height), columns @ np.arange(width))
    return np.stack((count, *sums), axis=1).astype(np.float64)


def _has_volume(name: str, present: set[str]) -> bool:
    """Not a vessel, whose mask ends where its model stops; not a whole without its part, nor such a part."""
    vessel = anatomy.structure(name).group == "heart and vessels" and name != "heart"
    return not vessel and APART.get(name) not in present and name not in APART.values()


def _absent(labels: LabelMap) -> tuple[str, ...]:
    """Structures that the masks' vocabulary has, that have no voxel, and that lie far from the vertebrae in view."""
    present, names = set(labels.present), set(labels.names.values())
    seen = [SPINE.index(name) for name in SPINE if name in present]
    if not seen:
        return ()
    top, bottom = min(seen), max(seen)
    # the field ends here only if the next vertebra was looked for, or if the last one is cut
    top_known = top == 0 or SPINE[top - 1] in names or bool(labels.binary(SPINE[top])[-1].any())
    last = bottom + 1 == len(SPINE)
    bottom_known = last or SPINE[bottom + 1] in names or bool(labels.binary(SPINE[bottom])[0].any())
    levels = {name: (name, name) for name in SPINE} | {
        name: tuple(f"vertebrae {level}" for level in pair) for name, pair in LEVELS.items()
    }
    above = {n for n, (_, low) in levels.items() if top_known and top - SPINE.index(low) >= FAR_LEVELS}
    below = {n for n, (high, _) in levels.items() if bottom_known and SPINE.index(high) - bottom >= FAR_LEVELS}
    return tuple(sorted((above | below) & names - present))
