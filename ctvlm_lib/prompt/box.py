"""The box prompt: a rectangle around the region on each axial slice."""

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.prompt.contour import check_mask, check_thickness


def box_outline(mask: np.ndarray, thickness: int = 3, box: str = "slice") -> np.ndarray:
    """Draw the tight bounding box of a region on each axial slice that meets it.

    A line of one pixel runs along the region's outermost rows and columns; a thicker one is centred on it, so that half
    of it lies outside. Parts beyond the image are cut off.

    Args:
        mask: bool ``(D, H, W)`` in LPS axes.
        thickness: of the line, pixels, odd.
        box: ``"slice"`` fits each slice's own part of the region; ``"volume"`` draws the section of the one 3-D box on
            each slice between its lowest and highest.

    Returns:
        bool ``(D, H, W)``: the line. Empty if the mask is.

    Raises:
        BadInput: the mask is not a 3-D bool array, or an option is none of the above.

    Source: dualbox.txt §3.1, "the minimal bounding box that encloses the ROI … on each intersecting 2D slice", which
        leaves open whether the box is one of the slice or of the volume.
    """
    check_mask(mask)
    check_thickness(thickness)
    check_box(box)
    line = np.zeros(mask.shape, dtype=bool)
    whole = bounding_box(mask)
    if whole is None:
        return line
    for k in range(whole[0].start, whole[0].stop):
        section = whole[1:] if box == "volume" else _plane_box(mask[k], whole[1:])
        if section is not None:
            _rectangle(line[k], section, thickness // 2)
    return line


def _plane_box(plane: np.ndarray, within: tuple[slice, slice]) -> tuple[slice, slice] | None:
    """The tight box of one slice, searched inside the whole region's box."""
    found = bounding_box(plane[within])
    if found is None:
        return None
    return tuple(slice(f.start + w.start, f.stop + w.start) for f, w in zip(found, within, strict=True))


def _rectangle(plane: np.ndarray, section: tuple[slice, slice], reach: int) -> None:
    """Set a frame whose middle runs along the section's outermost pixels, ``2 reach + 1`` pixels thick."""
    (top, bottom), (left, right) = ((s.start, s.stop - 1) for s in section)
    outer = [slice(max(0, low - reach), high + reach + 1) for low, high in ((top, bottom), (left, right))]
    for edge in (top, bottom):
        plane[max(0, edge - reach) : edge + reach + 1, outer[1]] = True
    for edge in (left, right):
        plane[outer[0], max(0, edge - reach) : edge + reach + 1] = True


def check_box(box: str) -> None:
    """Raise BadInput unless ``box`` is a way to draw the box."""
    if box not in ("slice", "volume"):
        raise BadInput(f"box must be 'slice' or 'volume', got {box!r}")
