"""Readers of CTs and masks: NIfTI, DICOM, MetaImage, NumPy's files, and what is packed for the explorer."""

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from helpers_ct import block, lps_affine, rotation, small_ct, write_dicom, write_nifti
from helpers_data import SHAPE, chest_hu, metadata_row, write
from test_rad_chestct import chest
from test_segmentation_cases import anatomy_ids
from test_stoic import write_mha

from ctvlm_lib import mask, volume
from ctvlm_lib.explore import cases
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import ct_rate, m3d, rad_chestct, rex_grounding, segmentation_masks, stoic
from ctvlm_lib.volume import save_nifti
from fuzz.target import Target

CT_SHAPE = (5, 7, 9)


def scans(folder: Path) -> None:
    """CTs as int16, float32, big-endian, oblique, with slope, with one more axis; packed and plain."""
    ct = small_ct(CT_SHAPE)
    for orientation in ("LPS", "RAS", "PIR"):
        save_nifti(folder / f"{orientation}.nii.gz", ct.hu.astype(np.int16), ct.affine, orientation)
    small_ct(CT_SHAPE, turn=rotation(20)).save(folder / "oblique.nii")
    save_nifti(folder / "float.nii.gz", ct.hu + np.float32(0.5), ct.affine)
    stored = np.asfortranarray((ct.hu.T + 1024).astype(np.int16))
    write_nifti(folder / "slope.nii", stored, slope=1.0, intercept=-1024.0)
    nib.save(nib.Nifti1Image(stored.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">")),
             folder / "big_endian.nii")
    nib.save(nib.Nifti1Image(ct.hu.T[..., None], np.eye(4)), folder / "four_axes.nii.gz")
    nib.save(nib.Nifti2Image(ct.hu.T, np.eye(4)), folder / "nifti2.nii")


def masks(folder: Path) -> None:
    """A label map with its names in the header, one without, and a binary mask named after its structure."""
    ct, labels = small_ct(CT_SHAPE), np.zeros(CT_SHAPE, np.uint16)
    labels[block(CT_SHAPE, ((1, 1, 1), (4, 4, 4)))], labels[block(CT_SHAPE, ((0, 4, 5), (3, 7, 9)))] = 1, 3
    LabelMap(labels, ct.affine, {1: "liver", 3: "spleen"}).save(folder / "named.nii.gz")
    LabelMap(labels, ct.affine, {1: "liver", 3: "spleen"}).save(folder / "named.nii")
    save_nifti(folder / "numbers.nii.gz", labels.astype(np.float32), ct.affine, "RAS")
    save_nifti(folder / "liver.nii.gz", (labels == 1).astype(np.uint8), ct.affine)


def _read_masks(folder: Path, file: Path) -> None:
    found = mask.load(file, names="vista3d" if file.name == "numbers.nii.gz" else None)
    for name in found.present:
        found.volume_ml(name)


def _mask_folder(folder: Path) -> None:
    for number, name in enumerate(("liver", "spleen", "kidney_left")):
        inside = block(CT_SHAPE, ((number, 1, 1), (number + 3, 5, 6)))
        save_nifti(folder / f"{name}.nii.gz", inside.astype(np.uint8), lps_affine())


def _series(folder: Path) -> None:
    write_dicom(folder, small_ct((5, 8, 9)))


def _packed_series(folder: Path) -> None:
    small_ct(CT_SHAPE).save(folder / "ct.nii.gz")
    files = write_dicom(folder / "series", small_ct((4, 8, 9)))
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files.iterdir()):
            archive.write(path, path.name)


def _with_lesions(folder: Path) -> None:
    """One scan of ReXGroundingCT, its two findings, and TotalSegmentator's labels."""
    findings = np.zeros((2, *SHAPE), np.uint8)
    findings[0, 1, 2, 3], findings[1, 4:6, 5, 6] = 1, 2
    write(folder / "ct.nii.gz")
    write(folder / "findings.nii.gz", findings, np.eye(4))
    write(folder / "anatomy.nii.gz", anatomy_ids())


def _read_lesions(folder: Path, file: Path) -> None:
    rex_grounding.finding_mask(folder / "findings.nii.gz", 1, folder / "ct.nii.gz")
    segmentation_masks.of_chest(
        folder / "ct.nii.gz", folder / "findings.nii.gz", folder / "anatomy.nii.gz", {"0": "2d", "1": "2e"}
    )


def _m3d(folder: Path) -> None:
    array = np.random.default_rng(0).random((1, 4, 6, 5), dtype=np.float32)
    np.save(folder / "a.npy", array)
    write_nifti(folder / "b.nii.gz", np.transpose(array[0], (2, 1, 0)), np.eye(4))


def _rad_chest(folder: Path) -> None:
    np.savez_compressed(folder / "packed.npz", ct=chest())
    np.savez(folder / "plain.npz", ct=chest())


def _stoic(folder: Path) -> None:
    import SimpleITK as sitk

    write_mha(folder / "packed.mha")
    sitk.WriteImage(sitk.ReadImage(str(folder / "packed.mha")), str(folder / "plain.mha"), useCompression=False)


IMAGES = (
    Target("volume.load", scans, lambda folder, file: repr(volume.load(file, check=False))),
    Target("mask.load", masks, _read_masks),
    Target("mask.load of a folder", _mask_folder, lambda folder, file: mask.load(folder)),
    Target("mask.load onto a CT", masks, lambda folder, file: mask.load(file, small_ct(CT_SHAPE), "vista3d")),
    Target("volume.load of DICOM", _series, lambda folder, file: volume.load(folder, check=False), ("*.dcm",)),
    Target("explorer: own CT", _packed_series, lambda folder, file: cases.own_case(file), ("*.zip", "*.nii.gz")),
    Target("explorer: own masks", masks, lambda folder, file: cases.own_labels(file, small_ct(CT_SHAPE))),
    Target("ct_rate.load_volume", lambda folder: write(folder / "train_1_a_1.nii.gz", chest_hu()),
           lambda folder, file: ct_rate.load_volume(file, metadata_row())),
    Target("findings and anatomy", _with_lesions, _read_lesions),
    Target("m3d.load_array", _m3d, lambda folder, file: m3d.load_array(file)),
    Target("rad_chestct.load_volume", _rad_chest, lambda folder, file: rad_chestct.load_volume(file)),
    Target("stoic.load_volume", _stoic, lambda folder, file: stoic.load_volume(file)),
)  # fmt: skip
