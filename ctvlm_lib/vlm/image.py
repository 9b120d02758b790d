"""A CT with its prompt lines as an encoder's input: size, scale, colours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.colour import WAYS, Lines, beyond, check_lines, coloured, line_on_grid
from ctvlm_lib.volume import Volume, hu_window, window_levels
from ctvlm_lib.volume.hu import scale_range


def _cohort(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    from ctvlm_lib.alignment.scans import as_input

    return as_input(hu)


# name → (HU, smallest and largest HU of the whole scan) → input; and the ends of the input's range
SCALES: dict[str, tuple[Callable[[np.ndarray, float, float], np.ndarray], tuple[float, float]]] = {
    "cohort": (_cohort, (-1.0, 1.0)),
    "Med3DVLM": (scale_range, (0.0, 1.0)),
}


@dataclass(frozen=True)
class ImageInput:
    """How an encoder wants its volumes.

    Attributes:
        size_dhw_vox: sides (D, H, W).
        channels: 1 or 3.
        scale: "cohort" (−1…1, as the phantoms' encoders were trained), "Med3DVLM" (0…1 from the scan's smallest to its
            largest HU, cropped to what is above the smallest), or a window's name or (level, width) in HU (0…1).
        colour: how lines get in, one of ``ctvlm_lib.vlm.colour.WAYS``.

    Raises:
        BadInput: a value none of these.
    """

    size_dhw_vox: tuple[int, int, int]
    channels: int = 1
    scale: str | tuple[float, float] = "cohort"
    colour: str = "rgb"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            window_levels(self.scale)
        if self.colour not in WAYS:
            raise BadInput(f"colour is {self.colour!r}; choose one of {', '.join(map(repr, WAYS))}")
        if self.channels not in (1, 3):
            raise BadInput(f"channels is {self.channels}; an encoder has 1 for grey volumes or 3 for RGB")
        if len(self.size_dhw_vox) != 3 or min(self.size_dhw_vox) < 1:
            raise BadInput(f"size_dhw_vox is {self.size_dhw_vox}; give three sides (D, H, W) in voxels")

    @property
    def window(self) -> tuple[float, float]:
        """The smallest and the largest value of a scaled volume."""
        return SCALES[self.scale][1] if self.scale in SCALES else (0.0, 1.0)

    def __call__(self, volume: Volume | np.ndarray, lines: Lines = ()) -> np.ndarray:
        """Make one input.

        Args:
            volume: a :class:`Volume`, which is resized whatever that does to its spacing, its lines carried along; HU
                ``(D, H, W)`` of an integer type; or a model-ready float array ``(D, H, W)`` or ``(channels, D, H, W)``.
            lines: (line, colour) pairs on the volume's own grid; a ``(3, D, H, W)`` array takes none, it is drawn.

        Returns:
            float32 ``(channels, D, H, W)``.

        Raises:
            BadInput: another size or number of channels, values that can't be model-ready, or lines that don't fit.
        """
        if isinstance(volume, Volume):
            grey, lines = self._from_volume(volume, lines)
            return coloured(grey, lines, self.colour, self.channels, self.window)
        array = np.asarray(volume)
        picture = array if array.ndim == 4 else array[None]
        self._check(picture)
        if not np.issubdtype(array.dtype, np.floating):
            picture = self._scaled(picture, float(array.min()), float(array.max()))
        if len(picture) == 1:
            return coloured(picture[0], lines, self.colour, self.channels, self.window)
        if lines:
            raise BadInput("a volume of three channels is drawn already and takes no lines; give the grey one")
        return picture.astype(np.float32)

    def _from_volume(self, volume: Volume, lines: Lines) -> tuple[np.ndarray, Lines]:
        check_lines(volume.shape, lines)
        low, high = float(volume.hu.min()), float(volume.hu.max())
        if self.scale == "Med3DVLM":
            box = _foreground(volume.hu > low)
            volume, lines = volume.crop(box), [(line[box], colour) for line, colour in lines]
        if volume.shape != self.size_dhw_vox:
            lines = [(line_on_grid(line, self.size_dhw_vox), colour) for line, colour in lines]
            volume = volume.resize(self.size_dhw_vox)
        if not np.isfinite(volume.hu).all():
            raise BadInput(f"{volume.name} holds values that are NaN or infinite; look at how it was made")
        return self._scaled(volume.hu, low, high), lines

    def _scaled(self, hu: np.ndarray, low: float, high: float) -> np.ndarray:
        if self.scale in SCALES:
            return SCALES[self.scale][0](hu, low, max(high, low + 1e-6))
        return hu_window(hu, *window_levels(self.scale))

    def _check(self, picture: np.ndarray) -> None:
        """Refuse an array that isn't one grey volume or one of the encoder's channels, or isn't scaled."""
        if picture.ndim != 4 or picture.shape[1:] != self.size_dhw_vox:
            raise BadInput(
                f"the volume is {picture.shape[1:]} voxels (D, H, W) and the encoder reads {self.size_dhw_vox}; give a"
                " Volume, which is resized, or resize it"
            )
        if len(picture) not in (1, self.channels):
            raise BadInput(
                f"the volume has {len(picture)} channels and the encoder reads {self.channels}; give a grey volume and"
                " its lines, or take an encoder of 3 channels"
            )
        if not np.issubdtype(picture.dtype, np.floating):
            return
        low, high = float(picture.min()), float(picture.max())
        if not np.isfinite([low, high]).all():
            raise BadInput("the volume holds values that are NaN or infinite; look at how it was made")
        slack, top = 1e-3, beyond("cyan", self.window)  # a prompt may be drawn already
        if low < self.window[0] - slack or high > top + slack:
            raise BadInput(
                f"a model-ready volume lies in {self.window[0]:g}…{self.window[1]:g} and this one in {low:g}…{high:g};"
                " give HU as a Volume or as integers, which are scaled"
            )


def _foreground(above: np.ndarray) -> tuple[slice, slice, slice]:
    """Smallest box that holds all true voxels; the whole if there are none."""
    if not above.any():
        return (slice(None),) * 3
    met = [np.flatnonzero(above.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(i[0]), int(i[-1]) + 1) for i in met)
