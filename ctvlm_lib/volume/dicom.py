"""Read one DICOM CT series through SimpleITK, and refuse a folder whose geometry would be guessed."""

from pathlib import Path

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume.core import Volume

PASSED_OVER = "were passed over"
MODALITY, DESCRIPTION, POSITION, ORIENTATION = "0008|0060", "0008|103e", "0020|0032", "0020|0037"


def read_series(folder: Path, series: str | None = None) -> Volume:
    """Read the one series of a folder.

    Args:
        folder: holds the files of the series (other files are passed over).
        series: series instance UID, needed if there are several.

    Raises:
        BadInput: no series, several of them, another modality than CT, a missing or doubled slice, or a tilted gantry.
    """
    import SimpleITK as sitk

    there = series_in(folder)
    files = _files_of(folder, series, there)
    headers = [_header(file) for file in files]
    modality = headers[0].get(MODALITY, "CT")
    if modality != "CT":
        raise BadInput(
            f"the series in {folder.name} is {modality}, and CT is expected; its values are not Hounsfield units"
        )
    broken = list(_passed_over(folder, there))
    try:
        gap_mm = _check_positions(headers, folder.name)
    except BadInput as problem:
        raise BadInput("; ".join([str(problem), *broken])) from None  # a broken file explains a gap
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        image = reader.Execute()  # GDCM applies slope and intercept, once
    except RuntimeError as error:
        raise BadInput(f"the series in {folder.name} can't be read: {str(error).strip().splitlines()[-1]}") from error
    found = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    image = sitk.DICOMOrient(image, "LPS")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput(
            f"the series in {folder.name} is in colour, and one value in HU per voxel is expected;"
            " give the original series"
        )
    notes = (f"DICOM series of {len(files)} slices, {gap_mm:g} mm apart", *broken)
    return Volume(sitk.GetArrayFromImage(image), _affine(image), found, name=folder.name, notes=notes)


def _passed_over(folder: Path, there: dict[str, tuple[str, ...]]):
    """Say which DICOM files belong to no series: a broken first or last slice leaves no gap that would tell."""
    known = {Path(file) for files in there.values() for file in files}
    lost = []
    for path in sorted(f for f in folder.iterdir() if f.is_file() and f not in known and f.name != "DICOMDIR"):
        with open(path, "rb") as file:
            if file.read(132)[128:] == b"DICM":
                lost.append(path.name)
    if lost:
        yield f"{len(lost)} DICOM files are no readable images and {PASSED_OVER}: {', '.join(lost[:3])}"


def _affine(image) -> np.ndarray:
    """Index (d, h, w) → LPS mm of a SimpleITK image."""
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = steps[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def _files_of(folder: Path, series: str | None, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if not names:
        raise BadInput(f"{folder} holds no DICOM series; give the folder whose files are the slices, or a .nii.gz file")
    if series is not None:
        chosen = [uid for uid in names if uid == series] or [uid for uid in names if uid.startswith(series)]
        if len(chosen) != 1:
            raise BadInput(f"{folder.name} holds no single series {series}; found: {_listing(names)}")
        return names[chosen[0]]
    if len(names) > 1:
        raise BadInput(
            f"{folder.name} holds {len(names)} series: {_listing(names)}; choose one with series=UID (--series UID)"
        )
    return next(iter(names.values()))


def series_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """The files of each series in a folder, by the series' UID."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # GDCM warns of every file that is not DICOM
    try:
        found = reader.GetGDCMSeriesIDs(str(folder))
        return {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found}
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _listing(names: dict[str, tuple[str, ...]]) -> str:
    rows = []
    for uid, files in names.items():
        header = _header(files[0])
        rows.append(f"{uid} ({len(files)} × {header.get(MODALITY, '?')} {header.get(DESCRIPTION, '')}".rstrip() + ")")
    return ", ".join(rows)


def _header(file: str) -> dict[str, str]:
    """The tags used here, as text."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BadInput(f"{Path(file).name} can't be read as DICOM ({reason}); fetch it again, or remove it") from error
    keys = set(reader.GetMetaDataKeys())
    there = [tag for tag in (MODALITY, DESCRIPTION, POSITION, ORIENTATION) if tag in keys]
    return {tag: reader.GetMetaData(tag).strip() for tag in there}


def _lengths(headers: list[dict[str, str]], tag: str, count: int, name: str) -> np.ndarray:
    """A tag's numbers, one row a slice."""
    try:
        found = np.array([[float(value) for value in header[tag].split("\\")] for header in headers])
        if found.shape == (len(headers), count) and np.isfinite(found).all():
            return found
    except ValueError:
        pass
    raise BadInput(
        f"the series in {name} has a slice whose position or orientation isn't {count} numbers; fetch it again, or"
        " remove the broken file"
    )


def _check_positions(headers: list[dict[str, str]], name: str) -> float:
    """Spacing between slices in mm, if the positions say that they are evenly and squarely stacked.

    Source: DICOM PS3.3 C.7.6.2.1.1, image position and orientation (patient).
    """
    if any(POSITION not in h or ORIENTATION not in h for h in headers):
        raise BadInput(
            f"the series in {name} does not state each slice's position and orientation;"
            " convert it with a tool that knows its maker"
        )
    if len(headers) == 1:
        raise BadInput(f"the series in {name} is a single slice, and a volume is expected")
    axes = _lengths(headers, ORIENTATION, 6, name)
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise BadInput(f"the slices in {name} do not share one orientation; a localiser may lie among them, remove it")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    positions = _lengths(headers, POSITION, 3, name)
    along = np.sort(positions @ normal)
    gaps = np.diff(along)
    usual = float(np.quantile(gaps, 0.5, method="lower"))  # a gap that occurs, even if there are two
    if gaps.min() < 0.01:
        raise BadInput(
            f"the series in {name} has {int((gaps < 0.01).sum())} slices at the position of another;"
            " two reconstructions may be mixed"
        )
    if gaps.max() > 1.05 * usual or gaps.min() < 0.95 * usual:
        worst = int(np.argmax(np.abs(gaps - usual)))
        lost = round(gaps[worst] / usual) - 1
        what = f"{lost} missing" if lost > 0 else "unevenly spaced"
        raise BadInput(
            f"slices of the series in {name} are {what}: {gaps[worst]:.2f} mm between {along[worst]:.1f} and"
            f" {along[worst + 1]:.1f} mm,"
            f" {usual:.2f} mm elsewhere; find the rest of the series"
        )
    drift = positions[np.argmax(positions @ normal)] - positions[np.argmin(positions @ normal)]
    tilt = np.degrees(np.arccos(np.clip(abs(drift @ normal) / np.linalg.norm(drift), -1, 1)))
    if tilt > 0.5:
        raise BadInput(
            f"the gantry of the series in {name} was tilted by {tilt:.1f} degrees;"
            " straighten it first (for example dcm2niix does)"
        )
    return usual
