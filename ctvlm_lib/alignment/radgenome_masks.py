"""A region's mask of RadGenome-ChestCT on another grid of the same patient.

It comes there by its own geometry, which has to cover the same part of the patient as the volume. Where its header
states none, and it has as many voxels as the data set's own volume, voxel stands for voxel, as in the data set's code.
Else it isn't used: a mask in the wrong place would teach the wrong thing, and nothing would show it.

Source: RadGenome-ChestCT at b7d34bd, which reads volumes and masks as arrays and never looks at a header.
"""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib import mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.volume import Volume, grid
from ctvlm_lib.volume.read import open_nifti

if TYPE_CHECKING:
    from ctvlm_lib.alignment.radgenome_pairs import Pair


def on_field(path: Path, pair: "Pair", scan: Volume, field: Volume) -> np.ndarray:
    """A mask on the grid of a field.

    Args:
        path: of the mask.
        pair: whose it is.
        scan: its volume as it lies on the disk. field: the part that is wanted, on its grid.

    Returns:
        bool ``(D, H, W)``.

    Raises:
        BadInput: it can't be read, or covers another part of the patient.
    """
    found = mask.load(path)
    if not covers(found, scan):
        found = _as_the_volume(path, pair)
    return found.to(field).labels > 0


def covers(found: LabelMap, scan: Volume) -> bool:
    """Whether both cover the same part of the patient, to two voxels: masks may have been made on a resampled scan."""
    ends = [_ends_mm(one.shape, one.affine) for one in (found, scan)]
    tolerance = 2 * max(*found.spacing_mm, *scan.spacing_mm)
    return bool(np.abs(ends[0] - ends[1]).max() <= tolerance)


def _ends_mm(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Lowest and highest LPS coordinates of a grid's outer edges: ``(2, 3)`` mm."""
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in shape), (1.0,)))) @ affine.T
    return np.stack([corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)])


def _as_the_volume(path: Path, pair: "Pair") -> LabelMap:
    """A mask whose header states no geometry, with the volume's."""
    stored, beside = open_nifti(path), open_nifti(pair.volume, header_only=True)
    unstated = np.allclose(stored.affine, np.eye(4), atol=1e-3)
    if not (pair.own and unstated and stored.shape[:3] == beside.shape[:3]):
        raise BadInput(f"{path.name} covers another part of the patient than the volume; is it of another scan?")
    array, affine, orientation = grid.from_nifti(np.asanyarray(stored.dataobj).reshape(stored.shape[:3]), beside.affine)
    return LabelMap((array > 0).astype(np.uint16), affine, {1: path.name}, orientation)
