"""The two real CTs of the assets, with all their masks on one grid, and the records that these can answer.

Both are out of distribution for whatever was trained on phantoms. Both come with masks that models made
(TotalSegmentator), not radiologists; the lungs of the chest CT are a threshold's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctvlm_lib import assets, mask, segment, volume
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.measured import ask_about
from ctvlm_lib.records.measured_survey import Box, survey
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume


@dataclass(frozen=True)
class RealCase:
    """A real CT.

    Attributes:
        name: "real-abdomen" or "real-chest"; the data set's name in its records.
        volume: the CT.
        labels: all its masks on the CT's grid, by canonical names.
        boxes: structure → the part of the CT's grid that its mask was drawn on; not there if it is all of it.
        note: what the masks are, and what isn't asked and why.
        records: one for each question; their paths are relative to the assets' folder.
    """

    name: str
    volume: Volume
    labels: LabelMap
    boxes: dict[str, Box]
    note: str
    records: list[Record]


def real_cases(seed: int = 0) -> list[RealCase]:
    """Load the abdomen CT and the chest CT angiogram and ask about both.

    Raises:
        BadInput: the assets aren't there and can't be fetched.
    """
    return [abdomen_case(seed), chest_case(seed)]


def abdomen_case(seed: int = 0) -> RealCase:
    """The abdomen and pelvis CT with its map of TotalSegmentator's classes, on its own grid."""
    folder = assets.path("abdomen_ct")
    ct = volume.load(folder / "ct.nii.gz")
    labels = mask.load(folder / "labels.nii.gz", like=ct)
    pancreas = f"its pancreas, {labels.volume_ml('pancreas'):.0f} mL, is smaller than an adult's usually is"
    said = f"masks by TotalSegmentator's fast model at 3 mm, not checked by a radiologist ({pancreas})"
    return _case("real-abdomen", "abdomen_ct", ct, labels, {}, "abdomen_ct/labels.nii.gz", said, seed)


def chest_case(seed: int = 0) -> RealCase:
    """The chest CT angiogram: heart on its grid, vessels and T12 on crops of it, lungs by a threshold."""
    folder = assets.path("chest_cta")
    ct = volume.load(folder / "ct.nii.gz")
    files = [*sorted((folder / "masks").glob("*.nii.gz")), folder / "parts" / "pulmonary_artery.nii.gz"]
    maps, boxes, paths = [], {}, {}
    for file in files:
        own = mask.load(file)
        (name,) = own.names.values()
        boxes[name], paths[name] = _box(own, ct), f"chest_cta/{file.relative_to(folder).as_posix()}"
        maps.append(own.to(ct))
    labels = merged([*maps, segment.lungs_by_threshold(ct)])
    paths |= {"left lung": None, "right lung": None}
    said = (
        "masks of heart, vessels and T12 by TotalSegmentator's models, most on crops of the CT; "
        f"{labels.notes[-1]}, in no file (mask is null); no mask was checked by a radiologist"
    )
    return _case("real-chest", "chest_cta", ct, labels, boxes, paths, said, seed)


def merged(maps: list[LabelMap]) -> LabelMap:
    """Join label maps on one grid; a mask that shares voxels with an earlier one is kept whole beside it."""
    first = maps[0]
    labels, names, overlapping = np.zeros(first.shape, np.uint16), {}, {}
    for one in maps:
        for name in one.names.values():
            key, found = len(names) + 1, one.binary(name) if name in one.present else np.zeros(first.shape, bool)
            names[key] = name
            if (labels[found] > 0).any():
                overlapping[name] = found
            labels[found & (labels == 0)] = key
    notes = tuple(note for one in maps for note in one.notes if "resampled" not in note)
    return LabelMap(labels, first.affine, names, first.orientation, notes, overlapping)


def _box(own: LabelMap, ct: Volume) -> Box:
    """The part of the CT's grid that a mask's own grid covers."""
    ends = [own.affine @ [*index, 1] for index in ((0, 0, 0), np.subtract(own.shape, 1))]
    corners = np.rint([ct.voxel_of(end[:3]) for end in ends]).astype(int)
    return tuple(slice(int(low), int(high) + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True))


def _case(
    name: str, folder: str, ct: Volume, labels: LabelMap, boxes: dict[str, Box], paths, said: str, seed: int
) -> RealCase:
    found = survey(ct, labels, boxes=boxes)
    records = ask_about(
        ct, labels, patient=name, dataset=name, volume_path=Path(folder, "ct.nii.gz").as_posix(), mask_path=paths,
        boxes=boxes, seed=seed, found=found,
    )  # fmt: skip
    note = "; ".join((said, *found.notes))
    return RealCase(name, ct, labels, boxes, note, records)
