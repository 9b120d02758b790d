"""Read a CT from NIfTI or from a DICOM series into LPS axes and Hounsfield units."""

import gzip
import io
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from ctvlm_lib.damaged import could_hold
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import dicom, grid
from ctvlm_lib.volume.core import Volume
from ctvlm_lib.volume.hu import check_hu

NIFTI = (".nii", ".nii.gz")
BROKEN = (  # what nibabel raises on a damaged file, depending on where the damage is
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError,
    OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError, TypeError, KeyError,
)  # fmt: skip
_PART = 1 << 22  # bytes of a packed file that are read at a time
_NIFTI2 = 540  # bytes of the longer of NIfTI's two headers, which states them first


def load(path: str | Path, *, series: str | None = None, check: bool = True) -> Volume:
    """Read a CT: a NIfTI file in any orientation, or a folder that holds one DICOM series.

    The header's slope and intercept are applied exactly once; the array is reoriented to LPS axes; the affine goes with
    it.

    Args:
        path: ``.nii``/``.nii.gz`` file, or a DICOM folder.
        series: the series instance UID, if the folder holds several.
        check: refuse values that can't be HU (:func:`ctvlm_lib.volume.check_hu`).

    Returns:
        The volume; ``notes`` says what is worth knowing of how it was stored.

    Raises:
        BadInput: the file is missing, broken, not a CT, or its geometry is ambiguous.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no file or folder {path}")
    if path.is_dir():
        volume = dicom.read_series(path, series)
    else:
        array, affine, orientation, notes = read_nifti(path, np.float32)
        volume = Volume(array, affine, orientation, name=stem(path), notes=notes)
    if check:
        check_hu(volume.hu, path.name)
    return volume


def stem(path: Path) -> str:
    """A file's name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_nifti(path: Path, dtype) -> tuple[np.ndarray, np.ndarray, str, tuple[str, ...]]:
    """Read one 3-D frame of a NIfTI in LPS axes.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        dtype: of the result; ``None`` keeps the values as the header states them (for label maps).

    Returns:
        ``(D, H, W)`` array, affine to LPS mm, the file's axes, notes.

    Raises:
        BadInput: not a NIfTI, truncated, RGB, or not exactly one 3-D frame.
    """
    if not path.name.endswith(NIFTI):
        raise BadInput(
            f"{path.name} is neither a .nii/.nii.gz file nor a DICOM folder;"
            " convert it, or give the folder of the series"
        )
    image = open_nifti(path)
    if image.get_data_dtype().fields:
        raise BadInput(
            f"{path.name} is an RGB NIfTI (a rendered picture), and one value in HU per voxel is expected;"
            " give the original CT"
        )
    shape = image.shape
    if min(shape, default=0) < 1:
        raise BadInput(f"{path.name} has shape {grid.size_text(shape)}: there are no voxels in it; fetch it again")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        what = f"{np.prod(shape[3:], dtype=int)} frames" if len(shape) > 3 else "a single picture"
        raise BadInput(
            f"{path.name} has shape {grid.size_text(shape)} ({what}), and one 3-D frame is expected;"
            " save the frame that you mean on its own"
        )
    try:
        array = np.asanyarray(image.dataobj) if dtype is None else image.get_fdata(dtype=dtype, caching="unchanged")
    except BROKEN as error:
        raise BadInput(f"{path.name} is cut short or damaged: {_reason(error)}; fetch or copy it again") from error
    array, affine, orientation = _oriented(array.reshape(shape[:3]), image, path.name)
    return array, affine, orientation, tuple(_header_notes(image))


def open_nifti(path: Path, header_only: bool = False):
    """nibabel's image, its voxels not read yet; a header that claims more of them than there can be is refused.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        header_only: leave a packed file packed.

    Raises:
        BadInput: not a NIfTI, or less in it than its header says.
    """
    try:
        with nib.imageglobals.LoggingOutputSuppressor():  # nibabel prints what it repairs in a header
            size = _claimed(path)
            image = nib.load(path)
            if path.name.endswith(".gz") and not header_only:
                image = type(image).from_bytes(_unpacked(path, size))
    except BROKEN as error:
        raise BadInput(
            f"{path.name} is not a readable NIfTI file: {_reason(error)}; fetch or convert it again"
        ) from error
    return image


def _claimed(path: Path) -> int:
    """How many bytes the header claims, unpacked; its extensions are read from what there is, not by their claims.

    Raises:
        ValueError, or another of BROKEN: more than there can be.
    """
    packed = path.name.endswith(".gz")
    with gzip.open(path) if packed else open(path, "rb") as file:
        head = file.read(_NIFTI2)
        of_two = _NIFTI2 in (int.from_bytes(head[:4], order) for order in ("little", "big"))
        kind = nib.Nifti2Header if of_two else nib.Nifti1Header
        if len(head) < kind.template_dtype.itemsize:
            raise ValueError(f"{len(head)} bytes are less than a header")
        header = kind(head[: kind.template_dtype.itemsize], check=False)
        offset, voxels = int(header.get_data_offset()), math.prod(map(int, header.get_data_shape()))
        size = offset + voxels * header.get_data_dtype().itemsize
        if not could_hold(path, max(offset, size), packed):
            raise ValueError(f"its header claims {size:,} bytes, and the file has {path.stat().st_size:,}")
        kind.from_fileobj(io.BytesIO(head + file.read(max(0, offset - len(head)))), check=False)
    return size


def _unpacked(path: Path, size: int) -> bytes:
    """So many bytes of a packed file; the rest is read but not kept, as gzip's checksum stands at the end."""
    kept = bytearray()
    with gzip.open(path) as file:
        while part := file.read(_PART):
            kept += part[: max(0, size - len(kept))]
    if len(kept) < size:
        raise ValueError(f"its header claims {size:,} bytes, and it unpacks to {len(kept):,}")
    return bytes(kept)


def _oriented(array: np.ndarray, image, name: str):
    try:
        return grid.from_nifti(array, image.affine)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def _reason(error: Exception) -> str:
    """The library's reason as part of a sentence, without the path that it may repeat."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KeyError):
        return f"its header states a type of numbers that there isn't ({text})"
    return text if len(text) < 100 and "/" not in text else type(error).__name__


def _header_notes(image):
    """What a reader of the volume should know of the header."""
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) != (1, 0):
        yield f"header slope {slope:g} and intercept {intercept:g} applied once"
    sform, sform_code = image.get_sform(coded=True)
    try:
        qform, qform_code = image.get_qform(coded=True)
    except ValueError:  # rounded or damaged; with no sform either, the file wouldn't have opened
        yield "the qform is no rotation; the sform is used"
        return
    if sform_code == 0 and qform_code == 0:
        yield "the header has neither sform nor qform: left and right are an assumption, check them against the anatomy"
    elif sform is not None and qform is not None and np.abs(sform - qform).max() > 0.1:
        yield "sform and qform differ; the sform is used"
