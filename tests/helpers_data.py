"""Miniature copies of the real data sets in their published layouts, for the tests of their readers."""

import csv
import json
from pathlib import Path

import numpy as np
from helpers_ct import write_nifti

from ctvlm_lib.records import ct_rate

SHAPE = (12, 10, 8)  # (x, y, z), as NIfTI stores it: 8 slices of 10 rows and 12 columns
CHEST = np.diag([-0.8, -0.7, 2.5, 1.0])  # voxel sizes of the header, mm


def chest_hu() -> np.ndarray:
    """A body of 40 HU with bone and noise in air of -1000 HU, (x, y, z) int16."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:10, 2:8, :] = 40
    hu[5:7, 6, :] = 700
    return hu + np.random.default_rng(0).integers(-20, 20, SHAPE).astype(np.int16)


def write(path: Path, array=None, affine=CHEST, **header) -> Path:
    """Write a NIfTI, by default of :func:`chest_hu`, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, chest_hu() if array is None else array, affine, **header)


def write_csv(path: Path, columns, rows, delimiter=",") -> Path:
    """Write a CSV and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return path


REPORT = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA = ("VolumeName", "Manufacturer", "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope",
            "NumberofSlices", "ZSpacing")  # fmt: skip


def metadata_row(**changes) -> dict[str, str]:
    """A row of CT-RATE's metadata that belongs to the volumes of :func:`write`."""
    values = ("train_1_a_1.nii.gz", "-", "10", "12", "[0.7, 0.8]", "-1024", "1", "8", "2.5")
    return dict(zip(METADATA, values, strict=True)) | changes


def make_ct_rate(folder: Path) -> Path:
    """Two train scans, one with two reconstructions and one of the first generation; one validation scan."""
    data = folder / "dataset"
    train = ["train_1_a_1.nii.gz", "train_1_a_2.nii.gz", "train_22_b_1.nii.gz"]
    for split, short, names in (("train", "train", train), ("validation", "valid", ["valid_3_a_1.nii.gz"])):
        reports = [(name, "", "CT", "Clear lungs.", "Not given.") for name in names]
        write_csv(data / f"radiology_text_reports/{split}_reports.csv", REPORT, reports)
        labels = [(name, *[int(i in (9, 12)) for i in range(18)]) for name in names]
        path = data / f"multi_abnormality_labels/{short}_predicted_labels.csv"
        write_csv(path, ("VolumeName", *ct_rate.LABELS), labels)
        rows = [tuple(metadata_row(VolumeName=name).values()) for name in names]
        write_csv(data / f"metadata/{split}_metadata.csv", METADATA, rows)
    write(data / "train_fixed/train_1/train_1_a/train_1_a_1.nii.gz")
    write(data / "train_fixed/train_1/train_1_a/train_1_a_2.nii.gz")
    write(data / "train/train_22/train_22_b/train_22_b_1.nii.gz", chest_hu() + np.int16(1024))
    write(data / "valid_fixed/valid_3/valid_3_a/valid_3_a_1.nii.gz")
    return folder


PRESENCE = ("Anatomy", "Finding", "Presence")


def make_radgenome(folder: Path) -> Path:
    """A train and a validation volume with all six tables; the train one has an anatomy and a region mask."""
    data = folder / "dataset"
    lobe = "lung/lung/lung lower lobe/left lung lower lobe"
    tables = {
        "region_report": (("Anatomy", "Sentence"), [(lobe, "Nodule."), ("", "No effusion."), ("others", "Drain.")]),
        "vqa_abnormality": (("Anatomy", "Abnormality"), [(path, "nodule") for path in ("lung", "lung/lung", lobe)]),
        "vqa_presence": (PRESENCE, [(lobe, "nodule", "Yes."), ("heart/heart", "clot", "No.")]),
        "vqa_location": (("Anatomy", "Abnormality"), [(lobe, "nodule"), (lobe, "left lung lower lobe cyst")]),
        "vqa_size": (("Anatomy", "Abnormality", "Size"), [(lobe, "nodule", "6x4 mm")]),
        "case_disorders": (("Disorders",), [("pulmonary nodule",)]),
    }
    for split, volume in (("train", "train_1_a_1.nii.gz"), ("validation", "valid_101_a_1.nii.gz")):
        for name, (columns, rows) in tables.items():
            path = data / f"radgenome_files/{split}_{name}.csv"
            write_csv(path, ("Volumename", *columns), [(volume, *row) for row in rows])
    write(data / "train_preprocessed/train_1/train_1a/train_1_a_1.nii.gz")
    write(data / "valid_preprocessed/valid_101/valid_101a/valid_101_a_1.nii.gz")
    inside = (chest_hu() > 500).astype(np.uint8)
    write(data / "train_anatomy_mask/seg_train_1_a_1/left lung lower lobe.nii.gz", inside)
    write(data / "train_region_mask/seg_train_1_a_1/heart.nii.gz", inside)
    return folder


CHOICES = tuple(f"Choice {letter}" for letter in "ABCD")
VQA = ("Image Path", "Question Type", "Question", *CHOICES, "Answer", "Answer Choice")
AXIAL, CORONAL = (f"M3D_Cap_npy/ct_case/000001/{plane}_non_contrast.npy" for plane in ("Axial", "Coronal"))
OTHER = "M3D_Cap_npy/ct_quizze/000007/Axial_C__arterial_phase.npy"


def vqa_row(image=AXIAL, kind=1, question="What is the plane?", answer="Axial", letter="A"):
    """A row of M3D-VQA, in the order of ``VQA``."""
    return (image, kind, question, "Axial", "Coronal", "Sagittal", "Oblique", answer, letter)


def make_m3d(folder: Path) -> Path:
    """One case in two planes, cut by the published split, and another case."""
    lists = {"train": [AXIAL, OTHER], "validation": [], "test": [CORONAL], "test1k": [CORONAL]}
    entries = {k: [{"image": i, "text": str(Path(i).parent / "text.txt")} for i in v] for k, v in lists.items()}
    for image in (AXIAL, CORONAL, OTHER):
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).random((1, 4, 6, 5), dtype=np.float32))
        path.with_name("text.txt").write_text("findings: A cyst in the liver.", encoding="utf-8")
    (folder / "M3D_Cap_npy/M3D_Cap.json").write_text(json.dumps(entries), encoding="utf-8")
    organ = vqa_row(OTHER, "3.0", "Which side of the left kidney is bright?")
    write_csv(folder / "M3D-VQA/M3D_VQA_train.csv", VQA, [vqa_row(), organ])
    write_csv(folder / "M3D-VQA/M3D_VQA_test.csv", VQA, [vqa_row(CORONAL, 1, "What is the plane?", "Coronal", "B")])
    yes_no = [(AXIAL, "Is there a cyst?", "Yes"), (AXIAL, "Is there a stone?", "Perhaps")]
    write_csv(folder / "M3D-VQA/M3D_VQA_yn_train.csv", ("Image Path", "Question", "Answer"), yes_no)
    return folder
