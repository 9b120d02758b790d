"""The tables that U-VLM's preprocessing writes: which cases, with which report and labels.

Three kinds, told apart by their columns::

    dataset_train_seg_basic.csv    series_id, blosc2_path, seg_blosc2_path
    train_merged.csv, chest        series_id, case_id, volume_name, report, processed_shape, blosc2_path, VolumeName,
                                   CT-RATE's 18 labels, case_id_label
    train_merged.csv, abdomen      case_id, series_id, report_structured, report_narrative, report_fusion_structured,
                                   report_fusion_narrative, report, spacing, sex, age, blosc2_path, processed_shape,
                                   Liver lesion, Kidney lesion, Pancreas lesion, diameter and category of each, source

Only what a table says of a case is taken. Its ``blosc2_path`` leads to a copy that was squeezed to one size without its
spacing: the CT is looked for in the data set's own layout.

Two examples of the release can't be used as they are, and are refused: in the chest's, ``TODO_DATA_PATH/`` stands
before every label of Lymphadenopathy; the abdomen's ends within its first report.

Sources: U-VLM at 5d7fde9, ``examples/datasets`` and ``preprocessing``.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.ct_rate import LABELS, NAME, places
from ctvlm_lib.records.segmentation_cases import Cases

PLACEHOLDER = "TODO_DATA_PATH"
ABDOMEN_LABELS = ("Liver lesion", "Kidney lesion", "Pancreas lesion")
REPORTS = ("report", "report_structured", "report_narrative", "report_fusion_structured", "report_fusion_narrative")


@dataclass(frozen=True)
class ListedCase:
    """One row of a table.

    Attributes:
        name: of the scan, e.g. "train_1_a_1" or "BDMAP_00000001".
        patient: whose it is; of AbdomenAtlas nothing says which cases are one patient's.
        ct: the file.
        report: as the table has it; "" in a table for segmentation.
        labels: label → whether it is there; {} in a table for segmentation.
    """

    name: str
    patient: str
    ct: Path
    report: str = field(default="", repr=False)
    labels: dict[str, bool] = field(default_factory=dict)


def read(path: str | Path, folder: str | Path, *, report: str = "report") -> Cases:
    """Read one of U-VLM's tables as a list of cases.

    Args:
        path: the CSV.
        folder: CT-RATE's or AbdomenAtlas's, where the CTs lie.
        report: the column of the report, one of ``REPORTS``; CT-RATE's tables have the first.

    Returns:
        The :class:`ListedCase` of each row whose CT is there; the others stand in ``missing``.

    Raises:
        BadInput: no such table or folder, none of the three kinds, a row that is cut, a label that isn't 0 or 1 (a
            placeholder), a series that stands there twice with different contents or isn't named as the data sets do.
    """
    path, folder = Path(path), table.existing_folder(folder)
    rows, notes = table.by_key(path, ("blosc2_path",), "series_id")
    labels = _labels_of(path, rows, report)
    files = table.Files(folder)
    if any(PLACEHOLDER in row["blosc2_path"] for row in rows.values()):
        notes = [
            *notes,
            f"blosc2_path holds the placeholder {PLACEHOLDER}; it isn't used, the CTs are those of {folder}",
        ]
    cases = []
    for series, row in rows.items():
        name = series.removesuffix("_0000")  # nnU-Net's number of the channel
        patient, candidates = _places(name, folder, path.name)
        known = {label: _is_there(row[label], label, series, path.name) for label in labels}
        found = files.find(*candidates)
        if found:
            cases.append(ListedCase(name, patient, folder / found, row[report] if labels else "", known))
    return Cases(f"U-VLM's {path.name}", cases, dict(files.missing), files.unreadable, (*notes,))


def _labels_of(path: Path, rows: dict[str, dict[str, str]], report: str) -> tuple[str, ...]:
    """The label columns that make the table one of the three kinds; () for one of segmentation."""
    if not rows:
        raise BadInput(f"{path.name} has no rows; give a table of U-VLM's preprocessing")
    columns = list(next(iter(rows.values())))
    if "seg_blosc2_path" in columns:
        return ()
    if report not in REPORTS:
        raise BadInput(f"report={report!r}: choose one of {', '.join(REPORTS)}")
    for labels in (LABELS, ABDOMEN_LABELS):
        if set(labels) & set(columns):
            table.check_columns(path, columns, (*labels, report))
            return labels
    raise BadInput(
        f"{path.name} has neither seg_blosc2_path nor CT-RATE's 18 labels nor {', '.join(ABDOMEN_LABELS)};"
        f" its columns are {table.some(columns, 24)}: is it a table of U-VLM's preprocessing?"
    )


def _places(name: str, folder: Path, file: str) -> tuple[str, tuple[str, ...]]:
    """The patient, and where the CT may lie below the data set's folder."""
    if NAME.fullmatch(name):
        return places(name, "dataset/" if (folder / "dataset").is_dir() else "")
    if name.startswith("BDMAP_") and name.removeprefix("BDMAP_").isdecimal():
        return name, (f"image_only/{name}/ct.nii.gz",)
    raise BadInput(f"{file} names the series {name!r}; a name such as train_1_a_1 or BDMAP_00000001 is expected")


def _is_there(cell: str, label: str, series: str, file: str) -> bool:
    if PLACEHOLDER in cell:
        raise BadInput(
            f"{file}: {label} of {series} is {cell!r}, where 0 or 1 is expected: {PLACEHOLDER} stands for a folder, and"
            f" here it stands in a label; remove {PLACEHOLDER}/ from this column, or take the data set's own labels"
        )
    try:
        return {0.0: False, 1.0: True}[float(cell)]
    except (KeyError, ValueError):
        raise BadInput(f"{file}: {label} of {series} is {cell!r}; 0 or 1 is expected") from None
