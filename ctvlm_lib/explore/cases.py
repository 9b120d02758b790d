"""The cases that the explorer can show: real CTs, a DICOM series, phantom patients, and a person's own files.

A file of one's own is read below the chosen data folder only, or comes by upload into a private folder that is gone as
soon as it has been read. A DICOM series' name, id, birth date and institution are never read; a case of one's own has
a neutral name, so that no file name finds its way into what is exported.
"""

import gzip
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib import assets, mask, volume
from ctvlm_lib.damaged import NOT_ZIP
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume, dicom
from ctvlm_lib.volume.dicom import PASSED_OVER
from ctvlm_lib.volume.read import NIFTI

if TYPE_CHECKING:
    from ctvlm_lib.records.phantom import Patient

VARIABLE = "CTVLM_DATA"  # by which ``ctvlm app`` hands its data folder to the page
REAL, PHANTOM, OWN = "real", "phantom", "own"
ASSETS = {  # shown name: (CT, masks) among the assets
    "Abdomen and pelvis CT": ("abdomen_ct/ct.nii.gz", "abdomen_ct/labels.nii.gz"),
    "Chest CT angiogram": ("chest_cta/ct.nii.gz", "chest_cta/masks"),
    "Upper abdomen, a DICOM series": ("ct_dicom/series", "ct_dicom/labels.nii.gz"),
}
PHANTOMS = {f"Phantom patient {k + 1}": k for k in range(6)}  # of the test split: no model has learnt from them
MOST_FILES, MOST_UNZIPPED, MOST_LISTED, MOST_VISITED = 5000, 4 * 1024**3, 300, 20_000


@dataclass(frozen=True, eq=False)
class Case:
    """What is shown and asked about.

    Attributes:
        name: neutral, fit for file names.
        kind: REAL, PHANTOM or OWN.
        volume, labels: on one grid; a CT without masks has a label map without names.
        records: questions whose answers are known; of phantoms only.
        notes: what a person should know of it, one sentence each.
    """

    name: str
    kind: str
    volume: Volume
    labels: LabelMap
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()


def built_in() -> tuple[str, ...]:
    """Names of the cases that come with the workbook."""
    return (*ASSETS, *PHANTOMS)


def load(name: str) -> Case:
    """One of :func:`built_in`; its files are fetched if they aren't there.

    Raises:
        BadInput: no such case, or it can't be fetched.
    """
    if name in PHANTOMS:
        return _phantom(name)
    if name not in ASSETS:
        raise BadInput(f"no case is called {name!r}; choose one of {', '.join(built_in())}")
    image, masks = (assets.path(part) for part in ASSETS[name])
    ct = replace(volume.load(image), name=name)
    labels = mask.load(masks, like=ct)
    return Case(name, REAL, ct, labels, notes=("a real CT; its masks are a model's, no radiologist has checked them",))


def patient_of(name: str) -> "Patient":
    """The phantom patient behind one of ``PHANTOMS``, with everything that is true of them."""
    from ctvlm_lib.records import protocol

    *_, patient = protocol.load().patients("test", n=PHANTOMS[name] + 1)
    return patient


def _phantom(name: str) -> Case:
    from ctvlm_lib.records.questions import candidates

    patient = patient_of(name)
    findings = ", ".join(finding.kind for finding in patient.findings) or "no finding"
    notes = ("a phantom: drawn, not scanned, on the grid that the models read", f"drawn in: {findings}")
    present = set(patient.labels.present)
    records = tuple(
        record for record in candidates(patient, "test") if record.region is None or record.region in present
    )
    return Case(name, PHANTOM, patient.volume, patient.labels, records, notes)


def data_folder() -> Path | None:
    """The folder whose files may be opened by path, None if none was chosen."""
    given = os.environ.get(VARIABLE)
    return Path(given).resolve() if given else None


def own_files(folder: Path) -> list[str]:
    """NIfTI files and folders with DICOM files below a folder, as relative paths in alphabetical order.

    At most ``MOST_LISTED``; what can't be listed can still be opened by its path.
    """
    found: list[str] = []
    visited = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        visited += len(files)
        shown = sorted(one for one in files if not one.startswith("."))
        found += [str((Path(place) / one).relative_to(folder)) for one in shown if one.endswith(NIFTI)]
        if Path(place) != folder and any(_is_dicom(Path(place) / one) for one in shown[:3]):
            found.append(str(Path(place).relative_to(folder)))
        if len(found) >= MOST_LISTED or visited > MOST_VISITED:
            break
    return sorted(found)[:MOST_LISTED]


def inside(folder: Path | None, path: str) -> Path:
    """A path below the data folder.

    Raises:
        BadInput: no data folder was chosen, or the path leads out of it.
    """
    if folder is None:
        raise BadInput("no data folder was chosen; start the explorer with ctvlm app --data FOLDER, or upload the file")
    if not path.strip():
        raise BadInput("no path was given; give one below the data folder")
    whole = (folder / path.strip()).resolve()
    if not whole.is_relative_to(folder.resolve()):
        raise BadInput(f"{path!r} leads out of the data folder; give a path below it")
    return whole


def open_path(path: str, folder: Path | None = None) -> Case:
    """Read a NIfTI file, a DICOM folder or a ZIP of one below the data folder.

    Args:
        path: relative to the folder.
        folder: None takes the one that the explorer was started with.

    Raises:
        BadInput: a path outside, or a file that is no CT.
    """
    return own_case(inside(data_folder() if folder is None else folder, path))


def own_case(path: Path) -> Case:
    """Read a CT of one's own: NIfTI, DICOM folder, or a ZIP of DICOM files; it has no masks.

    Raises:
        BadInput: it can't be read as a CT.
    """
    if path.suffix.lower() == ".zip":
        with unzipped(path) as folder:
            return own_case(folder)
    notes: tuple[str, ...] = ()
    if path.is_dir():
        series, note = _largest_series(path)
        ct, notes = volume.load(path, series=series), note
    else:
        _check_unpacked(path)
        ct = volume.load(path)
    told = (note.split(PASSED_OVER)[0] + PASSED_OVER if PASSED_OVER in note else note for note in ct.notes)
    ct = replace(ct, name="own CT", notes=tuple(told))  # which files were passed over names them, and is left out
    return Case("own-ct", OWN, ct, empty_labels(ct), notes=(*notes, *ct.notes))


def own_labels(path: Path, like: Volume, names: str | None = None) -> LabelMap:
    """Read a label map for a CT; labels that nothing names are called by their numbers.

    Args:
        path: NIfTI. like: the CT. names: vocabulary of the labels, None takes the file's own table.

    Raises:
        BadInput: it can't be read, or holds no whole labels.
    """
    if names is None:
        array = volume.read_nifti(path, None)[0] if not mask.label_table(path) else None
        if array is not None:
            ids = [int(i) for i in np.unique(array) if i]
            return mask.load(path, like=like, names={i: f"label {i}" for i in ids})
    return mask.load(path, like=like, names=names)


def empty_labels(ct: Volume) -> LabelMap:
    """A label map without any structure on a CT's grid."""
    return LabelMap(np.zeros(ct.shape, np.uint16), ct.affine.copy(), {}, ct.orientation)


@contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """The files of a ZIP in one private folder that is removed afterwards, under numbers instead of their names.

    Raises:
        BadInput: no ZIP, a damaged one, or one that holds too much.
    """
    with tempfile.TemporaryDirectory(prefix="ctvlm-", ignore_cleanup_errors=True) as folder:
        _unzip(path, Path(folder))
        yield Path(folder)


def _unzip(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            members = [one for one in packed.infolist() if not one.is_dir()]
            if len(members) > MOST_FILES or sum(one.file_size for one in members) > MOST_UNZIPPED:
                raise BadInput(
                    f"the ZIP holds {len(members):,} files, {sum(one.file_size for one in members) / 1024**3:.1f} GB;"
                    f" at most {MOST_FILES:,} files and {MOST_UNZIPPED // 1024**3} GB are taken: give one series alone"
                )
            left = MOST_UNZIPPED
            for number, member in enumerate(members):
                with packed.open(member) as source, open(folder / f"{number:05d}.dcm", "xb") as target:
                    left -= _copied(source, target, left)
    except (OSError, *NOT_ZIP) as error:
        raise BadInput(f"the ZIP can't be unpacked ({type(error).__name__}); pack the DICOM files again") from error


def _check_unpacked(path: Path) -> None:
    """Refuse a packed file that is larger than memory should hold, before it is unpacked there."""
    if path.suffix.lower() != ".gz":
        return
    size = 0
    try:
        with gzip.open(path) as packed:
            while part := packed.read(1 << 24):
                size += len(part)
                if size > MOST_UNZIPPED:
                    raise BadInput(
                        f"the file unpacks to more than {MOST_UNZIPPED / 1024**3:g} GB; give a smaller part of the CT"
                    )
    except (OSError, EOFError, zlib.error):
        return  # a damaged file: reading says what is wrong with it


def _copied(source, target, most: int) -> int:
    """Bytes copied; a member that is larger than the list of contents says is not unpacked to its end."""
    done = 0
    while part := source.read(1 << 20):
        done += len(part)
        if done > most:
            raise BadInput("the ZIP unpacks to more than it says; pack the DICOM files again")
        target.write(part)
    return done


def _largest_series(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """UID of the series with most slices, and a sentence if there were others. No UID or description is shown."""
    found = dicom.series_in(folder)
    if len(found) < 2:
        return None, ()
    uid = max(found, key=lambda one: len(found[one]))
    return uid, (f"{len(found)} series were given; the one with most slices ({len(found[uid])}) is shown",)


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
