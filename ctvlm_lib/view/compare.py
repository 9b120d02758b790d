"""Images side by side: right beside wrong."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.figures import page, short
from ctvlm_lib.view.one import check_shapes
from ctvlm_lib.view.panel import GUTTER, ROW, Panel, Picture
from ctvlm_lib.view.screen import Frame, frame, slice_index, window_text

BARE = "none"  # the plane of an image without geometry
NARROW_IN = 1.6


def compare(
    items: Sequence[tuple],
    *,
    window="soft tissue",
    plane: str = "axial",
    index: int | float | None = None,
    title: str = "",
    width_in: float = 7,
) -> Picture:
    """Draw images side by side, each with its own title and note: right beside wrong.

    Args:
        items: (title, image[, note]); an image is a volume, cut at ``index`` and drawn with its letters and scale, or
            a pair (volume, rendered prompt uint8 ``(D, H, W, 3)``), drawn the same; or a bare array ``(rows, columns)``
            in HU or ``(rows, columns, 3)`` uint8, which has no geometry: square pixels, no letters.
        window: one for all, or a list with one for each.
    """
    windows = list(window) if isinstance(window, list) else [window] * len(items)
    if len(windows) != len(items):
        raise BadInput(f"{len(items)} images, {len(windows)} windows; give one window for all or one for each")
    width = (width_in - 2 * GUTTER * len(items)) / len(items)
    shown = [_slice_of(image, plane, index) for _, image, *_ in items]
    shrink = min(1, 5 / (width * max(framed.size_mm[0] / framed.size_mm[1] for framed, _, _ in shown)))
    notes = [_note(framed, at, note, width) for (_, _, *note), (framed, _, at) in zip(items, shown, strict=True)]
    sizes = [(width * shrink, width * shrink * framed.size_mm[0] / framed.size_mm[1]) for framed, _, _ in shown]
    below = 2.1 * ROW + 0.15 * max(note.count("\n") + 1 for note in notes)
    figure, top = page(width_in, max(height for _, height in sizes) + below, title, "", "", above=2 * ROW)
    for place, (framed, pixels, _) in enumerate(shown):
        left = GUTTER + place * (width + 2 * GUTTER)
        (image_width, height), levels = sizes[place], windows[place]
        panel = Panel(figure, (left + (width - image_width) / 2, top - height, image_width, height), framed)
        panel.show(pixels, levels)
        figure.write(left, top + 1.5 * ROW, items[place][0], 10, va="center", weight="bold")
        if framed.plane != BARE:
            panel.letters("LRTB" if image_width > NARROW_IN else "LRT")  # below a narrow one is room for the scale only
            panel.scale_bar(7.5)
        figure.write(left, top - height - 1.5 * ROW, window_text(levels), 7.5, "faint", va="center")
        figure.write(left, top - height - 1.9 * ROW, notes[place], 8, va="top", linespacing=1.3)
    return figure


def _note(framed: Frame, at: int, note: list[str], width: float) -> str:
    """What stands below an image of a comparison, broken to its width (0.07 in a letter)."""
    words = note[0] if note else "no geometry: square pixels, no letters" if framed.plane == BARE else short(framed, at)
    return "\n".join(wrap(words, int((width + GUTTER) / 0.07)))


def _slice_of(image, plane: str, index) -> tuple[Frame, np.ndarray, int]:
    """(frame, pixels, index) of a volume's slice, or of a bare image with pixels of 1 mm and no letters."""
    volume, shown = image if isinstance(image, tuple) else (image, getattr(image, "hu", None))
    if hasattr(volume, "affine"):
        check_shapes(volume, [shown])
        framed = frame(volume, plane)
        at = slice_index(framed, index)
        return framed, framed.cut(shown, at), at
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        raise BadInput(
            f"an image to compare has (rows, columns) or (rows, columns, 3), got {pixels.shape}; cut a slice out of it"
        )
    return (
        Frame(BARE, (0, 1, 2), (False, False), (1.0, 1.0), ("",) * 4, np.zeros(1), (1, *pixels.shape[:2])),
        pixels,
        0,
    )
