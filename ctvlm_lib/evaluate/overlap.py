"""How a found mask and a true one overlap: Dice, mean surface distance, 95th-percentile Hausdorff distance; by MONAI.

Empty masks, as the field scores them:

* both are empty: there is nothing to find and nothing was found, so Dice is 1 and both distances are 0 mm. MONAI leaves
  such a pair out (NaN), as :func:`ctvlm_lib.mask.dice` does; with ``ignore_empty=False`` its Dice is 1 too;
* one is empty: Dice is 0. A distance from nothing is no number: it is inf, and a mean over cases must say how many such
  cases it leaves out, as :func:`summary` does.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import dice, surface_distance_mm
from ctvlm_lib.mask.binary import bounding_box


@dataclass(frozen=True)
class Overlap:
    """Agreement of two masks.

    Attributes:
        dice: 0…1.
        surface_mm: mean distance between the surfaces, both ways, mm; inf if one mask is empty.
        hausdorff95_mm: 95th percentile of these distances, the larger way, mm; inf if one mask is empty.
        empty: "", or which are empty: "both", "found", "true".
    """

    dice: float
    surface_mm: float
    hausdorff95_mm: float
    empty: str = ""


def overlap(found: np.ndarray, true: np.ndarray, spacing_mm: tuple[float, float, float]) -> Overlap:
    """Compare a found mask with the true one.

    Args:
        found, true: bool ``(D, H, W)`` on one grid.
        spacing_mm: of the voxels, (z, y, x).

    Raises:
        BadInput: masks that aren't bool or 3-D, of different shapes, or a spacing that isn't three positive lengths.

    Source: MONAI's compute_dice, compute_average_surface_distance (symmetric) and compute_hausdorff_distance.
    """
    _check(found, true, spacing_mm)
    if not (found.any() or true.any()):
        return Overlap(1.0, 0.0, 0.0, "both")
    if not (found.any() and true.any()):
        return Overlap(0.0, float("inf"), float("inf"), "true" if found.any() else "found")
    box = bounding_box(found | true)
    # one voxel of background, so that the crop's border is no border of the masks; distances are the same
    found, true = (np.pad(mask[box], 1) for mask in (found, true))
    return Overlap(
        dice(found, true), surface_distance_mm(found, true, spacing_mm), _hausdorff95(found, true, spacing_mm)
    )


def summary(overlaps: Iterable[Overlap]) -> dict[str, float]:
    """Means over cases, with what they leave out.

    Returns:
        ``n``; ``dice``, over all; ``surface_mm`` and ``hausdorff95_mm``, over the cases where they are finite;
        ``no_distance``, the number of those left out of them. A mean over no case is NaN.

    Raises:
        BadInput: no case.
    """
    cases = list(overlaps)
    if not cases:
        raise BadInput("there are no masks to sum up; give at least one comparison")
    finite = [one for one in cases if np.isfinite(one.surface_mm)]
    means = {
        name: float(np.mean([getattr(one, name) for one in finite])) if finite else float("nan")
        for name in ("surface_mm", "hausdorff95_mm")
    }
    return {"n": len(cases), "dice": float(np.mean([one.dice for one in cases])), **means,
            "no_distance": len(cases) - len(finite)}  # fmt: skip


def _hausdorff95(found: np.ndarray, true: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    import torch
    from monai.metrics import compute_hausdorff_distance

    pair = [torch.from_numpy(np.ascontiguousarray(mask, dtype=np.uint8))[None, None] for mask in (found, true)]
    with warnings.catch_warnings():
        # MONAI 1.6 calls one of its own functions with a deprecated argument
        warnings.simplefilter("ignore", FutureWarning)
        options = {"include_background": True, "percentile": 95, "spacing": list(spacing_mm)}
        return float(compute_hausdorff_distance(*pair, **options)[0, 0])


def _check(found: np.ndarray, true: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    for what, mask in (("found", found), ("true", true)):
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 3:
            given = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise BadInput(f"the {what} mask is {given}; give bool (D, H, W), e.g. labels.binary('liver')")
    if found.shape != true.shape:
        raise BadInput(f"masks are {found.shape} and {true.shape}; put both on one grid with to(volume)")
    if len(spacing_mm) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in spacing_mm):
        raise BadInput(f"spacing is {tuple(spacing_mm)}; give three positive lengths in mm, (z, y, x)")
