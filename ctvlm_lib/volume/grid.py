"""Grids in the patient: affines of (D, H, W) arrays in LPS axes, reorientation, resampling."""

from itertools import product

import nibabel as nib
import numpy as np

from ctvlm_lib.errors import BadInput

_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSE = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # (d, h, w) <-> (w, h, d)


def size_text(shape: tuple[int, ...]) -> str:
    """A size as people write it, e.g. ``96×128×128``."""
    return "×".join(str(n) for n in shape)


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Length of each index step (d, h, w), mm."""
    return tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))


def to_nifti_affine(affine: np.ndarray) -> np.ndarray:
    """(d, h, w) → LPS mm, restated as NIfTI's (w, h, d) → RAS mm."""
    return _LPS_RAS @ affine @ _REVERSE


def from_nifti(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Reorient a NIfTI array ``(i, j, k)`` with its RAS affine to LPS axes.

    Returns:
        the ``(D, H, W)`` view, its affine to LPS mm, and the file's axes as three letters.

    Raises:
        BadInput: the affine does not span three dimensions.
    """
    usable = np.all(np.isfinite(affine)) and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    found = nib.orientations.io_orientation(affine) if usable else np.full((3, 2), np.nan)
    if np.isnan(found).any():  # nibabel marks an axis that has no direction of its own
        raise BadInput("the affine is singular, so left and right can't be told; repair the header's sform or qform")
    change = nib.orientations.ornt_transform(found, nib.orientations.axcodes2ornt("LPS"))
    new_affine = affine @ nib.orientations.inv_ornt_aff(change, array.shape[:3])
    turned = nib.orientations.apply_orientation(array, change).transpose(2, 1, 0)
    return turned, _LPS_RAS @ new_affine @ _REVERSE, "".join(nib.orientations.ornt2axcodes(found))


def to_orientation(array: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """The reverse: a ``(D, H, W)`` array in LPS axes as ``(i, j, k)`` in ``orientation`` with its RAS affine."""
    try:
        wanted = nib.orientations.axcodes2ornt(orientation.upper())
        if sorted(wanted[:, 0]) != [0, 1, 2]:
            raise ValueError  # an axis twice, as in RAR
        change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), wanted)
    except (ValueError, KeyError, IndexError):
        raise BadInput(
            f"{orientation!r} is no orientation; give three letters such as LPS or RAS, one of each axis"
        ) from None
    stored = array.transpose(2, 1, 0)
    new_affine = to_nifti_affine(affine) @ nib.orientations.inv_ornt_aff(change, stored.shape)
    return nib.orientations.apply_orientation(stored, change), new_affine


def shifted(affine: np.ndarray, starts: list[int]) -> np.ndarray:
    """The affine of an array whose first voxel is voxel ``starts`` (d, h, w) of the old one."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(starts, dtype=float)
    return moved


def respaced(shape: tuple[int, int, int], affine: np.ndarray, spacing: tuple[float, float, float]):
    """Shape and affine of the grid with ``spacing`` (z, y, x) mm over the same extent, edge to edge."""
    if len(spacing) != 3 or not all(s > 0 for s in spacing):
        raise BadInput(f"spacing must be three positive lengths (z, y, x) in mm, got {spacing}")
    factor = np.asarray(spacing, dtype=float) / np.asarray(spacing_mm(affine))
    new_shape = tuple(max(1, int(round(n / f))) for n, f in zip(shape, factor, strict=True))
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factor
    # edges coincide, so the first centre moves by half the difference
    new[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    return new_shape, new


def same_grid(shape_a, affine_a, shape_b, affine_b, tolerance_mm: float = 1e-2) -> bool:
    """Whether two grids have the same shape and their corners lie within ``tolerance_mm`` of each other."""
    if tuple(shape_a) != tuple(shape_b):
        return False
    corners = np.array(list(product(*((0.0, n) for n in shape_a), (1.0,))))
    return bool(np.abs(corners @ (affine_a - affine_b).T).max() <= tolerance_mm)


def resample(array: np.ndarray, affine, shape, new_affine, order: str, fill: float | None = None) -> np.ndarray:
    """Sample ``array`` at the voxel centres of another grid.

    Args:
        array: ``(D, H, W)``.
        affine: of ``array``, index → LPS mm.
        shape: ``(D, H, W)`` of the result.
        new_affine: of the result.
        order: ``"linear"`` for HU, ``"nearest"`` for labels.
        fill: value outside ``array``; ``None`` repeats its edge, which is what a half-voxel overhang needs.

    Returns:
        the result, ``array``'s dtype.

    Source: SimpleITK's ResampleImageFilter.
    """
    import SimpleITK as sitk

    moving = to_sitk(array, affine)
    reference = to_sitk(np.zeros((1, 1, 1), dtype=np.uint8), new_affine)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in shape[::-1]])
    resampler.SetOutputOrigin(reference.GetOrigin())
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    resampler.SetInterpolator(sitk.sitkLinear if order == "linear" else sitk.sitkNearestNeighbor)
    resampler.SetUseNearestNeighborExtrapolator(fill is None)
    resampler.SetDefaultPixelValue(0.0 if fill is None else float(fill))
    return sitk.GetArrayFromImage(resampler.Execute(moving))


def to_sitk(array: np.ndarray, affine: np.ndarray):
    """A SimpleITK image of a ``(D, H, W)`` array; a sheared affine is refused, because SimpleITK has none."""
    import SimpleITK as sitk

    steps = affine[:3, 2::-1]  # columns of x = w, y = h, z = d
    spacing = np.linalg.norm(steps, axis=0)
    direction = steps / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        raise BadInput(
            "the affine is sheared (its axes are not at right angles); resample the file with another tool first"
        )
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.reshape(-1).tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image
