"""CT-RATE: chest CTs with reports and 18 abnormality labels, in both of its generations.

Layout, below the folder or its sub-folder ``dataset``::

    radiology_text_reports/{train,validation}_reports.csv
        VolumeName, ClinicalInformation_EN, Technique_EN, Findings_EN, Impressions_EN
    multi_abnormality_labels/{train,valid}_predicted_labels.csv       VolumeName and the 18 labels, 0 or 1
    metadata/{train,validation}_metadata.csv                          VolumeName, RescaleSlope, XYSpacing, ZSpacing …
    {train,valid}[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz        split_patient_scan_reconstruction

Two traps. The tables of the second split are called ``validation``, but its labels, folders and volumes ``valid``.
And the first generation holds stored values, to be rescaled by the metadata, while ``*_fixed`` is in HU already:
rescaling it again is the error most often met with this data set; :func:`load_volume` can't make it.

Sources: the data set's repository on its hub (ibrahimhamamci/CT-RATE); CT-CLIP at a2a155c, issues 28 and 50.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ctvlm_lib import volume
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.ct_rate_volume import METADATA_COLUMNS, load_volume
from ctvlm_lib.records.record import Record

__all__ = ["LABELS", "REPORT_QUESTION", "labels", "load_volume", "metadata", "places", "read", "reports"]

LABELS = (  # verbatim and in the published order
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
REPORT_QUESTION = "Describe the findings of this chest CT."
_REPORT_COLUMNS = ("ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
_SHORT = {"train": "train", "validation": "valid"}
NAME = re.compile(r"(train|valid)(?:ation)?_(\d+)_([a-z]+)_(\d+)(?:\.nii(?:\.gz)?)?")


def read(folder: str | Path, split: str | None = None, *, check_volumes: bool = False) -> table.Reading:
    """Read reports and labels of the volumes that are there.

    A volume gives a report record (findings, then impression) and 18 yes/no records. Reconstructions of one scan share
    its report and its patient.

    Args:
        folder: CT-RATE's folder, or the one that holds ``dataset``.
        split: "train" or "validation"; both by default.
        check_volumes: read every volume to its end, so that a damaged one is listed (slow).

    Raises:
        BadInput: none of its tables is there; a column is missing or a label unknown; a volume stands in a table twice
            with different contents, or in the wrong split's table.
    """
    folder = table.existing_folder(folder)
    files = table.Files(folder, check=_read_through if check_volumes else None)
    records: list[Record] = []
    notes: list[str] = []
    refused: dict[str, str] = {}
    for name in table.wanted_splits(split, tuple(_SHORT)):
        records += [record for record in _read_split(folder, name, files, notes, refused) if record]
    notes += table.refused_note(refused)
    if not records and not files.missing and not files.unreadable:
        raise BadInput(
            f"{folder} holds no rows of CT-RATE; radiology_text_reports/train_reports.csv (or validation_reports.csv)"
            " or multi_abnormality_labels/train_predicted_labels.csv (or valid_…) is expected, in it or in dataset"
        )
    return table.Reading("CT-RATE", folder, records, dict(files.missing), files.unreadable, tuple(notes))


def metadata(folder: str | Path, split: str) -> dict[str, dict[str, str]]:
    """Read a split's metadata: volume name → row, for :func:`load_volume`.

    Raises:
        BadInput: no such split or file, or a column is missing.
    """
    folder = table.existing_folder(folder)
    (split,) = table.wanted_splits(split, tuple(_SHORT))
    path = folder / f"{_base(folder)}metadata" / f"{split}_metadata.csv"
    found, _ = table.by_key(path, METADATA_COLUMNS, "VolumeName")
    return {_parts(name, split, path.name)[0]: row for name, row in found.items()}


def reports(folder: str | Path, split: str) -> tuple[dict[str, str], list[str]]:
    """Volume name → its report, findings, then impression; and notes. A report that says neither isn't there.

    Raises:
        BadInput: no such split, a column is missing, or two rows of a volume that say different things.
    """
    path = _table_path(folder, split, "radiology_text_reports", "reports")
    notes: list[str] = []
    found = {name: _report_text(row) for name, row in _table_of(path, _REPORT_COLUMNS, split, notes).items()}
    return {name: text for name, text in found.items() if text}, notes


def labels(folder: str | Path, split: str) -> tuple[dict[str, tuple[bool, ...]], list[str]]:
    """Volume name → which of ``LABELS`` it has, in their order; and notes.

    Raises:
        BadInput: as :func:`reports`, an unknown label, or a cell that is neither 0 nor 1.
    """
    path = _table_path(folder, split, "multi_abnormality_labels", "predicted_labels")
    notes: list[str] = []
    found = _labels_of(path, split, notes)
    return {name: tuple(row[label] == "Yes" for label in LABELS) for name, row in found.items()}, notes


def _table_path(folder: str | Path, split: str, below: str, kind: str) -> Path:
    folder = table.existing_folder(folder)
    (split,) = table.wanted_splits(split, tuple(_SHORT))
    short = _SHORT[split] if kind == "predicted_labels" else split
    return folder / f"{_base(folder)}{below}" / f"{short}_{kind}.csv"


def _read_split(
    folder: Path, split: str, files: table.Files, notes: list[str], refused: dict[str, str]
) -> Iterator[Record | None]:
    base = _base(folder)
    reports_csv = _table_path(folder, split, "radiology_text_reports", "reports")
    told = _table_of(reports_csv, _REPORT_COLUMNS, split, notes)
    shown = _labels_of(_table_path(folder, split, "multi_abnormality_labels", "predicted_labels"), split, notes)
    silent, fixed, raw = 0, 0, 0
    for name in {**told, **shown}:  # the order of the tables, each once
        patient, candidates = places(name, base)
        text = _report_text(told[name]) if name in told else ""
        silent += name in told and not text
        path = files.find(*candidates, count=bool(text) + len(shown.get(name, ())))
        if path is None:
            continue
        fixed, raw = fixed + ("_fixed/" in path), raw + ("_fixed/" not in path)
        shared = {"dataset": "CT-RATE", "patient": patient, "split": split, "volume": path}
        if text:
            report = {"kind": "report", "form": "open", "question": REPORT_QUESTION, "answer": text}
            yield table.make_record(refused, name, id=f"ct-rate:{name}:report", **shared, **report)
        for label, answer in shown.get(name, {}).items():
            present = {"kind": "presence", "form": "closed", "question": _question(label), "answer": answer}
            yield table.make_record(refused, name, id=f"ct-rate:{name}:{label}", **shared, **present)
    if silent:
        notes.append(f"{reports_csv.name}: {table.plural(silent, 'report')} without findings and impression, left out")
    if fixed or raw:
        notes.append(
            f"{split}: {table.plural(fixed, 'volume')} of the fixed generation (HU), {raw} of the first (stored values:"
            " load them with load_volume and their row of metadata)"
        )


def _question(label: str) -> str:
    return f"Does this CT show {label.lower()}?"


def _base(folder: Path) -> str:
    return "dataset/" if (folder / "dataset").is_dir() else ""


def _parts(name: str, split: str, file: str) -> tuple[str, str, str, str]:
    """The volume's plain name (train_1_a_1), patient (train_1), scan (train_1_a) and folder (train)."""
    match = NAME.fullmatch(name)
    if not match:
        raise BadInput(f"{file} names the volume {name!r}; a name such as train_1_a_1.nii.gz is expected")
    where, number, scan, reconstruction = match.groups()
    if where != _SHORT[split]:
        raise BadInput(f"{file} is a table of {split} and names {name}; the splits must not mix: mend the table")
    patient = f"{where}_{number}"
    return f"{patient}_{scan}_{reconstruction}", patient, f"{patient}_{scan}", where


def places(name: str, base: str) -> tuple[str, tuple[str, str]]:
    """The patient, and where the volume may lie: the fixed generation first."""
    where, number, scan, _ = name.split("_")
    patient = f"{where}_{number}"
    below = f"{patient}/{patient}_{scan}/{name}.nii.gz"
    return patient, (f"{base}{where}_fixed/{below}", f"{base}{where}/{below}")


def _table_of(path: Path, columns: tuple[str, ...], split: str, notes: list[str]) -> dict[str, dict[str, str]]:
    """The rows of a table by plain volume name; {} and a note if the table isn't there (a partial copy)."""
    if not path.is_file():
        notes.append(f"{path.name} is not there")
        return {}
    found, more = table.by_key(path, columns, "VolumeName")
    notes += more
    return {_parts(name, split, path.name)[0]: row for name, row in found.items()}


def _labels_of(path: Path, split: str, notes: list[str]) -> dict[str, dict[str, str]]:
    """Volume → label → "Yes" or "No"."""
    found = _table_of(path, LABELS, split, notes)
    columns = next(iter(found.values()), {})
    unknown = [name for name in columns if name != "VolumeName" and name not in LABELS]
    if unknown:
        known = table.some(LABELS, 18)
        raise BadInput(f"{path.name} has the unknown label {table.some(unknown)}; CT-RATE has 18: {known}")
    return {name: {label: _answer(row[label], label, name, path) for label in LABELS} for name, row in found.items()}


def _answer(cell: str, label: str, name: str, path: Path) -> str:
    try:
        return {0.0: "No", 1.0: "Yes"}[float(cell)]
    except (KeyError, ValueError):
        raise BadInput(f"{path.name}: {label} of {name} is {cell!r}; 0 or 1 is expected") from None


def _report_text(row: dict[str, str]) -> str:
    """Findings, then impression; "Not given." is no text, as in CT-CLIP's inference code."""
    sections = (row[column].replace("Not given.", "").strip() for column in ("Findings_EN", "Impressions_EN"))
    return " ".join(section for section in sections if section)


def _read_through(path: Path) -> None:
    volume.load(path, check=False)
