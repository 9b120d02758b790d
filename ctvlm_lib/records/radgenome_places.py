"""Where RadGenome-ChestCT's tables, volumes and masks lie; the layout is told in :mod:`ctvlm_lib.records.radgenome`."""

from pathlib import Path

from ctvlm_lib.errors import BadInput

SHORT = {"train": "train", "validation": "valid"}  # split: what its volumes and folders begin with
_TABLES = ("radgenome_files", "radgenome_files/subset_2000")


def base_of(folder: Path) -> str:
    """What paths begin with below the data set's folder: "dataset/" where it has that sub-folder."""
    return "dataset/" if (folder / "dataset").is_dir() else ""


def table_path(folder: Path, name: str) -> Path | None:
    """Where a table such as ``train_region_report.csv`` lies, the full one or the public subset's; None if nowhere."""
    found = (folder / f"{base_of(folder)}{below}" / name for below in _TABLES)
    return next((path for path in found if path.is_file()), None)


def places(name: str, split: str, base: str) -> tuple[str, tuple[str, str]]:
    """The patient of a volume, and where it may lie: the published folder first.

    Args:
        name: as the tables have it. split: "train" or "validation", whose table names it. base: of :func:`base_of`.

    Raises:
        BadInput: no name of such a volume.
    """
    stem = name.removesuffix(".nii.gz")
    parts = stem.split("_")
    if len(parts) != 4 or parts[0] != SHORT[split]:
        raise BadInput(f"the volume {name!r} is expected to be called such as {SHORT[split]}_1_a_1.nii.gz")
    where, number, scan, _ = parts
    patient = f"{where}_{number}"
    folder = f"{base}{where}_preprocessed/{patient}"
    # train_1a as published; train_1_a as in CT-RATE, from which some copies were made
    return patient, (f"{folder}/{patient}{scan}/{stem}.nii.gz", f"{folder}/{patient}_{scan}/{stem}.nii.gz")


def mask_places(name: str, split: str, region: str, base: str) -> tuple[str, str]:
    """Where the mask of one region of a volume may lie: among the ten regions', or among the finer structures'."""
    below = f"seg_{name.removesuffix('.nii.gz')}/{region}.nii.gz"
    return f"{base}{SHORT[split]}_region_mask/{below}", f"{base}{SHORT[split]}_anatomy_mask/{below}"
