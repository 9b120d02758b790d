"""Masks that are wrong on purpose, by a known number of millimetres: what predicted masks do by accident."""

from collections.abc import Mapping

import numpy as np

from ctvlm_lib.errors import BadInput

DIRECTIONS = {"left": (0, 0, 1), "right": (0, 0, -1), "back": (0, 1, 0), "front": (0, -1, 0)}  # (z, y, x), LPS


def dilate(mask: np.ndarray, mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Grow a mask: every voxel whose centre lies within ``mm`` of one of its centres.

    Args:
        mask: bool ``(D, H, W)``.
        mm: how far, ≥ 0.
        spacing_mm: (z, y, x).
    """
    from scipy.ndimage import distance_transform_edt

    _check(mask, mm)
    return distance_transform_edt(~mask, spacing_mm) <= mm + 1e-6


def erode(mask: np.ndarray, mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Shrink a mask: voxels further than ``mm`` from every centre outside; where none is left, the deepest stay.

    Args:
        mask: bool ``(D, H, W)``.
        mm: how far, ≥ 0.
        spacing_mm: (z, y, x).
    """
    from scipy.ndimage import distance_transform_edt

    _check(mask, mm)
    depth = distance_transform_edt(np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    kept = depth > mm + 1e-6
    return kept if kept.any() else mask & (depth >= depth.max())


def shift(mask: np.ndarray, mm: float, spacing_mm: tuple[float, float, float], direction: str = "left") -> np.ndarray:
    """Move a mask within the slices, to the nearest whole voxel; at the border it stops.

    Args:
        mask: bool ``(D, H, W)`` in LPS axes.
        mm: how far, ≥ 0.
        spacing_mm: (z, y, x).
        direction: of DIRECTIONS, the patient's.

    Raises:
        BadInput: an unknown direction, an empty mask, or a negative distance.
    """
    if direction not in DIRECTIONS:
        raise BadInput(f"no direction is called {direction!r}; choose one of {', '.join(DIRECTIONS)}")
    _check(mask, mm)
    steps = [round(sign * mm / step) for sign, step in zip(DIRECTIONS[direction], spacing_mm, strict=True)]
    at = np.argwhere(mask)
    room_low, room_high = -at.min(axis=0), np.array(mask.shape) - 1 - at.max(axis=0)
    moved = np.zeros_like(mask)
    moved[tuple((at + np.clip(steps, room_low, room_high)).T)] = True
    return moved


def neighbour(masks: Mapping[str, np.ndarray], name: str, spacing_mm: tuple[float, float, float]) -> str | None:
    """The structure whose middle lies nearest to that of the named one, or None if there is no other.

    Args:
        masks: structure → bool ``(D, H, W)``; empty ones are passed over.
        name: the structure whose neighbour is sought.
        spacing_mm: (z, y, x).
    """
    if name not in masks or not masks[name].any():
        raise BadInput(f"{name} isn't in the volume, so it has no neighbour; there are {', '.join(masks)}")
    middles = {k: np.argwhere(m).mean(axis=0) * spacing_mm for k, m in masks.items() if m.any()}
    here = middles.pop(name)
    return min(middles, key=lambda k: float(np.linalg.norm(middles[k] - here)), default=None)


def _check(mask: np.ndarray, mm: float) -> None:
    if mm < 0:
        raise BadInput(f"a distance in mm is 0 or more, got {mm:g}; to shrink a mask use erode, to grow it dilate")
    if not mask.any():
        raise BadInput("the mask is empty, so there is nothing to change; give one with voxels")
