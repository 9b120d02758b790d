"""Make the small synthetic CT in ``data_samples/synthetic``: a geometric phantom, not a person's anatomy.

A miniature trunk (about 102 × 88 × 120 mm) of ellipsoids with textbook HU and a little noise. It is lopsided on
purpose (liver on the right, spleen on the left, heart to the left), stored in RAS order with anisotropic voxels, so
that a swapped axis or an ignored affine shows. It uses only correctly rounded arithmetic and a frozen random stream:
the arrays are the same on any machine, and the gzip headers hold neither a time nor a file name.

Run it to write the files again: ``python data_samples/make_synthetic_case.py``.
"""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

FOLDER = Path(__file__).resolve().parent / "synthetic"
SHAPE = (72, 64, 40)  # NIfTI order: x grows to the patient's Right, y to Anterior, z to Superior
SPACING_MM = (1.5, 1.5, 3.0)
ORIGIN_MM = (-53.25, -47.25, -60.0)  # of the first voxel; the trunk's axis is x = y = 0
AIR_HU, BONE_HU, DISC_HU = -1000, 350, 90
NOISE_HU = 6  # uniform in ±6, inside the trunk only

LEFT_LUNG = ((-24.0, -8.0, 36.0), (16.0, 20.0, 20.0))  # centre and half axes (x, y, z) in mm
RIGHT_LUNG = ((24.0, -8.0, 36.0), (17.0, 20.0, 20.0))
ANY_Z = (-99.0, 99.0)
WALL = ((-100, (51.0, 44.0, 1e6)), (45, (48.0, 41.0, 1e6)), (-80, (44.0, 37.0, 1e6)))  # skin fat, muscle, inner fat

# id and name in VISTA-3D's vocabulary, HU, (centre, half axes) in mm, z from … below in mm; later ones lie on top.
# A half axis of 1e6 mm makes an upright cylinder.
PARTS = (
    (28, "left lung upper lobe", -830, LEFT_LUNG, (39.0, 99.0)),
    (29, "left lung lower lobe", -790, LEFT_LUNG, (-99.0, 39.0)),
    (30, "right lung upper lobe", -830, RIGHT_LUNG, (45.0, 99.0)),
    (31, "right lung middle lobe", -810, RIGHT_LUNG, (33.0, 45.0)),
    (32, "right lung lower lobe", -790, RIGHT_LUNG, (-99.0, 33.0)),
    (115, "heart", 50, ((-8.0, 10.0, 34.0), (17.0, 15.0, 16.0)), ANY_Z),
    (1, "liver", 60, ((21.0, 4.0, -4.0), (23.0, 24.0, 19.0)), ANY_Z),
    (3, "spleen", 55, ((-32.0, -14.0, -2.0), (9.0, 14.0, 13.0)), ANY_Z),
    (5, "right kidney", 32, ((22.0, -20.0, -40.0), (8.0, 9.0, 14.0)), ANY_Z),
    (14, "left kidney", 32, ((-24.0, -20.0, -34.0), (8.0, 9.0, 14.0)), ANY_Z),
    (6, "aorta", 160, ((-5.0, -13.0, 0.0), (4.5, 4.5, 1e6)), (-54.0, 54.0)),
)
SPINE = ((0.0, -28.0, 0.0), (9.0, 9.0, 1e6))
VERTEBRAE = tuple(enumerate(("vertebrae L2", "vertebrae L1", "vertebrae T12", "vertebrae T11", "vertebrae T10"), 36))
VERTEBRA_MM = 24.0  # the lowest slice of each holds the disc below it


def build() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Compute the case.

    Returns:
        hu: int16, (72, 64, 40) in NIfTI's order (x, y, z), RAS.
        labels: uint8 of the same shape, VISTA-3D ids, 0 elsewhere.
        affine: (4, 4) float64, index to RAS mm.
        names: id to VISTA-3D name, for every id in ``labels``.
    """
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = ORIGIN_MM
    grid = np.meshgrid(*(ORIGIN_MM[k] + SPACING_MM[k] * np.arange(SHAPE[k]) for k in range(3)), indexing="ij")
    trunk = _ellipsoid(grid, (0.0, 0.0, 0.0), WALL[0][1])
    hu = np.full(SHAPE, AIR_HU, np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    for value, half_axes in WALL:
        hu[_ellipsoid(grid, (0.0, 0.0, 0.0), half_axes)] = value
    for number, _, value, (centre, half_axes), (low, high) in PARTS:
        inside = _ellipsoid(grid, centre, half_axes) & (grid[2] >= low) & (grid[2] < high)
        hu[inside], labels[inside] = value, number
    _add_spine(grid, hu, labels)
    noise = np.random.RandomState(20).randint(-NOISE_HU, NOISE_HU + 1, SHAPE)  # RandomState's stream never changes
    hu[trunk] += noise[trunk].astype(np.int16)
    return hu, labels, affine, {part[0]: part[1] for part in (*PARTS, *VERTEBRAE)}


def _ellipsoid(grid: list[np.ndarray], centre: tuple, half_axes: tuple) -> np.ndarray:
    """Where ((x − c) / a)² summed over the axes is at most 1."""
    return sum(((axis - c) / a) ** 2 for axis, c, a in zip(grid, centre, half_axes, strict=True)) <= 1


def _add_spine(grid: list[np.ndarray], hu: np.ndarray, labels: np.ndarray) -> None:
    column = _ellipsoid(grid, *SPINE)
    for k, (number, _) in enumerate(VERTEBRAE):
        bottom = ORIGIN_MM[2] + k * VERTEBRA_MM
        level = column & (grid[2] >= bottom) & (grid[2] < bottom + VERTEBRA_MM)
        disc = level & (grid[2] < bottom + SPACING_MM[2])
        hu[level], labels[level] = BONE_HU, number
        hu[disc], labels[disc] = DISC_HU, 0


def write(folder: Path = FOLDER) -> None:
    """Write ``ct.nii.gz``, ``labels.nii.gz`` and ``names.json`` into a folder."""
    hu, labels, affine, names = build()
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("ct.nii.gz", hu), ("labels.nii.gz", labels)):
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        with (folder / name).open("wb") as sink, gzip.GzipFile("", "wb", 9, sink, mtime=0) as packed:
            packed.write(image.to_bytes())
    text = json.dumps({str(number): names[number] for number in sorted(names)}, indent=1)
    (folder / "names.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
