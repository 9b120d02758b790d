"""STOIC2021: chest CTs of patients suspected of COVID-19, with the RT-PCR's result and the outcome after a month.

Layout of the 2,000 public patients, below the folder::

    metadata/reference.csv      PatientID, probCOVID, probSevere        0 or 1
    data/mha/1234.mha           the patient's CT

"Severe" is intubation or death within one month. It is asked of patients with a positive RT-PCR only, as the challenge
scores it; of the others it says nothing about COVID-19. Severity is a prognosis: no radiologist can read it off the CT.

The challenge's page describes the data, not its table: file and column names are those of the organisers' baseline.
Another copy may name them differently; say so with ``columns=``, ``reference=`` and ``volumes=``. There is no published
split of the public patients (MedVista3D's 80/10/10 is a random one of its own): all are "train", to be split by
:func:`ctvlm_lib.records.assign_splits`.

Sources: stoic2021.grand-challenge.org/stoic-db; luukboulogne/stoic2021-baseline-finalphase at 06a54a0 and 03f25ce;
medvista3d.txt, appendix.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ctvlm_lib.damaged import unpacked_size
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume, check_hu, grid

COLUMNS = {"patient": "PatientID", "covid": "probCOVID", "severe": "probSevere"}
COVID_QUESTION = "Does this patient have COVID-19, by RT-PCR?"
SEVERE_QUESTION = "Will this patient with COVID-19 be intubated or die within one month?"


def read(
    folder: str | Path, split: str | None = None, *, columns: dict[str, str] | None = None,
    reference: str = "metadata/reference.csv", volumes: str = "data/mha/{id}.mha", check_volumes: bool = False,
) -> table.Reading:  # fmt: skip
    """Ask of each patient whose CT is there for COVID-19, and, if it is positive, for a severe outcome.

    Args:
        folder: the folder with ``metadata`` and ``data``.
        split: "train", the only one there is.
        columns: the table's own names of what ``COLUMNS`` calls patient, covid and severe, where they differ.
        reference: where the table lies below the folder.
        volumes: where a CT lies below the folder; ``{id}`` stands for the patient.
        check_volumes: read every CT to its end, so that a damaged one is listed (slow).

    Raises:
        BadInput: no table, a column is missing, a cell isn't 0 or 1, severe without COVID-19, a patient stands twice
            with different contents, ``volumes`` without ``{id}``, an unknown key in ``columns``.
    """
    folder = table.existing_folder(folder)
    names = COLUMNS | (columns or {})
    if set(names) != set(COLUMNS) or "{id}" not in volumes:
        raise BadInput(
            f"columns={columns!r}, volumes={volumes!r}: give columns for {', '.join(COLUMNS)} only, and a pattern with"
            " {id} such as 'data/mha/{id}.mha'"
        )
    path = folder / table.inside(reference)
    if not path.is_file():
        raise BadInput(f"{folder} holds no {reference}; give the folder of STOIC2021 that holds it, or reference=")
    rows, notes = _rows(path, names)
    wanted = table.wanted_splits(split, ("train",))
    files = table.Files(folder, check=load_volume if check_volumes else None)
    refused: dict[str, str] = {}
    records: list[Record] = []
    for patient, row in rows.items():
        answers = [_answer(row[names[key]], names[key], patient, path) for key in ("covid", "severe")]
        records += [r for r in _patient(patient, *answers, wanted[0], volumes, files, refused, path) if r]
    notes += table.refused_note(refused)
    if records:
        notes.append("no published split of these patients: all are train; split them with assign_splits")
    return table.Reading("STOIC2021", folder, records, dict(files.missing), files.unreadable, tuple(notes))


def load_volume(path: str | Path) -> Volume:
    """Read one ``.mha`` volume into LPS axes.

    Raises:
        BadInput: not a readable MetaImage of three axes, or not in HU.
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_content(path, reader)
        image = reader.Execute()
    except (OSError, RuntimeError, zlib.error):
        raise BadInput(f"{path.name} is not a readable .mha volume; fetch it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput(f"{path.name} has {image.GetDimension()} axes; one CT of 3 axes, one value a voxel, is expected")
    image = sitk.DICOMOrient(image, "LPS")
    affine = np.eye(4)
    turned = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()  # columns x, y, z of the file, mm
    affine[:3, :3], affine[:3, 3] = turned[:, ::-1], image.GetOrigin()
    found = Volume(sitk.GetArrayFromImage(image), affine, name=path.stem)
    check_hu(found.hu, path.name)
    return found


def _check_content(path: Path, reader) -> None:
    """Refuse a file with fewer bytes of voxels than its header claims.

    ITK makes room for what is claimed, packed and unpacked, and leaves in it whatever memory held where less is there.
    """
    import SimpleITK as sitk

    one = sitk.GetArrayViewFromImage(sitk.Image([1] * reader.GetDimension(), reader.GetPixelID()))
    wanted = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * one.itemsize
    with open(path, "rb") as file:
        header = _header(file)
        there = path.stat().st_size - file.tell()
        if header.get("CompressedData", "")[:1] in tuple("Tt1"):
            claimed = header.get("CompressedDataSize", "0")
            if not claimed.isdigit() or int(claimed) > there:
                raise BadInput(f"{path.name} claims {claimed} packed bytes, and has {there:,}; fetch it again")
            there = unpacked_size(file, wanted)
    if not 0 < wanted <= there:
        size = grid.size_text(reader.GetSize())
        raise BadInput(f"{path.name} claims {size} voxels, {wanted:,} bytes, and has {there:,}; fetch it again")


def _header(file: BinaryIO) -> dict[str, str]:
    """A MetaImage's header; the file is left where its numbers begin."""
    found: dict[str, str] = {}
    while "ElementDataFile" not in found and (line := file.readline(4096)):
        key, _, value = line.decode("latin-1").partition("=")
        found[key.strip()] = value.strip()
    return found


def _rows(path: Path, names: dict[str, str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    try:
        return table.by_key(path, (names["covid"], names["severe"]), names["patient"])
    except BadInput as problem:
        if "has no column" not in str(problem):
            raise
        example = ", ".join(f'"{key}": "…"' for key in COLUMNS)
        raise BadInput(f"{problem} If its names differ, give them: columns={{{example}}}") from None


def _answer(cell: str, column: str, patient: str, path: Path) -> bool:
    try:
        return {0.0: False, 1.0: True}[float(cell)]
    except (KeyError, ValueError):
        raise BadInput(f"{path.name}: {column} of {patient} is {cell!r}; 0 or 1 is expected") from None


def _patient(
    patient: str, covid: bool, severe: bool, split: str, pattern: str, files: table.Files, refused: dict[str, str],
    path: Path,
) -> Iterator[Record | None]:  # fmt: skip
    if severe and not covid:
        raise BadInput(f"{path.name}: {patient} is severe without COVID-19; are the two columns exchanged?")
    asked = [("disorder", COVID_QUESTION, covid)]
    asked += [("other", SEVERE_QUESTION, severe)] if covid else []
    volume = files.find(pattern.replace("{id}", patient), count=len(asked))
    for kind, question, answer in asked if volume else ():
        yield table.make_record(
            refused, f"{path.name}, {patient}", id=f"stoic:{patient}:{kind}", dataset="STOIC2021", patient=patient,
            split=split, volume=volume, kind=kind, form="closed", question=question, answer="Yes" if answer else "No",
        )  # fmt: skip
