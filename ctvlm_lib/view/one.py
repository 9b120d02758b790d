"""One slice as a figure, whose content can be changed without building it again."""

from collections.abc import Sequence

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.panel import (
    COLOURS,
    DASHED,
    GUTTER,
    ROW,
    STRUCTURE_COLOURS,
    STRUCTURE_LINES,
    Outline,
    Panel,
    Picture,
    legend,
    legend_height,
)
from ctvlm_lib.view.screen import Frame, frame, slice_index, window_text

PROMPT_DASH = (0, (2.2, 0.8))
MAX_STRUCTURES = len(STRUCTURE_COLOURS)
NARROWEST_IN = 3.6  # the texts above and below need this


class SliceView:
    """A figure of one slice whose content can be changed without building it again.

    Args:
        volume: gives ``hu`` and ``affine``.
        plane: axial, coronal or sagittal.
        width_in, max_height_in: the image is made as large as fits, inches at 100 dots.
        title: one line above.
        smooth: interpolate between voxels; otherwise voxels are flat rectangles, as they are stored.
        fill: opacity of the structures' areas, at most 0.3; contours alone by default.
        legend_in: height kept for the legend, inches.
    """

    def __init__(
        self,
        volume,
        plane: str = "axial",
        *,
        width_in: float = 6,
        max_height_in: float = 6,
        title: str = "",
        smooth: bool = False,
        fill: float = 0,
        legend_in: float = 0,
    ) -> None:
        self.volume, self.frame = volume, frame(volume, plane)
        size = image_size(self.frame, width_in, max_height_in, smooth)
        page = max(size[0] + 2 * GUTTER, NARROWEST_IN)
        title_in = 0.3 if title else 0.06
        total = title_in + ROW + size[1] + ROW + 0.08 + legend_in
        self.figure = Picture(page, total)
        left, bottom = round((page - size[0]) / 2, 2), round(legend_in + 0.08 + ROW, 2)  # whole pixels
        self.panel = Panel(self.figure, (left, bottom, *size), self.frame, smooth, fill)
        self.panel.letters()
        self.panel.scale_bar()
        line, above = bottom - ROW / 2, bottom + size[1] + ROW / 2
        edges = min(left, GUTTER), page - min(left, GUTTER)
        self._title = self.figure.write(edges[0], total - 0.09, title, 11, va="top", weight="bold")
        self.figure.write(edges[0], above, plane, 9, va="center")
        self._window = self.figure.write(edges[1], above, "", 9, va="center", ha="right")
        self._position = self.figure.write(edges[0], line, "", 8.5, va="center")
        self._legend, self._legend_place = None, (edges[0], legend_in, edges[1] - edges[0])

    def show(
        self,
        index: int,
        window="soft tissue",
        outlines: Sequence[Outline] = (),
        labels=None,
        names: Sequence[str] = (),
        rgb=None,
    ) -> None:
        """Change what is shown; see :func:`slice_figure` for the arguments."""
        cut = self.frame.cut
        check_shapes(self.volume, [rgb] if rgb is not None else [], [mask for mask, *_ in outlines])
        image = cut(self.volume.hu if rgb is None else rgb, index)
        self.panel.show(
            image,
            window,
            [(cut(mask, index), colour) for mask, colour, *_ in outlines],
            regions(self.frame, labels, names, index),
        )
        self._window.set_text(window_text(window))
        self._position.set_text(self.panel.position(index))
        if self._legend is not None:
            self._legend.remove()
        rows = entries(outlines, names, present(self.frame, labels, names, index))
        self._legend = legend(self.figure, rows, *self._legend_place) if rows and self._legend_place[1] else None


def slice_figure(
    volume,
    plane: str = "axial",
    index: int | float | None = None,
    window="soft tissue",
    *,
    outlines: Sequence[Outline] = (),
    labels=None,
    names: Sequence[str] | None = None,
    title: str = "",
    width_in: float = 6,
    max_height_in: float = 6,
    smooth: bool = False,
    fill: float = 0,
    rgb=None,
) -> Picture:
    """Draw one slice.

    Args:
        volume: gives ``hu`` (D, H, W) in HU and ``affine`` (index → LPS mm).
        plane: axial, coronal or sagittal.
        index: a whole number is the array index; a float is the position in mm along the plane's LPS axis; ``None`` is
            the slice with most of what is outlined, else the middle.
        window: preset's name or (level, width) in HU.
        outlines: (bool (D, H, W), colour[, label]), drawn voxel by voxel; red is dashed.
        labels: LabelMap on the same grid, whose structures are drawn as contours.
        names: which of them; ``None`` takes the (at most seven) largest on the slice.
        title: one line above.
        width_in, max_height_in: the image is made as large as fits, inches at 100 dots.
        smooth: interpolate between voxels.
        fill: opacity of the structures' areas, at most 0.3.
        rgb: uint8 (D, H, W, 3) shown in place of the HU, such as a prompt rendered in this ``window``.

    Raises:
        BadInput: no such plane, slice, window or structure, or another grid.
    """
    framed = frame(volume, plane)
    check_shapes(
        volume,
        [rgb] if rgb is not None else [],
        [mask for mask, *_ in outlines],
        [labels.labels] if labels is not None else [],
    )
    guide = [mask for mask, *_ in outlines] or [labels.binary(name) for name in (names or ()) if labels is not None]
    at = slice_index(framed, index, guide)
    names = largest(framed, labels, [at]) if names is None else names
    page = max(image_size(framed, width_in, max_height_in, smooth)[0], NARROWEST_IN - 2 * GUTTER)
    below = legend_height(entries(outlines, names, present(framed, labels, names, at)), page)
    layout = {
        "width_in": width_in,
        "max_height_in": max_height_in,
        "title": title,
        "smooth": smooth,
        "fill": fill,
        "legend_in": below,
    }
    view = SliceView(volume, plane, **layout)
    view.show(at, window, outlines, labels, names, rgb)
    return view.figure


def rgb_slice(rgb: np.ndarray, volume, plane: str = "axial", index: int | float | None = None, **how) -> Picture:
    """Draw one slice of a rendered prompt, uint8 (D, H, W, 3), exactly as an encoder gets it.

    The arguments are those of :func:`slice_figure`; ``index=None`` takes the slice with most voxels that aren't grey.
    """
    check_shapes(volume, [rgb])
    if index is None:
        index = slice_index(frame(volume, plane), None, [np.ptp(rgb, axis=-1) > 0])
    return slice_figure(volume, plane, index, rgb=rgb, **how)


def image_size(framed: Frame, width_in: float, max_height_in: float, smooth: bool) -> tuple[float, float]:
    """(width, height) of the largest image that fits, inches.

    Enlarged flat pixels become a whole number of dots wide, so that all look alike.
    """
    height_mm, width_mm = framed.size_mm
    width = min(width_in - 2 * GUTTER, max_height_in * width_mm / height_mm)
    dots = width * 100 / framed.shape[2]
    if dots >= 2 and not smooth:
        width *= np.floor(dots) / dots
    return float(width), float(width * height_mm / width_mm)


def check_shapes(volume, *groups) -> None:
    """Refuse arrays on another grid than the volume's."""
    for array in (array for group in groups for array in group):
        if array.shape[:3] != volume.hu.shape:
            raise BadInput(
                f"the volume is {volume.hu.shape} but what shall be drawn on it is {array.shape};"
                " bring it onto the volume's grid first"
            )


def structure_slice(framed: Frame, labels, name: str, index: int) -> np.ndarray:
    """One structure's mask on one slice, bool; the whole map is searched only for a name that is not the map's own."""
    own = [number for number, label in labels.names.items() if label == name]
    if not own or name in getattr(labels, "overlapping", {}):
        return framed.cut(labels.binary(name), index)
    return np.isin(framed.cut(labels.labels, index), own)


def largest(framed: Frame, labels, indices: Sequence[int]) -> list[str]:
    """The structures with most voxels on the given slices, at most seven, largest first."""
    if labels is None:
        return []
    numbers = np.concatenate([framed.cut(labels.labels, index).ravel() for index in indices])
    counts = np.bincount(numbers)
    ranked = sorted((n for n in labels.names if 0 < n < counts.size and counts[n]), key=lambda n: -counts[n])
    return [labels.names[n] for n in ranked[:MAX_STRUCTURES]]


def regions(framed: Frame, labels, names: Sequence[str], index: int) -> list[tuple]:
    """The named structures' masks on one slice, each with its colour and line style."""
    if len(names) > MAX_STRUCTURES:
        raise BadInput(f"{len(names)} structures can't be told apart in one picture; name at most {MAX_STRUCTURES}")
    styles = zip(names, STRUCTURE_COLOURS, STRUCTURE_LINES, strict=False)
    return [(structure_slice(framed, labels, name, index), colour, line) for name, colour, line in styles]


def present(framed: Frame, labels, names: Sequence[str], index: int) -> set[str]:
    """Those of the named structures that a slice meets."""
    return {name for name in names if structure_slice(framed, labels, name, index).any()}


def entries(outlines: Sequence[Outline], names: Sequence[str], seen: set[str]) -> list[tuple]:
    """The legend's (label, colour, line style): every outline, and those of the structures that are seen."""
    prompts = [
        (rest[0] if rest else colour, colour, PROMPT_DASH if colour in DASHED else "-") for _, colour, *rest in outlines
    ]
    for colour in (colour for _, colour, _ in prompts if colour not in COLOURS and not str(colour).startswith("#")):
        raise BadInput(f"no colour is called {colour!r}; choose one of {', '.join(COLOURS)} or give #rrggbb")
    styles = zip(names, STRUCTURE_COLOURS, STRUCTURE_LINES, strict=False)
    return prompts + [(name.replace("_", " "), colour, line) for name, colour, line in styles if name in seen]
