"""What is drawn before the encoder sees a volume: the protocol's conditions on any mask, in any colours."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.prompt.overlay import COLOURS

CONDITIONS = ("none", "contour", "box", "dual")
PAPERS_COLOURS = {"contour": "blue", "box": "green", "distractor": "red"}
SWAPPED_COLOURS = {"contour": "red", "box": "red", "distractor": "green"}
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


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


def draw(grey: np.ndarray, drawing: Drawing, channels: int, thickness: int = 1) -> np.ndarray:
    """Draw a prompt into an encoder's input.

    Args:
        grey: float32 ``(D, H, W)`` in −1…1, see :func:`ctvlm_lib.alignment.scans.as_input`.
        drawing: what to draw.
        channels: 3 draws in colour; 1 draws the colours' luminance, all that an encoder of grey volumes can see.
        thickness: of the lines, voxels.

    Returns:
        float32 ``(channels, D, H, W)`` in −1…1.

    Raises:
        BadInput: another number of channels.
    """
    if channels not in (1, 3):
        raise BadInput(f"an encoder reads 1 channel or 3, got {channels}")
    picture = np.repeat(grey[None], channels, axis=0)
    for line, colour in drawing.lines(thickness):
        rgb = COLOURS[colour]
        values = rgb if channels == 3 else [float(np.dot(LUMA, rgb))]
        for channel, value in zip(picture, values, strict=True):
            channel[line] = value / 127.5 - 1
    return picture
