"""How each paper's system wants its input: one named function a recipe, all from the same :class:`Volume`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ctvlm_lib.volume.core import Volume
from ctvlm_lib.volume.hu import AIR_HU, scale_range

CT_CLIP_MM, MEDVISTA3D_MM, MERLIN_MM, VISTA3D_MM = (1.5, 0.75, 0.75), (3.0, 1.0, 1.0), (3.0, 1.5, 1.5), (1.5, 1.5, 1.5)
CLIP_HU = (-1000.0, 1000.0)
VISTA3D_HU = (-963.8247715525971, 1053.678477684517)


@dataclass(frozen=True)
class Recipe:
    """What a system's encoder is fed.

    Attributes:
        make: volume → float32 model tensor ``(1, 1, …)`` in the system's own axes.
        axes: names of the three image axes as the system has them, in DICOM letters of the direction in which each
            grows.
        shape: the three image axes' sizes, None where the system takes any size.
        values: what the numbers mean.
        source: where the recipe is stated.
        spacing_mm: (z, y, x) that the encoder sees; None where the image is stretched to a size.
        range_hu: HU that the smallest and the largest value stand for; None where each scan has its own.
        range_values: these two values; None where each scan has its own.
    """

    make: Callable[[Volume], np.ndarray]
    axes: str
    shape: tuple[int, int, int] | None
    values: str
    source: str
    spacing_mm: tuple[float, float, float] | None = None
    range_hu: tuple[float, float] | None = None
    range_values: tuple[float, float] | None = (0.0, 1.0)

    def __call__(self, volume: Volume) -> np.ndarray:
        """The model tensor of a volume."""
        return self.make(volume)

    def for_display(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor's image as ``(D, H, W)`` in LPS axes, whatever the system's own axes are."""
        return _in_lps(tensor[0, 0], self.axes)


def med3dvlm(volume: Volume) -> np.ndarray:
    """Med3DVLM and DCFormer: min–max to [0, 1], crop to the foreground, resize to 128×256×256 (D, H, W).

    The spacing is lost, and so is the HU scale: one bright voxel darkens the rest. The released data were prepared from
    8-bit slices.
    """
    hu = volume.hu
    low, high = float(hu.min()), float(hu.max())
    above = hu > low
    met = [np.flatnonzero(above.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]  # no list of voxels: GBs
    box = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in met)
    resized = volume.crop(box).resize((128, 256, 256))
    return scale_range(resized.hu, low, high)[None, None]


def ct_clip(volume: Volume) -> np.ndarray:
    """CT-CLIP: clip to ±1000 HU, 1.5×0.75×0.75 mm, divide by 1000, centre-crop or pad with −1 to 240×480×480."""
    return _fixed_field(_clipped(volume), CT_CLIP_MM, (240, 480, 480), to=(-1.0, 1.0))


def medvista3d(volume: Volume) -> np.ndarray:
    """MedVista3D: 3×1×1 mm, CT-CLIP's intensities, centre-crop or pad to 96×320×320: 288×320×320 mm."""
    return _fixed_field(_clipped(volume), MEDVISTA3D_MM, (96, 320, 320), to=(-1.0, 1.0))


def uvlm(volume: Volume) -> np.ndarray:
    """U-VLM: z-score over the whole volume, resized to 192×256×256 (D, H, W) whatever the spacing."""
    hu = volume.resize((192, 256, 256)).hu
    return ((hu - volume.hu.mean()) / max(float(volume.hu.std()), 1e-8))[None, None]


def merlin(volume: Volume) -> np.ndarray:
    """Merlin: 1.5×1.5 mm in plane and 3 mm along z, ±1000 HU to [0, 1], 224×224×160 in RAS axes (x, y, z)."""
    return _to_ras(_fixed_field(volume, MERLIN_MM, (160, 224, 224), to=(0.0, 1.0)))


def vista3d(volume: Volume, spacing_mm: tuple[float, float, float] = VISTA3D_MM) -> np.ndarray:
    """VISTA-3D: 1.5 mm isotropic, [−963.8, 1053.7] HU to [0, 1], RAS axes (x, y, z); any size."""
    hu = volume.resample(spacing_mm).hu
    return _to_ras(scale_range(hu, *VISTA3D_HU)[None, None])


def _clipped(volume: Volume) -> Volume:
    """±1000 HU before resampling, as CT-CLIP's inference does: padding of −3024 HU would darken its neighbours else."""
    return replace(volume, hu=volume.hu.clip(*CLIP_HU))


def _fixed_field(volume: Volume, spacing_mm, shape, to) -> np.ndarray:
    """Resample, clip to ±1000 HU, crop or pad: the pattern that CT-CLIP set."""
    field = volume.resample(spacing_mm).crop_or_pad(shape, fill=AIR_HU)
    return scale_range(field.hu, *CLIP_HU, to=to)[None, None]


def _to_ras(tensor: np.ndarray) -> np.ndarray:
    """(…, d, h, w) in LPS axes → (…, x, y, z) in RAS axes."""
    return np.ascontiguousarray(tensor.transpose(0, 1, 4, 3, 2)[:, :, ::-1, ::-1])


def _in_lps(image: np.ndarray, axes: str) -> np.ndarray:
    if axes == "RAS":
        image = image[::-1, ::-1].transpose(2, 1, 0)
    return np.ascontiguousarray(image)


RECIPES: dict[str, Recipe] = {
    "Med3DVLM": Recipe(
        med3dvlm,
        "SPL",
        (128, 256, 256),
        "0…1, minimum to maximum",
        "med3dvlm.txt §3.1; released data preparation; Med3DVLM's GitHub issue 4",
    ),
    "CT-CLIP": Recipe(
        ct_clip, "SPL", (240, 480, 480), "−1…1 = ±1000 HU", "released inference code of CT-CLIP",
        CT_CLIP_MM, CLIP_HU, (-1.0, 1.0),
    ),
    "MedVista3D": Recipe(
        medvista3d, "SPL", (96, 320, 320), "−1…1 = ±1000 HU", "medvista3d.txt §4.1", MEDVISTA3D_MM, CLIP_HU, (-1.0, 1.0)
    ),
    "U-VLM": Recipe(
        uvlm, "SPL", (192, 256, 256), "z-score", "uvlm.txt §3.1; released nnU-Net plans", range_values=None
    ),
    "Merlin": Recipe(
        merlin, "RAS", (224, 224, 160), "0…1 = ±1000 HU", "released transforms of Merlin", MERLIN_MM, CLIP_HU
    ),
    "VISTA-3D": Recipe(
        vista3d, "RAS", None, "0…1 = −963.8…1053.7 HU", "MONAI bundle vista3d, inference configuration",
        VISTA3D_MM, VISTA3D_HU,
    ),
}  # fmt: skip
