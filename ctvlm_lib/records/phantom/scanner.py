"""Scanner profiles: what the machine adds to the anatomy — contrast gain, blur, noise — and the final rounding."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom.canvas import Draws


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What tells one scanner's images from another's.

    Attributes:
        noise_hu: standard deviation of the noise in the finished image.
        blur: share that each neighbour in the plane gives to a voxel (0 = none): the reconstruction kernel.
        slice_blur: the same along the long axis: the slice thickness.
        offset_hu: calibration error of soft tissue against the first scanner.
        gain: factor on HU above water (beam hardening, tube voltage).
        couch_hu: of the table's foam core.
    """

    noise_hu: float
    blur: float
    slice_blur: float
    offset_hu: float
    gain: float
    couch_hu: float


SCANNERS = {
    "A": Scanner(noise_hu=10.0, blur=0.05, slice_blur=0.05, offset_hu=0.0, gain=1.0, couch_hu=-930.0),
    "B": Scanner(noise_hu=17.0, blur=0.16, slice_blur=0.16, offset_hu=7.0, gain=0.92, couch_hu=-880.0),
}
# Sum of 4 bytes: standard deviation sqrt(4 (256² − 1) / 12). [1 2 1]/4 along two axes leaves 3/8 of white noise.
_RAW_SD = 147.80053
_AFTER_BLUR = 0.375


def profile_named(name: str) -> Scanner:
    """The profile of that name, or a sentence."""
    if name not in SCANNERS:
        raise BadInput(f"no scanner profile is called {name!r}; choose one of {', '.join(SCANNERS)}")
    return SCANNERS[name]


def scan(hu: np.ndarray, scanner: Scanner, draws: Draws) -> np.ndarray:
    """Turn drawn HU into an image.

    Args:
        hu: float64 ``(D, H, W)``, the anatomy; overwritten.
        draws: the random stream of the noise.

    Returns:
        int16 of the same shape, −1024…3071.
    """
    for axis, share in ((1, scanner.blur), (2, scanner.blur), (0, scanner.slice_blur)):
        hu = smoothed(hu, axis, share)
    above = np.maximum(hu, 0.0) * (scanner.gain - 1.0)
    tissue = np.minimum(np.maximum(hu + 1000.0, 0.0), 1000.0) / 1000.0  # air stays at −1000
    hu = hu + above + scanner.offset_hu * tissue + noise(hu.shape, scanner.noise_hu, draws)
    return np.rint(np.minimum(np.maximum(hu, -1024.0), 3071.0)).astype(np.int16)


def smoothed(array: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Give each neighbour along an axis a share of a voxel; the border's missing neighbour is the voxel itself."""
    if share == 0:
        return array
    n = array.shape[axis]
    before = array.take([0, *range(n - 1)], axis)
    after = array.take([*range(1, n), n - 1], axis)
    return array * (1.0 - 2.0 * share) + (before + after) * share


def noise(shape: tuple[int, int, int], sd_hu: float, draws: Draws) -> np.ndarray:
    """Grainy noise: sums of four random bytes, smoothed in the plane as a reconstruction does."""
    count = shape[0] * shape[1] * shape[2]
    raw = draws.rng.bit_generator.random_raw((count + 1) // 2).astype("<u8").view("u1")
    total = raw.reshape(-1, 4).astype(np.int64).sum(axis=1)[:count].reshape(shape)
    grain = smoothed(smoothed(total - 510.0, 1, 0.25), 2, 0.25)
    return grain * (sd_hu / (_RAW_SD * _AFTER_BLUR))
