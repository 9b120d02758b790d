"""A real CT in the cohort's field: 340 mm along each axis on the phantoms' coarse grid, where their patients lie.

    x, y   the middle of the body in the middle of the field
    z      T12 where a phantom's T12 is, moved within the range of their poses to have most of the body in the field
    HU     a coarse voxel is the mean of the 16 finer ones that it covers, as partial volume is drawn in phantoms
    masks  a coarse voxel belongs to a structure that fills half of it or more

The place depends on the CT alone, never on what is marked, so that where a prompt lies tells no more than in the
cohort. What the scan doesn't cover is air.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box, largest_component
from ctvlm_lib.records.measured_survey import BODY_HU
from ctvlm_lib.records.phantom.body import T12_MIDDLE
from ctvlm_lib.records.phantom.canvas import FIELD_MM, PoseRange
from ctvlm_lib.volume import Volume, grid
from ctvlm_lib.volume.hu import AIR_HU

SHAPE = (32, 64, 64)  # of the cohort, (D, H, W)
FINER = (4, 2, 2)  # finer voxels in a coarse one along each axis
LANDMARK = "vertebrae T12"
RANGE_HU = (-1024.0, 3071.0)  # of the phantoms' scanners


@dataclass(frozen=True, eq=False)
class Field:
    """A CT as the cohort's models can take it.

    Attributes:
        volume: whole HU on the coarse grid, ``(D, H, W)`` in LPS axes, with its place in the patient.
        masks: structure → bool ``(D, H, W)``, for those with voxels there.
        body_share: share of the scanned body that lies in the field, 0…1.
        scan_share: share of the field's height that the scan covers, 0…1.
    """

    volume: Volume
    masks: dict[str, np.ndarray]
    body_share: float
    scan_share: float


def in_field(
    volume: Volume, labels: LabelMap, names: Sequence[str] | None = None, shape: tuple[int, int, int] = SHAPE
) -> Field:
    """Put a CT and its masks into the field.

    Args:
        volume: the CT.
        labels: its masks; T12, if there, says how high the field lies, else its middle is the body's.
        names: the structures to keep; None keeps all.
        shape: of the coarse grid.

    Raises:
        BadInput: a structure that the masks don't have, or nothing in the CT that could be a body.
    """
    body = largest_component(volume.hu > BODY_HU)
    if not body.any():
        raise BadInput(f"nothing in {volume.name} is denser than {BODY_HU} HU; give a CT in HU")
    affine = centred(centre_mm(volume, body, labels), shape)
    fine_shape = tuple(n * k for n, k in zip(shape, FINER, strict=True))
    spacing = tuple(FIELD_MM / n for n in fine_shape)
    fine_affine = grid.respaced(shape, affine, spacing)[1]
    hu = grid.resample(volume.hu, volume.affine, fine_shape, fine_affine, order="linear", fill=AIR_HU)
    fine = replace(volume, hu=np.clip(hu, *RANGE_HU), affine=fine_affine)
    kept, masks = labels.to(fine), {}
    for name in labels.present if names is None else names:
        labels.binary(name)  # says what is wrong with the name
        filled = _means(kept.binary(name).astype(np.float32)) >= 0.5 if name in kept.present else np.zeros(shape, bool)
        if filled.any():
            masks[name] = filled
    coarse = replace(volume, hu=np.rint(_means(fine.hu)), affine=affine)  # whole HU, as a scanner's
    return Field(coarse, masks, _share(volume, body, affine, shape), _covered(volume, coarse))


def centre_mm(volume: Volume, body: np.ndarray, labels: LabelMap) -> np.ndarray:
    """Where the middle of the field lies in the patient, LPS mm (x, y, z).

    Args:
        volume: the CT.
        body: bool ``(D, H, W)``. labels: masks, with T12 or without.
    """
    box = bounding_box(body)
    middle = volume.mm_of([(s.start + s.stop - 1) / 2 for s in box])
    if LANDMARK not in labels.present:
        return middle
    height = volume.mm_of(np.argwhere(labels.binary(LANDMARK)).mean(axis=0))[2] - T12_MIDDLE
    return np.array([*middle[:2], height - _best_shift(volume, body, height)])


def centred(centre: Sequence[float], shape: tuple[int, int, int]) -> np.ndarray:
    """Affine (d, h, w) → LPS mm of the field around a centre (x, y, z)."""
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag([FIELD_MM / n for n in shape[::-1]]))  # d is z, h is y, w is x
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _best_shift(volume: Volume, body: np.ndarray, height: float) -> float:
    """How far the patient is moved up, mm: as far as phantoms are at most, for most of the body in the field."""
    limit = PoseRange().shift_share * FIELD_MM
    depth, height_vox, width = body.shape
    z = volume.mm_of([(k, (height_vox - 1) / 2, (width - 1) / 2) for k in range(depth)])[:, 2]
    count = np.count_nonzero(body, axis=(1, 2))
    shifts = sorted(np.linspace(-limit, limit, 2 * int(limit) + 1), key=abs)  # of equals, the nearest to none
    return max(shifts, key=lambda by: int(count[np.abs(z - (height - by)) <= FIELD_MM / 2].sum()))


def _means(fine: np.ndarray) -> np.ndarray:
    """Mean of each block of finer voxels."""
    sides = [side for n, k in zip(fine.shape, FINER, strict=True) for side in (n // k, k)]
    return fine.reshape(sides).mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)


def _share(volume: Volume, body: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Share of the body's voxels whose centres lie in the field."""
    at = (volume.mm_of(np.argwhere(body)) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return float(np.all((at >= -0.5) & (at <= np.array(shape) - 0.5), axis=1).mean())


def _covered(volume: Volume, coarse: Volume) -> float:
    """Share of the field's slices whose middle lies in the scan."""
    depth, height, width = coarse.shape
    middles = [(k, (height - 1) / 2, (width - 1) / 2) for k in range(depth)]
    at = volume.voxel_of(coarse.mm_of(middles))[:, 0]
    return float(((at >= -0.5) & (at <= volume.shape[0] - 0.5)).mean())
