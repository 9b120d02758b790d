"""How far a prompt drawn from one mask is from the prompt drawn from another: what a predicted mask costs."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.prompt.contour import contour


@dataclass(frozen=True)
class Agreement:
    """A prompt against the true one.

    Attributes:
        contour_mm: mean distance from a pixel of either contour to the other contour in the same slice, mm, over the
            slices that both are drawn on; nan if there is none.
        contour_p95_mm: the distance that 95 % of these pixels stay below, mm.
        box_mm: mean distance between corresponding sides of the two boxes in a slice, mm, over the same slices.
        slices: how many slices the true prompt is drawn on.
        missed: how many of them the other prompt leaves out.
        added: how many slices only the other prompt is drawn on.
    """

    contour_mm: float
    contour_p95_mm: float
    box_mm: float
    slices: int
    missed: int
    added: int


def agreement(
    mask: np.ndarray, true: np.ndarray, spacing_mm: tuple[float, float, float], *, largest_component: bool = True
) -> Agreement:
    """Compare the prompts that two masks of one region lead to, slice by slice, as they are drawn.

    Distances are within a slice: a prompt on another slice is no prompt for this one, so slices that only one of the
    two is drawn on are counted instead.

    Args:
        mask: bool ``(D, H, W)``, for example a model's.
        true: bool, same shape.
        spacing_mm: (z, y, x).
        largest_component: as :func:`ctvlm_lib.prompt.contour` draws it.

    Raises:
        BadInput: two shapes, or a true mask without a voxel.
    """
    if mask.shape != true.shape:
        raise BadInput(f"the masks have {mask.shape} and {true.shape} voxels; put both on one grid with to(volume)")
    if not true.any():
        raise BadInput("the true mask is empty, so there is no prompt to compare with")
    lines = [contour(one, thickness=1, largest_component=largest_component) for one in (mask, true)]
    drawn, wanted = (line.any(axis=(1, 2)) for line in lines)
    plane_mm = spacing_mm[1:]
    distances, sides = [np.zeros(0)], []
    for k in np.flatnonzero(drawn & wanted):
        distances += [_to_line(lines[0][k], lines[1][k], plane_mm), _to_line(lines[1][k], lines[0][k], plane_mm)]
        sides += _between_boxes(lines[0][k], lines[1][k], plane_mm)
    found = np.concatenate(distances)
    return Agreement(
        contour_mm=float(found.mean()) if found.size else float("nan"),
        contour_p95_mm=float(np.quantile(found, 0.95)) if found.size else float("nan"),
        box_mm=float(np.mean(sides)) if sides else float("nan"),
        slices=int(wanted.sum()),
        missed=int((wanted & ~drawn).sum()),
        added=int((drawn & ~wanted).sum()),
    )


def _to_line(pixels: np.ndarray, line: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Distance in mm from each pixel of a set to the nearest pixel of a line."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~line, spacing_mm)[pixels]


def _between_boxes(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float]) -> list[float]:
    """Distances in mm between the four corresponding sides of two lines' boxes."""
    made = []
    for one, other, mm in zip(bounding_box(a), bounding_box(b), spacing_mm, strict=True):
        made += [abs(one.start - other.start) * mm, abs(one.stop - other.stop) * mm]
    return made
