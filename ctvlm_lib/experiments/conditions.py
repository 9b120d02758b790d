"""What is drawn before the encoder sees a volume: the protocol's conditions on any mask, in any colours."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.vlm.colour import coloured, way_of

CONDITIONS = ("none", "contour", "box", "dual")
PAPERS_COLOURS = {"contour": "blue", "box": "green", "distractor": "red"}
SWAPPED_COLOURS = {"contour": "red", "box": "red", "distractor": "green"}


@dataclass(frozen=True, eq=False)
class Drawing:
    """One prompt, ready to be drawn.

    Attributes:
        condition: one of CONDITIONS.
        target: bool ``(D, H, W)``, what is marked; None in the condition "none".
        distractor: bool ``(D, H, W)``, what the red box of "dual" surrounds; None draws no red box.
        colours: of "contour", "box" and "distractor"; keys of :data:`ctvlm_lib.prompt.overlay.COLOURS`.
    """

    condition: str
    target: np.ndarray | None = None
    distractor: np.ndarray | None = None
    colours: tuple[tuple[str, str], ...] = tuple(PAPERS_COLOURS.items())

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise BadInput(f"no condition is called {self.condition!r}; choose one of {', '.join(CONDITIONS)}")
        if self.condition != "none" and (self.target is None or not self.target.any()):
            raise BadInput(
                f"the condition {self.condition} marks a region, but its mask is empty; give one with voxels"
            )

    def lines(self, thickness: int = 1) -> list[tuple[np.ndarray, str]]:
        """(line, colour) pairs, bool ``(D, H, W)``, in the order of drawing."""
        colour = dict(self.colours)
        if self.condition == "none":
            return []
        if self.condition == "contour":
            return [(contour(self.target, thickness=thickness), colour["contour"])]
        lines = [(box_outline(self.target, thickness=thickness), colour["box"])]
        if self.condition == "dual" and self.distractor is not None and self.distractor.any():
            lines.append((box_outline(self.distractor, thickness=thickness), colour["distractor"]))
        return lines


def draw(grey: np.ndarray, drawing: Drawing, channels: int, thickness: int = 1, colour: str = "") -> np.ndarray:
    """Draw a prompt into an encoder's input.

    Args:
        grey: float32 ``(D, H, W)`` in −1…1, see :func:`ctvlm_lib.alignment.scans.as_input`.
        drawing: what to draw.
        channels: of the encoder, 1 or 3.
        thickness: of the lines, voxels.
        colour: how lines get in, one of ``ctvlm_lib.vlm.colour.WAYS``; "" what the protocol fixes for the encoder, see
            :func:`way_of`.

    Returns:
        float32 ``(channels, D, H, W)`` in −1…1; above 1 on lines that are drawn out of the window.

    Raises:
        BadInput: another number of channels, or a way that the encoder can't read.
    """
    if channels not in (1, 3):
        raise BadInput(f"an encoder reads 1 channel or 3, got {channels}")
    return coloured(grey, drawing.lines(thickness), way_of(colour, channels), channels)
