"""Three ways in which a coloured line reaches an encoder: as colours, as their brightness, or as impossible HU.

The papers draw coloured lines into a volume and feed an encoder that was trained on grey ones; how the colours get in
is not said. Each way is a pure function on arrays:

* ``rgb``: three channels. The encoder needs three, and must have learnt what the colours mean.
* ``luminance``: one grey level a colour, as converting to greyscale does; tissue of the same grey looks the same.
* ``out of window``: values above all that the window lets through, another for each colour; never mistaken for
  tissue, and far from all that the encoder was trained on.
"""

from collections.abc import Sequence

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt.overlay import COLOURS

WAYS = ("rgb", "luminance", "out of window")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, which Pillow's mode "L" uses
STEP = 0.25  # between two colours beyond the window, as a share of the window

Lines = Sequence[tuple[np.ndarray, str]]


def coloured(
    grey: np.ndarray, lines: Lines, way: str, channels: int, window: tuple[float, float] = (-1.0, 1.0)
) -> np.ndarray:
    """Give a volume and its prompt to an encoder.

    Args:
        grey: float ``(D, H, W)``, scaled as the encoder wants it.
        lines: (line, colour) pairs, line bool ``(D, H, W)``; a later one covers an earlier one. () draws nothing.
        way: one of WAYS.
        channels: of the encoder, 1 or 3.
        window: the smallest and the largest value that a scaled volume has.

    Returns:
        float32 ``(channels, D, H, W)``; voxels off the lines are as in ``grey``.

    Raises:
        BadInput: an unknown way or colour, a line on another grid, or colours for an encoder of one channel.
    """
    if way not in WAYS:
        raise BadInput(f"colour is {way!r}; choose one of {', '.join(map(repr, WAYS))}")
    check_lines(grey.shape, lines)
    if lines:
        way_of(way, channels)
    if way == "rgb" and channels == 3:
        return as_rgb(grey, lines, window)
    drawn = as_out_of_window(grey, lines, window) if way == "out of window" else as_luminance(grey, lines, window)
    return np.repeat(drawn[None], channels, axis=0)


def way_of(colour: str, channels: int) -> str:
    """One of WAYS: the one that is named, or by "" colours for an encoder of three channels and luminance for one.

    Raises:
        BadInput: no such way, or colours for an encoder of one channel.
    """
    if colour not in ("", *WAYS):
        raise BadInput(f"colour is {colour!r}; choose one of {', '.join(map(repr, WAYS))}, or '' for the encoder's own")
    if colour == "rgb" and channels != 3:
        raise BadInput(
            f"colours need an encoder of 3 channels and this one has {channels}; inflate it"
            " (ctvlm_lib.encoder.inflate), or take colour='luminance' or 'out of window'"
        )
    return colour or ("rgb" if channels == 3 else "luminance")


def as_rgb(grey: np.ndarray, lines: Lines, window: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Three equal channels ``(3, D, H, W)``, and the lines in their colours, black and full at the window's ends."""
    from ctvlm_lib.alignment.prompted import as_picture, paint

    low, top = window
    picture = as_picture(np.asarray(grey, np.float32)[None, None])[0]
    for line, colour in lines:
        paint(picture, line, colour)
        if window != (-1.0, 1.0):  # paint's colours lie in −1…1
            picture[:, line] = low + (picture[:, line] + 1) / 2 * (top - low)
    return picture


def as_luminance(grey: np.ndarray, lines: Lines, window: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Grey ``(D, H, W)`` with each line at its colour's luminance.

    Source: ITU-R BT.601, Y = 0.299 R + 0.587 G + 0.114 B.
    """
    return _written(grey, lines, {c: luminance(c, window) for _, c in lines})


def as_out_of_window(grey: np.ndarray, lines: Lines, window: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Grey ``(D, H, W)`` with each line above the window's top, the higher the later its colour stands in COLOURS."""
    return _written(grey, lines, {c: beyond(c, window) for _, c in lines})


def luminance(colour: str, window: tuple[float, float] = (-1.0, 1.0)) -> float:
    """The grey that a colour becomes."""
    share = sum(weight * value for weight, value in zip(LUMA, COLOURS[colour], strict=True)) / 255
    return window[0] + share * (window[1] - window[0])


def beyond(colour: str, window: tuple[float, float] = (-1.0, 1.0)) -> float:
    """The value above the window that stands for a colour."""
    return window[1] + STEP * (list(COLOURS).index(colour) + 1) * (window[1] - window[0])


def check_lines(shape: tuple[int, ...], lines: Lines) -> None:
    """Raise BadInput unless each line is a mask on the volume's grid in a colour that has a name."""
    for line, colour in lines:
        if colour not in COLOURS:
            raise BadInput(f"no colour is called {colour!r}; choose one of {', '.join(COLOURS)}")
        if getattr(line, "dtype", None) != np.bool_ or line.shape != tuple(shape):
            given = f"{getattr(line, 'dtype', type(line).__name__)} {getattr(line, 'shape', '')}"
            raise BadInput(
                f"the {colour} line is {given} and the volume {tuple(shape)}; give a bool array on the volume's grid"
            )


def line_on_grid(line: np.ndarray, size_dhw: tuple[int, int, int]) -> np.ndarray:
    """Carry a line to another number of voxels over the same extent, without losing or breaking it.

    A voxel belongs to the line if the nearest one of the old grid does, which leaves no gaps where the grid becomes
    finer, or if the middle of one of the line's voxels lies in it, which loses nothing where it becomes coarser.

    Args:
        line: bool ``(D, H, W)``.
        size_dhw: of the new grid.
    """
    pairs = list(zip(line.shape, size_dhw, strict=True))
    nearest = [((np.arange(m) + 0.5) * n / m).astype(int) for n, m in pairs]
    carried = line[np.ix_(*nearest)]
    middles = [((i + 0.5) * m / n).astype(int) for i, (n, m) in zip(np.nonzero(line), pairs, strict=True)]
    carried[tuple(middles)] = True
    return carried


def _written(grey: np.ndarray, lines: Lines, values: dict[str, float]) -> np.ndarray:
    drawn = np.array(grey, np.float32)
    for line, colour in lines:
        drawn[line] = values[colour]
    return drawn
