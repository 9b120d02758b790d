"""Small CTs, masks, NIfTI files and DICOM series for the tests, all made on the spot."""

import contextlib
import locale
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np

from ctvlm_lib.mask import LabelMap
from ctvlm_lib.volume import Volume

SYNTHETIC = Path(__file__).resolve().parents[1] / "data_samples" / "synthetic"

# the 48 ways to name three axes: 6 orders of R/L, A/P, S/I times 8 choices of direction
ORIENTATIONS = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]


def lps_affine(spacing=(3.0, 1.1, 0.9), origin=(-20.0, -15.0, 100.0), turn=None) -> np.ndarray:
    """Index (d, h, w) → LPS mm; ``turn`` is a rotation matrix for an oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = np.zeros((3, 3))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


def rotation(degrees: float, axis=(1.0, 2.0, 3.0)) -> np.ndarray:
    """Rotation matrix about ``axis``."""
    from scipy.spatial.transform import Rotation

    axis = np.asarray(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()


def small_ct(shape=(5, 7, 9), seed=0, **geometry) -> Volume:
    """Whole HU from −1000 to 400, different in every voxel's neighbourhood, on an anisotropic grid."""
    hu = np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.float32)
    hu[0, 0, 0] = -1000
    return Volume(hu, lps_affine(**geometry), name="small")


def labels_of(array: np.ndarray, names: dict[int, str], **geometry) -> LabelMap:
    """A label map on the grid of :func:`small_ct`."""
    return LabelMap(np.asarray(array, np.uint16), lps_affine(**geometry), names)


def block(shape, *corners) -> np.ndarray:
    """A bool array that is true between two corners (inclusive, exclusive); several pairs may be given."""
    mask = np.zeros(shape, bool)
    for low, high in corners:
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def write_nifti(path: Path, array: np.ndarray, affine=None, slope=None, intercept=0.0) -> Path:
    """Write an array as nibabel does, without the library under test; ``slope`` goes into the header as it is."""
    image = nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
        # nibabel recomputes stored values from a scaled header, so the bytes are put behind the header by hand
        header = image.header.copy()
        header["vox_offset"], header["magic"] = 352, b"n+1"
        path.write_bytes(header.binaryblock + bytes(4) + np.asfortranarray(array).tobytes(order="F"))
    else:
        nib.save(image, path)
    return path


def write_dicom(
    folder: Path, volume: Volume, uid="1.2.826.0.1.3680043.2.1125.1.1", modality="CT", description="chest",
    names=None, intercept=-1024, positions=None, direction=None, skip=(),
) -> Path:  # fmt: skip
    """Write a series of a fictional patient: stored values are HU − intercept.

    Args:
        folder: gets one file a slice.
        volume: what to store; its d axis is the stack.
        names: file names in the order of the slices; by default they count upwards.
        positions: image position of each slice; by default from the affine.
        direction: row and column direction cosines; by default from the affine.
        skip: numbers of slices that get lost.
    """
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    steps = volume.affine[:3, :3]
    row, column = (steps[:, i] / np.linalg.norm(steps[:, i]) for i in (2, 1))
    cosines = np.concatenate([row, column]) if direction is None else direction
    for k in range(volume.shape[0]):
        if k in skip:
            continue
        place = volume.mm_of([k, 0, 0]) if positions is None else positions[k]
        # SimpleITK stores HU − intercept by the tags below
        image = sitk.GetImageFromArray(volume.hu[k].astype(np.int16))
        image.SetSpacing([volume.spacing_mm[2], volume.spacing_mm[1]])
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{k + 1}", "0008|0060": modality,
            "0008|103e": description, "0010|0010": "Fictional^Patient", "0010|0020": "F-1",
            "0020|000d": f"{uid}.100", "0020|000e": uid, "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place), "0020|0037": "\\".join(f"{v:.8f}" for v in cosines),
            "0018|0050": f"{volume.spacing_mm[0]:.4f}", "0028|1052": str(intercept), "0028|1053": "1",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / (names[k] if names else f"{k:03d}.dcm")))
        with own_locale():
            writer.Execute(image)
    return folder


@contextlib.contextmanager
def own_locale():
    """GDCM's writer leaves the whole process in the locale "C", where text files are read as ASCII: undo that."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def command_line(*words) -> int:
    """Run ``ctvlm`` in this process; argparse's own exit becomes a code too."""
    from ctvlm_lib.__main__ import main

    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
