"""ReXGroundingCT: findings of CT-RATE reports, each with the mask of what it describes.

Layout, below the folder; the CTs are CT-RATE's and lie in the same folder, in CT-RATE's layout::

    dataset.json        {"train": [{"name": "train_1741_b_2.nii.gz", "findings": {"0": "Nodule in …", …}, …}, …],
                         "val": […], "test": […]}
    segmentations/train_1741_b_2.nii.gz     4-D: (finding, x, y, z), 1 and above where the finding is
    dataset/train_fixed/train_1741/train_1741_b/train_1741_b_2.nii.gz

Its splits are its own: a scan of its validation or test may be a ``train_…`` of CT-RATE, which a model that was trained
on CT-RATE has seen. The masks of the test scans aren't public, and without a mask the question says nothing:
such findings are left out, and counted.

The first axis counts findings, so that a mask is no ordinary NIfTI of four dimensions and its affine isn't relied on:
:func:`finding_mask` takes the CT's, which has the same x, y and z.

Sources: rajpurkarlab/ReXGroundingCT on its hub (gated); the 4-D layout from torch-em's public loader.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import table
from ctvlm_lib.records.ct_rate import NAME, places
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import grid
from ctvlm_lib.volume.read import BROKEN, open_nifti

QUESTION = "Describe the finding in the marked region."  # ours: the data set has findings, no questions
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def read(folder: str | Path, split: str | None = None) -> table.Reading:
    """Read the findings whose CT and mask are there.

    Args:
        folder: the folder with ``dataset.json``.
        split: "train", "validation" or "test"; all that the file has by default.

    Returns:
        The reading; a record's ``mask`` is the scan's 4-D file, and the finding's number stands last in its id:
        load it with :func:`finding_mask`.

    Raises:
        BadInput: no dataset.json, a split or key isn't in it, a scan stands twice in a split, a name isn't CT-RATE's.
    """
    folder = table.existing_folder(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise BadInput(f"{folder} holds no dataset.json; give the folder of ReXGroundingCT that holds it")
    lists = table.read_json(path, dict)
    there = tuple(name for name, key in _SPLITS.items() if isinstance(lists.get(key), list))
    if not there:
        raise BadInput(f"dataset.json has none of the lists train, val and test; it has {table.some(lists)}")
    volumes, masks = table.Files(folder), table.Files(folder)
    refused: dict[str, str] = {}
    records: list[Record] = []
    for name in table.wanted_splits(split, there):
        for scan, findings in _scans(lists[_SPLITS[name]], name):
            records += _findings(scan, findings, name, volumes, masks, refused)
    missing = dict(volumes.missing + masks.missing)
    notes = (*table.refused_note(refused), *table.crossing_note(records))
    return table.Reading("ReXGroundingCT", folder, records, missing, volumes.unreadable | masks.unreadable, notes)


def finding_mask(path: str | Path, number: int, ct: str | Path) -> LabelMap:
    """Load the mask of one finding.

    Args:
        path: the scan's file of masks.
        number: the finding's, as in ``findings``.
        ct: the scan's CT file, for the geometry.

    Returns:
        A label map on the CT's own grid with the one structure "finding"; its separate parts are one.

    Raises:
        BadInput: a file can't be read, there is no such finding, or the two don't have the same size.
    """
    path, ct = Path(path), Path(ct)
    try:
        masks, image = open_nifti(path), open_nifti(ct, header_only=True)
        if len(masks.shape) != 4 or not 0 <= number < masks.shape[0]:
            raise BadInput(
                f"{path.name} has shape {masks.shape}; (finding, x, y, z) with a finding {number} is expected"
            )
        if masks.shape[1:] != image.shape[:3]:
            raise BadInput(
                f"{path.name} has shape {masks.shape} and {ct.name} {image.shape}: they are of different scans"
            )
        array, affine, orientation = grid.from_nifti(np.asarray(masks.dataobj[number]) > 0, image.affine)
    except BROKEN as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path.name} or {ct.name} is not a readable NIfTI file: {error}; fetch it again") from error
    return LabelMap(np.ascontiguousarray(array, np.uint16), affine, {1: "finding"}, orientation)


def _scans(entries: list, split: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The plain name of each scan, such as train_1741_b_2, and its findings."""
    seen: Counter[str] = Counter()
    for entry in entries:
        name, findings = (entry.get("name"), entry.get("findings")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(findings, dict) or not NAME.fullmatch(name):
            raise BadInput(
                f"dataset.json: an entry of {split} is {str(entry)[:80]}; a CT-RATE name and findings are expected"
            )
        seen[name] += 1
        if seen[name] > 1:
            raise BadInput(f"dataset.json: {name} stands twice in {split}; remove one")
        yield name.removesuffix(".nii.gz"), findings


def _findings(
    scan: str, findings: dict[str, str], split: str, volumes: table.Files, masks: table.Files, refused: dict[str, str]
) -> list[Record]:
    base = "dataset/" if (volumes.folder / "dataset").is_dir() else ""
    patient, candidates = places(scan, base)
    volume = volumes.find(*candidates, count=len(findings))
    mask = masks.find(f"segmentations/{scan}.nii.gz", count=len(findings))
    if volume is None or mask is None:
        return []
    made = [
        table.make_record(
            refused, f"dataset.json, {scan}, finding {number}", id=f"rex-grounding:{scan}:{number}",
            dataset="ReXGroundingCT", patient=patient, split=split, volume=volume, mask=mask, kind="report",
            form="open", question=QUESTION, answer=text,
        )
        for number, text in findings.items()
    ]  # fmt: skip
    return [record for record in made if record]
