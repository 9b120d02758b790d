"""AbdomenAtlas 3.0 Mini: abdominal CTs with reports and masks of organs and lesions.

Layout, below the folder, archives unpacked where they lay::

    AbdomenAtlas3.0MiniWithMeta.csv                  "BDMAP ID", "structured report", "narrative report",
        "fusion structured report", "fusion narrative report", "total liver lesion volume (cm^3)", … kidney …,
        … pancreatic …, and more
    TrainTestIDS/{IID,OOD}_{train,test}.csv          "BDMAP ID"
    image_only/BDMAP_00000001/ct.nii.gz
    mask_only/BDMAP_00000001/segmentations/liver.nii.gz, liver_lesion.nii.gz, kidney_left.nii.gz …     (41 names)

The reports were written from the masks, the fusion ones with a radiologist's notes as well: text and mask aren't
independent evidence. There are two published splits, in distribution (IID, about 90:10) and out of it (OOD); neither
has a validation part. The set joins several public ones, and nothing says which cases are one patient's: each case
counts as its own patient.

Sources: AbdomenAtlas/AbdomenAtlas3.0Mini on its hub; RadGPT at 0c368d4, AbdomenAtlas at 6e00bb2.
"""

from collections.abc import Iterator
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import load

TABLE = "AbdomenAtlas3.0MiniWithMeta.csv"
REPORTS = ("structured report", "narrative report", "fusion structured report", "fusion narrative report")
ORGANS = {"liver": "liver", "kidney": "kidney", "pancreas": "pancreatic"}  # organ: its word in the columns
REPORT_QUESTION = "Describe the findings of this abdominal CT."
_ID = "BDMAP ID"


def read(
    folder: str | Path, split: str | None = None, *, report: str = "narrative report", shift: str = "IID",
    check_volumes: bool = False,
) -> table.Reading:  # fmt: skip
    """Read a report, and for three organs whether there is a lesion and how large, of the cases that are there.

    Args:
        folder: the folder with the table.
        split: "train" or "test"; both by default.
        report: the column that the report is taken from, one of ``REPORTS``.
        shift: the published split to follow, "IID" or "OOD".
        check_volumes: read every CT to its end, so that a damaged one is listed (slow).

    Returns:
        The reading; the mask of a question on an organ is the case's folder of masks.

    Raises:
        BadInput: the table or the split's lists aren't there, a column is missing, a case stands twice with different
            contents or in both lists.
    """
    folder = table.existing_folder(folder)
    if report not in REPORTS or shift not in ("IID", "OOD"):
        raise BadInput(f"report={report!r}, shift={shift!r}: choose one of {', '.join(REPORTS)}; IID or OOD")
    path = folder / TABLE
    if not path.is_file():
        raise BadInput(f"{folder} holds no {TABLE}; give the folder of AbdomenAtlas 3.0 Mini that holds it")
    columns = (report, *(_column(word) for word in ORGANS.values()))
    cases, notes = table.by_key(path, columns, _ID)
    home = _homes(folder, shift)
    files = table.Files(folder, check=(lambda file: load(file, check=False)) if check_volumes else None)
    refused: dict[str, str] = {}
    records = []
    for name in table.wanted_splits(split, ("train", "test")):
        for case in (case for case in cases if home.get(case) == name):
            records += [record for record in _case(case, cases[case], name, report, files, refused) if record]
    outside = sum(case not in home for case in cases)
    if outside:
        notes.append(f"{table.plural(outside, 'case')} in neither list of the {shift} split, left out")
    notes += table.refused_note(refused)
    return table.Reading("AbdomenAtlas 3.0", folder, records, dict(files.missing), files.unreadable, tuple(notes))


def _homes(folder: Path, shift: str) -> dict[str, str]:
    """Case → split of the published lists."""
    home: dict[str, str] = {}
    for split in ("train", "test"):
        path = folder / "TrainTestIDS" / f"{shift}_{split}.csv"
        for line, row in table.rows(path, (_ID,)):
            if home.setdefault(row[_ID], split) != split:
                raise BadInput(f"{path.name}, line {line}: {row[_ID]} is in the list of {home[row[_ID]]} too")
    return home


def _case(
    case: str, row: dict[str, str], split: str, report: str, files: table.Files, refused: dict[str, str]
) -> Iterator[Record | None]:
    asked = [("report", None, "open", REPORT_QUESTION, row[report])] if row[report] else []
    for organ, word in ORGANS.items():
        asked += _about(organ, row[_column(word)], f"{TABLE}, {case}, {_column(word)}")
    volume = files.find(f"image_only/{case}/ct.nii.gz", count=len(asked))
    if volume is None:
        return
    masks = f"mask_only/{case}/segmentations"
    there = (files.folder / masks).is_dir()
    for kind, organ, form, question, answer in asked:
        if organ and not there:
            files.missing[masks] += 1
        yield table.make_record(
            refused, f"{TABLE}, {case}", id=f"abdomen-atlas:{case}:{kind}:{organ or 'all'}", dataset="AbdomenAtlas 3.0",
            patient=case, split=split, volume=volume, mask=masks if organ and there else None, region=organ, kind=kind,
            form=form, question=question, answer=answer, names_region=organ is not None,
        )  # fmt: skip


def _about(organ: str, cell: str, where: str) -> Iterator[tuple[str, str, str, str, str]]:
    """(kind, region, form, question, answer) on an organ's lesions; nothing where the cell is empty."""
    if not cell:
        return
    try:
        volume = float(cell)
    except ValueError:
        raise BadInput(f"{where}: {cell!r} is no volume in cm^3") from None
    yield "presence", organ, "closed", f"Does the {organ} show a lesion?", "Yes" if volume > 0 else "No"
    if volume > 0:
        yield "size", organ, "open", f"How large are the lesions of the {organ} together?", f"{volume:g} cm^3"


def _column(word: str) -> str:
    return f"total {word} lesion volume (cm^3)"
