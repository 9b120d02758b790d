"""Where a slice's rows and columns point in the patient, and the words for it: planes, letters, positions, window."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from numbers import Integral

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume.hu import WINDOWS, window_levels

PLANES = ("axial", "coronal", "sagittal")
# plane: patient axis (LPS x, y, z) it is stacked along; (patient axis, sign) that grows downwards, and rightwards
_SCREEN = {"axial": (2, (1, 1), (0, 1)), "coronal": (1, (2, -1), (0, 1)), "sagittal": (0, (2, -1), (1, 1))}


@dataclass(frozen=True)
class Frame:
    """How the slices of one plane lie in the array and on the screen.

    Attributes:
        axes: array axes of (slice, row, column).
        flips: whether rows, columns run against the array.
        spacing_mm: between rows, between columns.
        letters: patient directions at the (left, right, top, bottom) edge.
        positions_mm: LPS coordinate of each slice's centre along the plane's patient axis.
        shape: (slices, rows, columns).
    """

    plane: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]
    positions_mm: np.ndarray
    shape: tuple[int, int, int]

    @property
    def size_mm(self) -> tuple[float, float]:
        """(height, width) of a slice."""
        return self.shape[1] * self.spacing_mm[0], self.shape[2] * self.spacing_mm[1]

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """One slice ``(rows, columns[, 3])`` of a ``(D, H, W[, 3])`` array as it is seen on the screen."""
        image = np.moveaxis(array, self.axes, (0, 1, 2))[index]
        return image[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def screen_mm(self, voxel: Sequence[int]) -> tuple[float, float]:
        """Where a voxel's centre lies on the screen: millimetres (right, down) from the upper left corner."""
        row, column = (
            n - 1 - voxel[axis] if flip else voxel[axis]
            for axis, flip, n in zip(self.axes[1:], self.flips, self.shape[1:], strict=True)
        )
        return (column + 0.5) * self.spacing_mm[1], (row + 0.5) * self.spacing_mm[0]


def edge_letters(direction: np.ndarray, tilt_deg: float = 20) -> str:
    """Name a direction in the patient: R/L, A/P, S/I; a second letter where the tilt towards it exceeds ``tilt_deg``.

    Args:
        direction: ``(3,)`` in LPS millimetres, any length.
        tilt_deg: from here on an oblique direction gets another letter.

    Returns:
        For example ``"L"``, or ``"LA"`` for a direction to the left and somewhat forwards.
    """
    unit = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    order = [
        axis for axis in np.argsort(-np.abs(unit), kind="stable") if abs(unit[axis]) > np.sin(np.deg2rad(tilt_deg))
    ]
    return "".join("LPS"[axis] if unit[axis] > 0 else "RAI"[axis] for axis in order)


def frame(volume, plane: str) -> Frame:
    """Lay a plane out on the screen from the volume's affine (index (d, h, w) → LPS mm), whatever way its axes run."""
    if plane not in PLANES:
        raise BadInput(f"no plane is called {plane!r}; choose one of {', '.join(PLANES)}")
    affine, shape = np.asarray(volume.affine, dtype=float), volume.hu.shape
    steps = affine[:3, :3].T  # (array axis, LPS mm)
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    nearest = max(permutations(range(3)), key=lambda p: sum(abs(units[p[patient], patient]) for patient in range(3)))
    stack, (down, down_sign), (right, right_sign) = _SCREEN[plane]
    axes = tuple(nearest[patient] for patient in (stack, down, right))
    row, column = (
        units[axis] * np.sign(units[axis, patient]) * sign
        for axis, patient, sign in ((axes[1], down, down_sign), (axes[2], right, right_sign))
    )
    centre = (np.array(shape) - 1) / 2
    first = affine[stack, 3] + sum(steps[axis, stack] * centre[axis] for axis in axes[1:])
    return Frame(
        plane=plane,
        axes=axes,
        flips=(bool(row @ units[axes[1]] < 0), bool(column @ units[axes[2]] < 0)),
        spacing_mm=tuple(float(np.linalg.norm(steps[axis])) for axis in axes[1:]),
        letters=tuple(edge_letters(d) for d in (-column, column, -row, row)),
        positions_mm=first + steps[axes[0], stack] * np.arange(shape[axes[0]]),
        shape=tuple(shape[axis] for axis in axes),
    )


def slice_index(framed: Frame, index: int | float | None, masks: Sequence[np.ndarray] = ()) -> int:
    """Find the slice meant by an array index (whole number), a position in mm (float), or ``None``.

    ``None`` takes the slice on which the masks have most voxels, or the middle one.

    Raises:
        BadInput: outside the volume.
    """
    count, at = framed.shape[0], framed.positions_mm
    if index is None:
        others = framed.axes[1:]
        voxels = sum((np.count_nonzero(mask, axis=others) for mask in masks), start=np.zeros(count, dtype=int))
        return int(np.argmax(voxels)) if voxels.any() else count // 2
    if isinstance(index, Integral):
        if not -count <= index < count:
            raise BadInput(f"{framed.plane} slice {index} is outside the volume; choose 0 to {count - 1}")
        return int(index) % count
    half = abs(at[-1] - at[0]) / max(count - 1, 1) / 2 if count > 1 else np.inf
    if not at.min() - half <= index <= at.max() + half:
        raise BadInput(
            f"{framed.plane} position {index:g} mm is outside the volume;"
            f" choose {at.min():.1f} to {at.max():.1f} mm, or a whole slice number"
        )
    return int(np.argmin(np.abs(at - index)))


def window_text(window: str | tuple[float, float]) -> str:
    """``"soft tissue  W 400 L 40 HU"``; a pair that is no preset has no name."""
    level, width = window_levels(window)
    name = next((n for n, pair in WINDOWS.items() if pair == (level, width)), "")
    return minus(f"{name}  W {width:g} L {level:g} HU".strip())


def position_text(framed: Frame, index: int) -> str:
    """``"slice 61 of 0–121, z −182.0 mm"``: array index, and LPS coordinate of the slice's centre."""
    axis = "xyz"[_SCREEN[framed.plane][0]]
    return minus(f"slice {index} of 0–{framed.shape[0] - 1}, {axis} {framed.positions_mm[index]:.1f} mm")


def scale_bar_mm(width_mm: float) -> float:
    """The longest round length that takes at most a quarter of the picture's width."""
    lengths = [n * 10.0**e for e in range(-1, 4) for n in (1, 2, 5)]
    return max((length for length in lengths if length <= width_mm / 4), default=lengths[0])


def minus(text: str) -> str:
    """Typographic minus signs."""
    return text.replace("-", "−")
