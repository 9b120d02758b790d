"""Several slices of one volume in one figure: a montage, and the three planes through a point."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.one import check_shapes, entries, largest, present, regions
from ctvlm_lib.view.panel import COLOURS, GUTTER, ROW, Outline, Panel, Picture, legend, legend_height
from ctvlm_lib.view.screen import PLANES, Frame, frame, minus, position_text, slice_index, window_text

GAP = 0.06  # inches between the panels of a montage
CROSS = {"axial": ("sky", "-"), "coronal": ("orange", (0, (5, 2))), "sagittal": ("purple", (0, (1.5, 1.5)))}


def montage(
    volume,
    plane: str = "axial",
    n: int = 12,
    indices: Sequence[int] | None = None,
    window="soft tissue",
    *,
    outlines: Sequence[Outline] = (),
    labels=None,
    names: Sequence[str] | None = None,
    title: str = "",
    columns: int | None = None,
    width_in: float = 7,
    smooth: bool = False,
    fill: float = 0,
) -> Picture:
    """Draw several slices of one plane; axial ones run from superior to inferior, as on a light box.

    Args:
        volume, plane, window, outlines, labels, names, title, smooth, fill: as :func:`ctvlm_lib.view.slice_figure`.
        n: so many slices, evenly spaced over what is outlined, or over the volume.
        indices: exactly these array indices, in this order.
        columns: panels in a row.
        width_in: width of the figure, inches.
    """
    framed = frame(volume, plane)
    check_shapes(volume, [mask for mask, *_ in outlines], [labels.labels] if labels is not None else [])
    indices = (
        [slice_index(framed, i) for i in indices]
        if indices is not None
        else _spread(framed, n, [mask for mask, *_ in outlines])
    )
    columns = min(len(indices), columns or _columns(len(indices), framed))
    rows = ceil(len(indices) / columns)
    names = largest(framed, labels, indices) if names is None else names
    listed, inner = (
        entries(outlines, names, _met(labels, names, [(framed, index) for index in indices])),
        width_in - 2 * GUTTER,
    )
    width = (inner - GAP * (columns - 1)) / columns
    height = width * framed.size_mm[0] / framed.size_mm[1]
    base = legend_height(listed, inner) + 0.06 + ROW
    figure, top = page(width_in, base + rows * height + (rows - 1) * GAP, title, plane, window_text(window), above=ROW)
    for place, index in enumerate(indices):
        row, column = divmod(place, columns)
        box = (GUTTER + column * (width + GAP), top - (row + 1) * height - row * GAP, width, height)
        panel = Panel(figure, box, framed, smooth, fill)
        cut = [(framed.cut(mask, index), colour) for mask, colour, *_ in outlines]
        panel.show(framed.cut(volume.hu, index), window, cut, regions(framed, labels, names, index))
        panel.corner(short(framed, index))
        below = place + columns >= len(indices)
        last = column == columns - 1 or place == len(indices) - 1
        panel.letters("L" * (column == 0) + "R" * last + "T" * (row == 0) + "B" * below, 9)
        if place == len(indices) - 1:
            panel.scale_bar(7.5)
    legend(figure, listed, GUTTER, base - ROW - 0.02, inner)
    return figure


def orthogonal(
    volume,
    at: Sequence[float] | None = None,
    window="soft tissue",
    *,
    outlines: Sequence[Outline] = (),
    labels=None,
    names: Sequence[str] | None = None,
    title: str = "",
    width_in: float = 7.5,
    smooth: bool = False,
    fill: float = 0,
    lines: bool = True,
) -> Picture:
    """Draw the three planes through one point, to one scale, each with the others' positions as lines.

    Args:
        at: voxel (d, h, w) as whole numbers, or LPS mm (x, y, z) as floats; ``None`` is the middle of what is
            outlined, else of the volume.
        lines: draw the reference lines.
        volume, window, outlines, labels, names, title, width_in, smooth, fill: as :func:`ctvlm_lib.view.slice_figure`.
    """
    masks = [mask for mask, *_ in outlines]
    check_shapes(volume, masks, [labels.labels] if labels is not None else [])
    frames, voxel = [frame(volume, plane) for plane in PLANES], _voxel(volume, at, masks)
    indices = [voxel[framed.axes[0]] for framed in frames]
    names = largest(frames[0], labels, [indices[0]]) if names is None else names
    listed, inner = (
        entries(outlines, names, _met(labels, names, zip(frames, indices, strict=True))),
        width_in - 2 * GUTTER,
    )
    scale = (inner - 2 * 2 * GUTTER) / sum(framed.size_mm[1] for framed in frames)  # inches in a mm
    tallest, base = max(framed.size_mm[0] for framed in frames) * scale, legend_height(listed, inner) + 0.06 + 2 * ROW
    figure, top = page(width_in, base + tallest, title, "", window_text(window), above=ROW)
    left = GUTTER
    for framed, index in zip(frames, indices, strict=True):
        height, width = (mm * scale for mm in framed.size_mm)
        panel = Panel(figure, (left, top - height, width, height), framed, smooth, fill)
        cut = [(framed.cut(mask, index), colour) for mask, colour, *_ in outlines]
        panel.show(framed.cut(volume.hu, index), window, cut, regions(framed, labels, names, index))
        panel.letters()
        panel.scale_bar(7.5)
        colour = CROSS[framed.plane][0] if lines else "ink"
        figure.write(left, top + ROW / 2, framed.plane, 9, colour, va="center", weight="bold")
        figure.write(left, top - height - 1.3 * ROW, short(framed, index), 7.5, "ink", va="center")
        for other in frames if lines else ():
            _cross(panel, other, voxel)
        left += width + 2 * GUTTER
    legend(figure, listed, GUTTER, base - 2 * ROW - 0.02, inner)
    return figure


def page(width: float, below_top: float, title: str, left: str, right: str, above: float) -> tuple[Picture, float]:
    """A page with its heading; gives back the height (inches from the bottom) at which the images begin."""
    heading = 0.32 if title or right else 0.08
    figure = Picture(width, below_top + above + heading)
    line = below_top + above + heading - 0.17
    figure.write(GUTTER, line, title or left, 11 if title else 9, va="center", weight="bold" if title else "normal")
    figure.write(width - GUTTER, line, right, 9, va="center", ha="right")
    return figure, below_top


def _met(labels, names: Sequence[str], cuts) -> set[str]:
    """Names of the structures that any of the (frame, index) slices meets."""
    return set().union(*(present(framed, labels, names, index) for framed, index in cuts))


def _spread(framed: Frame, n: int, masks: Sequence[np.ndarray]) -> list[int]:
    """n slices, evenly over those that the masks meet, from superior to inferior, right to left, or front to back."""
    met = [np.flatnonzero(mask.any(axis=framed.axes[1:])) for mask in masks]
    met = [found for found in met if found.size]
    first, last = (min(f[0] for f in met), max(f[-1] for f in met)) if met else (0, framed.shape[0] - 1)
    edge = 0 if met else (last - first) / (2 * n)  # the volume's very ends show little
    chosen = np.unique(np.linspace(first + edge, last - edge, n).round().astype(int))
    downwards = (framed.positions_mm[-1] > framed.positions_mm[0]) == (framed.plane == "axial")
    return [int(i) for i in (chosen[::-1] if downwards else chosen)]


def _columns(n: int, framed: Frame) -> int:
    """A grid about as wide as 4:3."""
    height, width = framed.size_mm
    return max(1, min(n, round(np.sqrt(n * 4 / 3 * height / width))))


def short(framed: Frame, index: int) -> str:
    """Slice number and position for a small panel: ``"61  z −182 mm"``."""
    where = f"{position_text(framed, index).split(', ')[1].split()[0]} {framed.positions_mm[index]:.0f} mm"
    return minus(where if framed.shape[0] == 1 else f"{index}  {where}")  # a slice cut out has lost its number


def _voxel(volume, at, masks) -> tuple[int, int, int]:
    """The voxel that is meant: (d, h, w) indices, LPS mm, or the one of the outlined voxels nearest to their middle."""
    shape = volume.hu.shape
    if at is None:
        points = [np.argwhere(mask) for mask in masks if mask.any()]
        if not points:
            return tuple(n // 2 for n in shape)
        points = np.concatenate(points)
        return tuple(int(i) for i in (points.min(axis=0) + points.max(axis=0)) // 2)
    at = np.asarray(at)
    if not np.issubdtype(at.dtype, np.integer):
        at = np.rint(np.linalg.solve(volume.affine[:3, :3], at - volume.affine[:3, 3])).astype(int)
    if at.shape != (3,) or (at < 0).any() or (at >= shape).any():
        raise BadInput(
            f"voxel {tuple(at.tolist())} is outside the volume {shape};"
            " give (d, h, w) as whole numbers or LPS mm (x, y, z) as floats"
        )
    return tuple(int(i) for i in at)


def _cross(panel: Panel, other: Frame, voxel: Sequence[int]) -> None:
    """Draw where another plane cuts this panel, with a gap around the point itself."""
    if other.plane == panel.frame.plane:
        return
    x, y = panel.frame.screen_mm(voxel)
    height, width = panel.frame.size_mm
    colour, style = CROSS[other.plane]
    gap = 0.06 * max(height, width)
    if other.axes[0] == panel.frame.axes[1]:
        parts = [([0, x - gap], [y, y]), ([x + gap, width], [y, y])]
    else:
        parts = [([x, x], [0, y - gap]), ([x, x], [y + gap, height])]
    for part in parts:
        panel.axes.plot(*part, color=COLOURS[colour], lw=0.9, ls=style)
    panel.axes.set(xlim=(0, width), ylim=(height, 0))
