"""The masks of one case of stage 1 on its CT's grid: anatomy as a label map, and the lesions beside it."""

from pathlib import Path

import numpy as np

from ctvlm_lib import mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.mask.labels import label_counts
from ctvlm_lib.records import rex_grounding
from ctvlm_lib.segment.class_maps import REX_CATEGORIES
from ctvlm_lib.volume import grid
from ctvlm_lib.volume.read import BROKEN, open_nifti

LARGEST_SHARE = 0.25  # of the lungs: in an adult, esophagus, trachea and thyroid gland together are a few per cent


def of_chest(ct: Path, masks: Path, anatomy_labels: Path, codes: dict[str, str]) -> tuple[LabelMap, dict]:
    """A scan of ReXGroundingCT.

    Args:
        ct: the CT, read for its grid only.
        masks: ReXGroundingCT's 4-D file.
        anatomy_labels: TotalSegmentator's file or folder.
        codes: number of a finding → code of its category.

    Returns:
        the anatomy, and lesion of the chest's class map → bool ``(D, H, W)``.

    Raises:
        BadInput: a file can't be read, or the files are of different scans.
    """
    lesions: dict[str, np.ndarray] = {}
    for number, code in codes.items():
        found = rex_grounding.finding_mask(masks, int(number), ct).labels > 0
        lesions[REX_CATEGORIES[code]] = lesions.get(REX_CATEGORIES[code], False) | found
    return of_totalsegmentator(anatomy_labels, grid_of(ct)), lesions


def of_abdomen(ct: Path, masks: Path) -> tuple[LabelMap, None]:
    """A case of AbdomenAtlas: its folder of masks, lesions among them.

    Raises:
        BadInput: as :func:`ctvlm_lib.mask.load`.
    """
    return mask.load(masks, like=grid_of(ct)), None


def of_totalsegmentator(path: Path, like: LabelMap) -> LabelMap:
    """TotalSegmentator's output, one file or a folder of masks, on a grid.

    A file without names in its header is taken for version 2's numbers. Version 1 gives the right lung the numbers that
    are esophagus, trachea and thyroid gland in 2: such a file is refused.

    Raises:
        BadInput: unreadable, labels that version 2 doesn't have, or version 1.
    """
    try:
        named = path.is_dir() or bool(mask.label_table(path))
    except BROKEN:  # read again below, where the reason is told
        named = False
    found = mask.load(path, like=like, names=None if named else "totalsegmentator")
    if not named:
        _check_version(found, path.name)
    return found


def grid_of(ct: Path) -> LabelMap:
    """An empty label map on a CT's grid, from the header alone.

    Raises:
        BadInput: not a readable NIfTI.
    """
    try:
        image = open_nifti(ct, header_only=True)
        array, affine, orientation = grid.from_nifti(np.broadcast_to(np.uint16(0), image.shape[:3]), image.affine)
    except BROKEN as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{ct.name} is not a readable NIfTI file: {error}; fetch it again") from error
    return LabelMap(array, affine, {}, orientation)


def _check_version(found: LabelMap, file: str) -> None:
    counts = label_counts(found.labels, minlength=max(found.names) + 1)
    size = {name: counts[key] for key, name in found.names.items()}
    lungs = sum(count for name, count in size.items() if name.endswith("lobe"))
    if size["esophagus"] + size["trachea"] + size["thyroid gland"] > LARGEST_SHARE * lungs:
        raise BadInput(
            f"{file}: by version 2's numbers, esophagus, trachea and thyroid gland are more than {LARGEST_SHARE:.0%} of"
            " the lungs; if it is of TotalSegmentator 1, segment the CT anew"
        )
