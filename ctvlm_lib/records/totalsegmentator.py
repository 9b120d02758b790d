"""The TotalSegmentator data set: CTs of all body parts, each with a binary mask for every structure.

Layout, below the folder::

    meta.csv                                separated by semicolons: image_id, …, split (train, val, test), …
    s0000/ct.nii.gz
    s0000/segmentations/spleen.nii.gz …     117 in version 2, 104 in version 1; empty where the structure isn't in view

It has no texts. Its masks answer one kind of question for certain: whether a structure is in the scan. In some cases
the masks' sform differs from the CT's (issue 33): load them with ``mask.load(path, like=volume)``.

Sources: the data set's record at Zenodo (10047292 for version 2); TotalSegmentator at 2.18.0.
"""

from pathlib import Path

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import load
from ctvlm_lib.volume.read import read_nifti

STRUCTURES = ("liver", "spleen", "left kidney", "right kidney", "heart", "brain", "bladder")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read(
    folder: str | Path, split: str | None = None, *, structures: tuple[str, ...] = STRUCTURES,
    check_volumes: bool = False,
) -> table.Reading:  # fmt: skip
    """Ask of each CT that is there whether it shows each of some structures; the masks are opened to answer.

    Args:
        folder: the folder with ``meta.csv``.
        split: "train", "validation" or "test"; all by default.
        structures: names that :mod:`ctvlm_lib.anatomy` knows and TotalSegmentator has a mask of.
        check_volumes: read every CT to its end, so that a damaged one is listed (slow).

    Returns:
        The reading; ``mask`` is None where the structure isn't in the scan.

    Raises:
        BadInput: no meta.csv, a column is missing, an unknown split, a structure without a TotalSegmentator name.
    """
    folder = table.existing_folder(folder)
    if not (folder / "meta.csv").is_file():
        raise BadInput(f"{folder} holds no meta.csv; give the folder with meta.csv and s0000, s0001 …")
    wanted = table.wanted_splits(split, tuple(_SPLITS.values()))
    file_of = {anatomy.structure(name).name: _file_name(name) for name in structures}
    subjects, notes = table.by_key(folder / "meta.csv", ("split",), "image_id", delimiter=";")
    volumes = table.Files(folder, check=(lambda path: load(path, check=False)) if check_volumes else None)
    masks = table.Files(folder)
    refused: dict[str, str] = {}
    records = []
    for subject, row in subjects.items():
        if row["split"] not in _SPLITS:
            raise BadInput(f"meta.csv: the split of {subject} is {row['split']!r}; train, val or test is expected")
        if _SPLITS[row["split"]] in wanted:
            records += _subject(subject, _SPLITS[row["split"]], file_of, volumes, masks, refused)
    missing = dict(volumes.missing + masks.missing)
    unreadable = volumes.unreadable | masks.unreadable
    notes += table.refused_note(refused)
    return table.Reading("TotalSegmentator", folder, records, missing, unreadable, tuple(notes))


def _file_name(name: str) -> str:
    found = anatomy.structure(name)
    if not found.totalsegmentator:
        raise BadInput(f"TotalSegmentator has no mask called {found.name}; take its parts, or another structure")
    return f"{found.totalsegmentator}.nii.gz"


def _subject(
    subject: str, split: str, file_of: dict[str, str], volumes: table.Files, masks: table.Files, refused: dict[str, str]
) -> list[Record]:
    volume = volumes.find(f"{subject}/ct.nii.gz", count=len(file_of))
    made = []
    for name, file in file_of.items() if volume else ():
        path = masks.find(f"{subject}/segmentations/{file}")
        present = None if path is None else _has_voxels(path, masks)
        if present is None:
            continue
        record = table.make_record(
            refused, f"{subject}, {file}", id=f"totalsegmentator:{subject}:{name}", dataset="TotalSegmentator",
            patient=subject, split=split, volume=volume, mask=path if present else None, region=name, kind="presence",
            form="closed", question=f"Does this CT show the {name}?", answer="Yes" if present else "No",
            names_region=True,
        )  # fmt: skip
        made += [record] if record else []
    return made


def _has_voxels(path: str, masks: table.Files) -> bool | None:
    """Whether a mask has any voxel; None, and listed as unreadable, if it can't be read."""
    try:
        return bool(np.any(read_nifti(masks.folder / path, None)[0]))
    except BadInput as problem:
        masks.unreadable[path] = str(problem)
        return None
