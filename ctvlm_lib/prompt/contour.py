"""The contour prompt: a thin closed line around the region on every axial slice that meets it."""

from numbers import Integral

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box, largest_in

MAX_THICKNESS = 99  # pixels: each slice is padded by about as much


def contour(mask: np.ndarray, thickness: int = 3, side: str = "inner", largest_component: bool = True) -> np.ndarray:
    """Outline a region on each axial slice.

    ``side="inner"`` starts from the region's own border pixels: those of the region with a pixel outside it among their
    eight neighbours. ``side="both"`` starts from equation (1) as printed, which is symmetric in region and background
    and so marks the pixels on both sides of the edge: one pixel more. Either line is then dilated with a square of
    ``thickness`` pixels, as the paper dilates its one-pixel line to three. Pixels beyond the image count as background,
    so a region cut by the image border is closed along it.

    Args:
        mask: bool ``(D, H, W)`` in LPS axes; axis 0 counts axial slices.
        thickness: of the dilated inner line, pixels, odd; 1 draws the line undilated.
        side: ``"inner"`` or ``"both"``.
        largest_component: keep only the largest 26-connected part first, as the paper does.

    Returns:
        bool ``(D, H, W)``: the line. Empty if the mask is.

    Raises:
        BadInput: the mask is not a 3-D bool array, or an option is none of the above.

    Source: contour.txt §3.1, eq. (1).
    """
    check_mask(mask)
    check_thickness(thickness)
    check_side(side)
    line = np.zeros(mask.shape, dtype=bool)
    box = bounding_box(mask)
    if box is None:
        return line
    region = largest_in(mask[box]) if largest_component else np.ascontiguousarray(mask[box])
    reach = thickness // 2
    inside, outside = reach + 1, reach + (side == "both")
    wide = _wider(box, outside, mask.shape)
    for k, plane in enumerate(region, start=box[0].start):
        if plane.any():  # a plane fits the processor's cache: twice as fast as whole volumes
            line[(k, *wide)] = _line(plane, inside, outside)[_inside(box, wide, outside)]
    return line


def _line(plane: np.ndarray, inside: int, outside: int) -> np.ndarray:
    """Pixels within ``inside`` of the background or ``outside`` of the region; the plane grows by ``outside``.

    Distances are the chessboard's. Dilating eq. (1)'s line with a square of 2r + 1 pixels gives the same set with r
    added to both reaches, so one widening and one narrowing of the region do the work of border, dilation and union.
    """
    core = _narrow(np.pad(plane, inside), 2 * inside + 1)
    line = _widen(np.pad(plane, 2 * outside), 2 * outside + 1)
    margin = outside
    height, width = plane.shape
    line[margin : margin + height, margin : margin + width] &= ~core
    return line


def _narrow(plane: np.ndarray, size: int) -> np.ndarray:
    """Minimum over a square of ``size``; the result is smaller by size − 1 on each axis."""
    return _run(_run(plane, size, 0, np.logical_and), size, 1, np.logical_and)


def _widen(plane: np.ndarray, size: int) -> np.ndarray:
    """Maximum over a square of ``size``; the result is smaller by size − 1 on each axis."""
    return _run(_run(plane, size, 0, np.logical_or), size, 1, np.logical_or)


def _run(plane: np.ndarray, size: int, axis: int, combine) -> np.ndarray:
    """Combine ``size`` neighbours along an axis in about log2(size) steps, each doubling the run."""
    done = 1
    while done < size:
        step = min(done, size - done)
        length = plane.shape[axis] - step
        head, tail = [(slice(None),) * axis + (slice(s, s + length),) for s in (0, step)]
        plane = combine(plane[head], plane[tail])
        done += step
    return plane


def _wider(box: tuple[slice, ...], by: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The box's in-plane slices grown by ``by`` pixels, clipped at the image border."""
    return tuple(slice(max(0, s.start - by), min(n, s.stop + by)) for s, n in zip(box[1:], shape[1:], strict=True))


def _inside(box: tuple[slice, ...], wide: tuple[slice, slice], by: int) -> tuple[slice, slice]:
    """Which part of a plane grown by ``by`` falls inside the image."""
    return tuple(slice(w.start - (s.start - by), w.stop - (s.start - by)) for s, w in zip(box[1:], wide, strict=True))


def check_mask(mask: np.ndarray) -> None:
    """Raise BadInput unless ``mask`` is a 3-D bool array."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 3:
        what = f"{mask.dtype} array of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise BadInput(
            f"a mask is a bool array (D, H, W), got {what}; take labels.binary(name), or compare with the label:"
            " array == 1"
        )


def check_thickness(thickness: int) -> None:
    """Raise BadInput unless ``thickness`` is an odd number of pixels from 1 to MAX_THICKNESS."""
    if not isinstance(thickness, Integral) or thickness < 1 or thickness % 2 == 0:
        raise BadInput(
            f"thickness must be an odd number of pixels (1, 3, 5 …), got {thickness};"
            " an even line can't be centred on a pixel"
        )
    if thickness > MAX_THICKNESS:
        raise BadInput(f"a line of {thickness} pixels would hide the slice; choose at most {MAX_THICKNESS}")


def check_side(side: str) -> None:
    """Raise BadInput unless ``side`` is a side of the edge that eq. (1) can start from."""
    if side not in ("inner", "both"):
        raise BadInput(f"side must be 'inner' or 'both', got {side!r}")
