"""One slice on a dark page: grey values, outlines, structures, letters, scale bar. Built once; its content changes."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.screen import Frame, position_text, scale_bar_mm
from ctvlm_lib.volume.hu import window_levels

COLOURS = {  # the papers' prompt colours, lightened until they can be seen on black
    "blue": "#3D7BFF",
    "green": "#00C957",
    "red": "#FF4D4D",
    # Okabe–Ito, for structures
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "teal": "#009E73",
    "vermilion": "#D55E00",
    "deep blue": "#0072B2",
    # the page
    "page": "#0B0B0D",
    "ink": "#E8E8EA",
    "faint": "#A8A8B0",
    "letter": "#F2E88A",
}
DASHED = ("red",)  # prompt colours drawn dashed, so that red and green can be told apart without colour
STRUCTURE_COLOURS = ("orange", "sky", "purple", "yellow", "teal", "vermilion", "deep blue")
STRUCTURE_LINES = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (10, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2.5, 2.5)),
)
MAX_FILL = 0.3
GUTTER, ROW = 0.24, 0.22  # inches: room for a letter at the side; height of a line of text
DASH_VOXELS = 3

Outline = tuple  # (bool (D, H, W), colour[, label])


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, without pyplot."""

    def __init__(self, width_in: float, height_in: float, page: str = COLOURS["page"]) -> None:
        super().__init__(figsize=(width_in, height_in), dpi=100, facecolor=page)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png(self)

    def savefig(self, *args, **options) -> None:
        """Save with the figure's own page colour: its light text could not be read on another."""
        super().savefig(*args, **{**options, "facecolor": self.get_facecolor()})

    def write(self, left: float, bottom: float, text: str, size: float = 9, colour: str = "ink", **how):
        """Put text at a place given in inches from the lower left corner."""
        width, height = self.get_size_inches()
        return super().text(
            left / width, bottom / height, text, fontsize=size, color=COLOURS.get(colour, colour), **how
        )

    def place(self, left: float, bottom: float, width: float, height: float):
        """Add axes at a place given in inches from the lower left corner."""
        w, h = self.get_size_inches()
        return self.add_axes((left / w, bottom / h, width / w, height / h))


def png(figure: Figure) -> bytes:
    """Draw a figure to PNG bytes, at its own size and resolution."""
    from PIL import Image

    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, format="png", compress_level=3)
    return buffer.getvalue()


class Panel:
    """The axes of one slice; :meth:`show` changes what is on them and nothing else.

    Args:
        figure: to draw on.
        box: (left, bottom, width, height) of the image, inches.
        framed: the plane's geometry.
        smooth: interpolate between voxels; otherwise each voxel is a flat rectangle.
        fill: opacity of the structures' areas, at most 0.3.
    """

    def __init__(
        self,
        figure: Picture,
        box: tuple[float, float, float, float],
        framed: Frame,
        smooth: bool = False,
        fill: float = 0.0,
    ) -> None:
        if not 0 <= fill <= MAX_FILL:
            raise BadInput(f"fill {fill:g} would hide the anatomy; choose 0 to {MAX_FILL}")
        self.frame, self.fill, self.box, self.figure = framed, fill, box, figure
        self.axes = figure.place(*box)
        self.axes.set_axis_off()
        height, width = framed.size_mm
        blank, extent = (
            np.zeros(framed.shape[1:]),
            (0, width, height, 0),
        )  # data coordinates are mm, so the aspect comes from the spacing
        self.image = self.axes.imshow(
            blank, cmap="gray", extent=extent, aspect="equal", interpolation="bicubic" if smooth else "nearest"
        )
        self.marks = self.axes.imshow(
            np.zeros((*blank.shape, 4)), extent=extent, aspect="equal", interpolation="nearest"
        )
        self.contours: list = []

    def show(self, image: np.ndarray, window, outlines: Iterable[Outline] = (), regions: Sequence[tuple] = ()) -> None:
        """Show one slice.

        Args:
            image: ``(rows, columns)`` HU, or ``(rows, columns, 3)`` uint8, already cut by the frame.
            window: preset's name or (level, width); unused for RGB.
            outlines: (bool (rows, columns), colour) drawn voxel by voxel, later ones on top.
            regions: (bool (rows, columns), colour name, line style) drawn as contour lines.
        """
        level, width = window_levels(window)
        self.image.set_data(image)
        self.image.set_clim(level - width / 2, level + width / 2)
        self.marks.set_data(_paint(image.shape[:2], outlines, regions, self.fill))
        for artist in self.contours:
            artist.remove()
        self.contours = [self._contour(*region) for region in regions if region[0].any()]

    def _contour(self, mask: np.ndarray, colour: str, line):
        rows, columns = (
            (np.arange(-1, n + 1) + 0.5) * step for n, step in zip(mask.shape, self.frame.spacing_mm, strict=True)
        )
        padded = np.pad(mask.astype(np.uint8), 1)  # a region that meets the border is closed there
        artist = self.axes.contour(
            columns, rows, padded, levels=[0.5], colors=[COLOURS.get(colour, colour)], linewidths=1.4, linestyles=[line]
        )
        height, width = self.frame.size_mm
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        return artist

    def letters(self, edges: str = "LRTB", size: float = 10) -> None:
        """Write the patient directions beside the chosen edges: left, right, top, bottom."""
        left, bottom, width, height = self.box
        places = {
            "L": (left - GUTTER / 2, bottom + height / 2),
            "R": (left + width + GUTTER / 2, bottom + height / 2),
            "T": (left + width / 2, bottom + height + ROW / 2),
            "B": (left + width / 2, bottom - ROW / 2),
        }
        for (edge, (x, y)), letter in zip(places.items(), self.frame.letters, strict=True):
            if edge in edges:
                self.figure.write(x, y, letter, size, "letter", weight="bold", ha="center", va="center")

    def scale_bar(self, size: float = 8) -> None:
        """Draw a round length in mm below the image's right corner."""
        height, width = self.frame.size_mm
        length, below = scale_bar_mm(width), height * (1 + 0.55 * ROW / self.box[3])
        tick = height * 0.14 * ROW / self.box[3]
        x, y = (
            [width - length] * 3 + [width] * 3,
            [below - tick, below + tick, below, below, below - tick, below + tick],
        )
        (self.bar,) = self.axes.plot(
            x, y, color=COLOURS["ink"], lw=1.4, clip_on=False, solid_capstyle="butt", gid="scale bar"
        )
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.text(
            width - length, below, f"{length:g} mm ", ha="right", va="center", fontsize=size, color=COLOURS["ink"]
        )

    def corner(self, text: str, size: float = 7.5):
        """Write inside the upper left corner, with a dark rim so that it can be read on any tissue."""
        rim = [withStroke(linewidth=2, foreground="black")]
        return self.axes.text(
            0.02, 0.98, text, transform=self.axes.transAxes, va="top", fontsize=size, color="white", path_effects=rim
        )

    def position(self, index: int) -> str:
        """Where this slice lies, in words."""
        return position_text(self.frame, index)


def _paint(shape: tuple[int, int], outlines: Iterable[Outline], regions: Sequence[tuple], fill: float) -> np.ndarray:
    """Lay fills, then outlines, over a transparent slice: ``(rows, columns, 4)`` in [0, 1]."""
    rgba = np.zeros((*shape, 4), dtype=np.float32)
    for mask, colour, _ in regions if fill else ():
        rgba[mask] = (*to_rgb(COLOURS.get(colour, colour)), fill)
    dash = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) // DASH_VOXELS % 2 == 1
    for mask, colour in ((np.asarray(mask, dtype=bool), colour) for mask, colour in outlines):
        rgba[mask] = (*to_rgb(COLOURS.get(colour, colour)), 1)
        if colour in DASHED:
            rgba[mask & dash, 3] = 0.35  # dimmed, not left out: the prompt's extent stays visible
    return rgba


def legend(figure: Picture, entries: Sequence[tuple[str, str, object]], left: float, top: float, width: float):
    """Write (label, colour, line style) entries below the image, as many to a row as fit; gives back the artist."""
    lines = [Line2D([], [], color=COLOURS.get(colour, colour), lw=2.4, ls=line) for _, colour, line in entries]
    full_width, height = figure.get_size_inches()
    found = figure.legend(
        lines,
        [label for label, *_ in entries],
        loc="upper left",
        bbox_to_anchor=(left / full_width, top / height),
        borderaxespad=0,
        ncols=legend_columns(entries, width),
        fontsize=8.5,
        frameon=False,
        labelcolor=COLOURS["ink"],
        handlelength=2.6,
        columnspacing=1.4,
        borderpad=0,
    )
    return found


def legend_columns(entries: Sequence[tuple], width: float) -> int:
    """How many entries fit side by side in ``width`` inches: 0.55 in for the line, 0.07 in a letter."""
    longest = max((len(label) for label, *_ in entries), default=1)
    return max(1, min(len(entries), int(width / (0.55 + 0.07 * longest))))


def legend_height(entries: Sequence[tuple], width: float) -> float:
    """Inches that :func:`legend` needs."""
    return 0.2 * -(-len(entries) // legend_columns(entries, width)) + 0.06 if entries else 0.0
