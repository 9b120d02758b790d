"""Hounsfield units: the windows that CT is read in, and the check that a volume really is in HU."""

import numpy as np

from ctvlm_lib.errors import BadInput

WINDOWS: dict[str, tuple[float, float]] = {  # name: (level, width) in HU
    "soft tissue": (40, 400),
    "lung": (-600, 1500),
    "liver": (90, 150),
    "bone": (480, 2500),
    "brain": (40, 80),
    "angio": (300, 600),
}
AIR_HU = -1000.0


def window_levels(window: str | tuple[float, float]) -> tuple[float, float]:
    """Give (level, width) in HU of a preset's name or of a pair given as it is.

    Raises:
        BadInput: no preset of that name, not a pair of finite values, or a width that is not positive.
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            raise BadInput(
                f"no window is called {window!r}; choose one of {', '.join(WINDOWS)}, or give (level, width)"
            )
        return WINDOWS[window]
    try:
        level, width = (float(value) for value in window)
    except (TypeError, ValueError):
        raise BadInput(f"window {window!r} is neither a preset's name nor (level, width) in HU") from None
    if not width > 0:
        raise BadInput(f"window width must be positive, got {width:g}; lung is usually level -600, width 1500")
    if not np.isfinite([level, width]).all():
        raise BadInput(f"window level and width must be finite, got {level:g}/{width:g}; lung is usually -600/1500")
    return level, width


def hu_window(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map Hounsfield units to [0, 1] for display or for an encoder.

    Args:
        hu: CT in HU, any shape, e.g. ``(depth, height, width)``.
        level: window centre, HU.
        width: window width, HU, > 0.

    Returns:
        float32 of the same shape; ``level`` maps to 0.5, values outside the window are clipped.

    Raises:
        BadInput: ``width`` is not positive, or a value is not finite.

    Source: DICOM PS3.3 C.11.2.1.3.2 (the linear-exact form of the VOI LUT function).
    """
    level, width = window_levels((level, width))
    scaled = (np.asarray(hu, dtype=np.float32) - np.float32(level - width / 2)) * np.float32(1 / width)
    return np.clip(scaled, 0, 1, out=scaled if scaled.ndim else None)


def scale_range(hu: np.ndarray, low: float, high: float, to: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Clip to [low, high] HU and map linearly to ``to``, as most encoders' input recipes do.

    Returns:
        float32 of the same shape.
    """
    unit = hu_window(hu, (low + high) / 2, high - low)
    return unit * np.float32(to[1] - to[0]) + np.float32(to[0])


def check_hu(values: np.ndarray, name: str = "the volume") -> None:
    """Refuse values that can't be HU of a CT: checked by what is known of air and tissue, never repaired by a guess.

    A CT holds air near −1000 HU and soft tissue between −150 and 250 HU. Padding below −1024 (−2048, −3024 …) is usual
    and accepted.

    Args:
        values: the volume as it was read, header slope and intercept applied once.
        name: what to call it in the sentence.

    Raises:
        BadInput: values that are not finite; an image scaled to [0, 1] or to 8 bits; a label map; no air (an MR, or a
            CT without its rescale intercept); soft tissue where air should be (slope and intercept applied twice).

    Source: the errors that users of CT-CLIP (issues 28 and 50), Med3DVLM (4) and VISTA (65) met.
    """
    check_finite(values, name)
    low, high = float(values.min()), float(values.max())
    trust = "; load the original CT, or switch the check off (check=False, --no-hu-check) if you know the units"
    if low == high:
        raise BadInput(f"{name} has the same value {low:g} everywhere: there is no image in it")
    if low >= -1.01 and high <= 1.01:
        raise BadInput(
            f"{name} runs from {low:.3g} to {high:.3g}: it was already scaled to [0, 1] or [-1, 1], and HU are"
            f" expected{trust}"
        )
    sample = values.reshape(-1)[:: max(1, values.size // 2_000_000)]  # shares are stable on two million voxels
    if low > -200:
        raise BadInput(
            f"{name} runs from {low:.6g} to {high:.6g}{_without_air(sample, low, high)}, and a CT has air near"
            f" -1000 HU{trust}"
        )
    tissue, below = np.mean((sample > -150) & (sample < 250)), np.mean(sample < -1500)
    if tissue < 0.01 and below > 0.05:
        raise BadInput(
            f"{name} has {below:.0%} of its voxels below -1500 and almost none between -150 and 250 HU: its rescale"
            " slope and intercept were applied twice; load the file as it is, without the values of a metadata table,"
            " or switch the check off (check=False, --no-hu-check) if you know the units"
        )


def check_finite(values: np.ndarray, name: str = "the volume") -> None:
    """Raise BadInput if a value is NaN or infinite."""
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise BadInput(
            f"{name} holds {bad} voxels that are NaN or infinite; replace them (numpy.nan_to_num with nan=-1000)"
            " and save it again"
        )


def _without_air(sample: np.ndarray, low: float, high: float) -> str:
    """What a volume without air most likely is."""
    whole = bool(np.all(sample == np.rint(sample)))
    if whole and low >= 0 and np.unique(sample).size <= 150 and high < 600:
        return ": it looks like a label map"
    if low >= 0 and high <= 255:
        return ": it looks like an 8-bit image"
    return ": it is an MR, a CT without its rescale intercept, or a crop without air"
