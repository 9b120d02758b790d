"""Outline anything: boxes and polygons drawn on a slice and carried over a range of slices, and a model's masks.

A clinician's own CT has no masks. What is drawn becomes a structure like any other, so that prompts, exports and
questions treat it the same; it may share voxels with the others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.view.screen import Frame
from ctvlm_lib.volume import Volume

DRAWN = "drawn region"
UNRELIABLE = "by a small network that has seen phantoms only: unreliable, look at every slice"


def region(
    framed: Frame, kind: str, points: Sequence[tuple[int, int]], first: int, last: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """The mask of a shape that was drawn on a slice.

    Args:
        framed: of the plane that it was drawn on.
        kind: "box", whose two points are opposite corners, or "polygon", whose points are its corners in order.
        points: (row, column) of pixels on the screen; they belong to the shape.
        first, last: slices that it is carried over, both included, in either order.
        shape: (D, H, W) of the mask.

    Returns:
        bool ``(D, H, W)``.

    Raises:
        BadInput: too few points, a point or slice outside the volume, or a polygon without an area.
    """
    least = {"box": 2, "polygon": 3}
    if kind not in least or len(points) < least[kind] or (kind == "box" and len(points) != 2):
        raise BadInput(
            f"a {kind} of {len(points)} points can't be drawn; a box has two corners, a polygon at least three"
        )
    rows, columns = np.array(points, dtype=int).T
    slices, height, width = framed.shape
    if rows.min() < 0 or columns.min() < 0 or rows.max() >= height or columns.max() >= width:
        raise BadInput(f"a point lies outside the slice of {height}×{width} pixels; draw within it")
    first, last = sorted((int(first), int(last)))
    if first < 0 or last >= slices:
        raise BadInput(f"slices {first} to {last} were given and there are 0 to {slices - 1}; choose among these")
    if kind == "box":
        flat = np.zeros((height, width), bool)
        flat[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    else:
        flat = _polygon(rows, columns, (height, width))
    mask = np.zeros(shape, bool)
    seen = np.moveaxis(mask, framed.axes, (0, 1, 2))[:, :: _step(framed.flips[0]), :: _step(framed.flips[1])]
    seen[first : last + 1] = flat
    return mask


def with_region(labels: LabelMap, name: str, mask: np.ndarray) -> LabelMap:
    """The structures and one more, which may share voxels with them; one of the same name is replaced.

    Raises:
        BadInput: an empty mask, another grid, or the name of a structure that wasn't drawn.
    """
    name = " ".join(name.split())
    if not name:
        raise BadInput("the region has no name; give it one")
    if mask.shape != labels.shape:
        raise BadInput(f"the region is {mask.shape} and the CT is {labels.shape}; draw it on this CT")
    if not mask.any():
        raise BadInput("the region has no voxel; draw a larger one")
    own = [key for key, known in labels.names.items() if known == name]
    if own and name not in labels.overlapping:
        raise BadInput(f"there is a structure {name!r} already; give the region another name")
    key = own[0] if own else max(labels.names, default=0) + 1
    return replace(labels, names=labels.names | {key: name}, overlapping=labels.overlapping | {name: mask})


def without_region(labels: LabelMap, name: str) -> LabelMap:
    """The structures without one that was drawn."""
    names = {key: known for key, known in labels.names.items() if known != name}
    return replace(labels, names=names, overlapping={n: m for n, m in labels.overlapping.items() if n != name})


def joined(labels: LabelMap, others: LabelMap, note: str) -> LabelMap:
    """The structures of two maps on one grid; of the second those that the first hasn't got."""
    made = replace(labels, notes=(*labels.notes, *others.notes, note))
    for name in others.present:
        if name not in made.present:
            made = with_region(without_region(made, name), name, others.binary(name))
    return made


def predicted(volume: Volume) -> LabelMap:
    """The masks of the network that ships with the workbook, trained on the cohort's phantoms alone.

    Source: :mod:`ctvlm_lib.segment.small`.
    """
    from ctvlm_lib.segment import load_small, segment

    trained = load_small()
    return segment(volume, list(trained.classes), trained)


def _polygon(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in a polygon through pixels' centres, its corners and edges included."""
    from PIL import Image, ImageDraw

    picture = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(picture).polygon([(int(c), int(r)) for r, c in zip(rows, columns, strict=True)], fill=1, outline=1)
    flat = np.array(picture, dtype=bool)
    if np.count_nonzero(flat) < 3 or np.linalg.matrix_rank(np.stack([rows - rows[0], columns - columns[0]])) < 2:
        raise BadInput("the polygon's corners lie on one line; draw an area")
    return flat


def _step(flipped: bool) -> int:
    return -1 if flipped else 1
