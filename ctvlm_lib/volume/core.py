"""A CT volume in HU with the geometry that places it in the patient."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.volume import grid
from ctvlm_lib.volume.hu import AIR_HU


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A CT in Hounsfield units whose array axes are DICOM's LPS axes, slowest first.

    ``hu[d, h, w]``: d grows upwards (inferior → superior), h backwards (anterior → posterior), w to the patient's left.
    Slice ``hu[d]`` shown as it stands is what a radiologist sees: the patient's right on the left of the screen.

    Attributes:
        hu: ``(D, H, W)`` float32, HU.
        affine: ``(4, 4)`` float64, maps an index ``(d, h, w, 1)`` to LPS millimetres ``(x, y, z, 1)``. May be oblique.
        orientation: the axes of the file it came from, e.g. ``"RAS"``; :meth:`save` writes in these.
        name: what to call it in messages and titles.
        notes: what reading it found worth saying, one sentence each.
    """

    hu: np.ndarray
    affine: np.ndarray
    orientation: str = "LPS"
    name: str = "volume"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.hu.ndim != 3:
            raise BadInput(f"a volume has 3 axes (D, H, W), got an array of shape {self.hu.shape}")
        if self.hu.size == 0:
            raise BadInput(f"a volume of {grid.size_text(self.hu.shape)} has no voxels; fetch it again")
        object.__setattr__(self, "hu", np.ascontiguousarray(self.hu, dtype=np.float32))
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))

    def __repr__(self) -> str:
        spacing = "×".join(f"{s:.2f}" for s in self.spacing_mm)
        low, high = (f"{v:.0f}".replace("-", "−") for v in (self.hu.min(), self.hu.max()))
        stored = "" if self.orientation == "LPS" else f" (file: {self.orientation})"
        return f"Volume({grid.size_text(self.shape)}, {spacing} mm, LPS{stored}, HU {low}…{high})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) in voxels."""
        return self.hu.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x): distance between neighbouring voxels along each array axis, mm."""
        return grid.spacing_mm(self.affine)

    @property
    def nifti_affine(self) -> np.ndarray:
        """The same geometry as NIfTI states it: ``(w, h, d, 1)`` → RAS millimetres."""
        return grid.to_nifti_affine(self.affine)

    def mm_of(self, voxel: np.ndarray) -> np.ndarray:
        """LPS millimetres ``(…, 3)`` as (x, y, z) of voxel indices ``(…, 3)`` as (d, h, w); fractions are allowed."""
        return np.asarray(voxel, dtype=float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def voxel_of(self, mm: np.ndarray) -> np.ndarray:
        """Voxel indices ``(…, 3)`` as (d, h, w), not rounded, of LPS millimetres ``(…, 3)`` as (x, y, z)."""
        return (np.asarray(mm, dtype=float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def resample(self, spacing_mm: tuple[float, float, float]) -> "Volume":
        """Resample linearly to another spacing (z, y, x), mm, over the same extent; nothing is smoothed first."""
        shape, affine = grid.respaced(self.shape, self.affine, spacing_mm)
        hu = grid.resample(self.hu, self.affine, shape, affine, order="linear")
        return replace(self, hu=hu, affine=affine)

    def resample_like(self, other: "Volume") -> "Volume":
        """Resample linearly onto another volume's grid; voxels outside this one become air (−1000 HU)."""
        hu = grid.resample(self.hu, self.affine, other.shape, other.affine, order="linear", fill=AIR_HU)
        return replace(self, hu=hu, affine=other.affine.copy())

    def resize(self, shape: tuple[int, int, int]) -> "Volume":
        """Resample linearly to so many voxels over the same extent, whatever that does to the spacing."""
        spacing = tuple(s * n / m for s, n, m in zip(self.spacing_mm, self.shape, shape, strict=True))
        affine = grid.respaced(self.shape, self.affine, spacing)[1]
        return replace(self, hu=grid.resample(self.hu, self.affine, shape, affine, order="linear"), affine=affine)

    def crop(self, slices: tuple[slice, slice, slice]) -> "Volume":
        """Cut out a box given by slices of step 1; millimetre positions stay true."""
        starts = [s.indices(n)[0] for s, n in zip(slices, self.shape, strict=True)]
        return replace(self, hu=self.hu[slices], affine=grid.shifted(self.affine, starts))

    def crop_or_pad(self, shape: tuple[int, int, int], fill: float = AIR_HU) -> "Volume":
        """Centre-crop or pad each axis to ``shape``; positions in mm stay true. An odd voxel goes to the far side."""
        starts = [(n - m) // 2 if n >= m else -((m - n) // 2) for n, m in zip(self.shape, shape, strict=True)]
        hu = np.full(shape, fill, dtype=np.float32)
        inside = [slice(max(0, -s), min(m, n - s)) for s, n, m in zip(starts, self.shape, shape, strict=True)]
        source = [slice(i.start + s, i.stop + s) for i, s in zip(inside, starts, strict=True)]
        hu[tuple(inside)] = self.hu[tuple(source)]
        return replace(self, hu=hu, affine=grid.shifted(self.affine, starts))

    def save(self, path: str | Path) -> Path:
        """Write a NIfTI in the file's own orientation; int16 if every value is whole, float32 otherwise.

        Raises:
            BadInput: the name does not end in ``.nii`` or ``.nii.gz``, or the folder can't be written to.
        """
        whole = np.array_equal(self.hu, np.rint(self.hu)) and self.hu.min() >= -32768 and self.hu.max() <= 32767
        return save_nifti(path, self.hu.astype(np.int16) if whole else self.hu, self.affine, self.orientation)


def save_nifti(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray,
    orientation: str = "LPS",
    dtype=None,
    extension: str = "",
) -> Path:
    """Write a ``(D, H, W)`` array in LPS axes as NIfTI with axes ``orientation``, whole or not at all.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: ``(D, H, W)``, or ``(D, H, W, 3)`` uint8 for RGB (NIfTI datatype RGB24).
        affine: index ``(d, h, w)`` → LPS mm.
        orientation: three letters, e.g. ``"RAS"``.
        extension: text for the header's extension, such as a table of labels.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise BadInput(f"{path.name} is no NIfTI name; end it in .nii or .nii.gz")
    if array.ndim == 4:
        array = np.ascontiguousarray(array).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    stored, stored_affine = grid.to_orientation(array, affine, orientation)
    image = nib.Nifti1Image(stored, stored_affine, dtype=dtype or stored.dtype)
    image.set_sform(stored_affine, code=1)
    image.set_qform(stored_affine, code=1)
    image.header.set_xyzt_units("mm")
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, extension.encode()))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return path
