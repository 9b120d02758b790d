"""Colour prompts drawn over the windowed CT."""

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume, grid, window_levels

COLOURS: dict[str, tuple[int, int, int]] = {  # RGB; the papers name colours without values, so the pure ones are taken
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
}


def overlay(
    volume: Volume,
    outlines: list[tuple[np.ndarray, str | tuple[int, int, int]]],
    window: str | tuple[float, float] = "soft tissue",
) -> np.ndarray:
    """Draw prompt lines in colour over the windowed CT; everything else stays grey.

    Args:
        volume: the CT.
        outlines: (line, colour) pairs, line bool ``(D, H, W)``; a later one covers an earlier one.
        window: preset's name, or (level, width) in HU.

    Returns:
        uint8 ``(D, H, W, 3)``, RGB.

    Raises:
        BadInput: a line is on another grid, or a colour or window is unknown.

    Source: contour.txt §3.3, "overlay it … on the Hounsfield-windowed slice images".
    """
    level, width = window_levels(window)
    for line, _ in outlines:
        if line.shape != volume.shape:
            raise BadInput(
                f"the outline is {grid.size_text(line.shape)} but the volume is {grid.size_text(volume.shape)};"
                " make it from masks on the volume's grid: masks.to(volume)"
            )
    colours = [np.array(_rgb(colour), dtype=np.uint8) for _, colour in outlines]
    picture = np.empty((*volume.shape, 3), dtype=np.uint8)
    scale = np.float32(255 / width)
    shift = np.float32(0.5 - (level - width / 2) * 255 / width)  # half a grey level, so that the cast below rounds
    grey = np.empty(volume.shape[1:], dtype=np.float32)
    for k in range(volume.shape[0]):  # a slice at a time stays in the processor's cache
        np.multiply(volume.hu[k], scale, out=grey)
        grey += shift
        np.clip(grey, 0, 255, out=grey)
        level_8bit = grey.astype(np.uint8)
        for channel in range(3):  # five times faster than broadcasting over the last axis
            picture[k, ..., channel] = level_8bit
        for (line, _), rgb in zip(outlines, colours, strict=True):
            picture[k].reshape(-1, 3)[np.flatnonzero(line[k])] = rgb
    return picture


def _rgb(colour: str | tuple[int, int, int]) -> tuple[int, int, int]:
    if isinstance(colour, str):
        if colour not in COLOURS:
            raise BadInput(f"no colour is called {colour!r}; choose one of {', '.join(COLOURS)}, or give (R, G, B)")
        return COLOURS[colour]
    if len(colour) != 3 or not all(0 <= c <= 255 for c in colour):
        raise BadInput(f"a colour is a name or three values 0…255, got {colour!r}")
    return colour
