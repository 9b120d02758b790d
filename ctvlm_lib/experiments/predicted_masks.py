"""Regions that U-VLM's first stage finds, in the place of masks that somebody drew, and how well it finds them.

A lesion goes to the structure that was found nearest to it, as true regions hold their lesions, and of each region the
largest part is kept. :mod:`ctvlm_lib.experiments.predicted_prompts` asks what prompts on these regions are worth.

Sources: uvlm.txt §2.1 (the segmentation); contour.txt §3.1 (the largest part).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import ndimage
from torch import nn

from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import patient_bootstrap
from ctvlm_lib.mask import largest_component
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.segment.containment import contains, content
from ctvlm_lib.segment.unet_training import Segmented, dice_of, segment

GRANULARITY = "F+L"  # the only one with a class for each kidney and each lobe


def with_predicted(
    scans: Scans,
    model: nn.Module,
    classes: ClassMap,
    patch_dhw_vox: tuple[int, int, int] | None = None,
    *,
    largest: bool = True,
    batch: int = 4,
) -> Scans:
    """The same patients with the regions that a U-Net finds in place of the true ones; all else stays.

    Args:
        scans: the cohort.
        model: trained, see :func:`ctvlm_lib.segment.unet_training.segment`.
        classes: what its classes mean.
        patch_dhw_vox, batch: as of :func:`ctvlm_lib.segment.unet_training.segment`.
        largest: of each region keep the largest 26-connected part, as the contour's paper does. A sixth of the true
            regions have specks apart, which a box on a slice would surround, too.

    Raises:
        BadInput: classes that aren't the model's, or a region that has no class of its own.
    """
    _check(model, classes)
    found = segment(model, scans.hu, patch_dhw_vox, batch)
    return replace(scans, region=np.stack([regions_of(one, classes, largest) for one in found]))


def regions_of(found: np.ndarray, classes: ClassMap, largest: bool = True) -> np.ndarray:
    """One patient's regions: uint8 ``(D, H, W)``, k + 1 for ``REGIONS[k]``, from indices into ``classes.names``."""
    whole, made = _with_lesions(found, classes), np.zeros(found.shape, np.uint8)
    for k, region in enumerate(REGIONS):
        mask = whole == classes.names.index(region)
        made[largest_component(mask) if largest else mask] = k + 1
    return made


def dice_by_region(predicted: Scans, true: Scans) -> pd.DataFrame:
    """How well each region was found.

    Args:
        predicted: of :func:`with_predicted`. true: the same patients with their true masks.

    Returns:
        Columns of :func:`dice_table`.
    """
    return dice_table(true.names, *overlap(predicted, true))


def dice_table(names: Sequence[str], dice: np.ndarray, voxels: np.ndarray) -> pd.DataFrame:
    """Mean Dice of each region over the patients who have it, with its interval.

    Args:
        names: of the patients.
        dice: ``(n, regions)``, NaN where a region isn't there.
        voxels: ``(n, regions)``, how many were found.

    Returns:
        columns region, patients, Dice, low, high (%), missed (patients who have it, nothing found: Dice 0).
    """
    rows = []
    for k, region in enumerate(REGIONS):
        there = np.flatnonzero(np.isfinite(dice[:, k]))
        if not len(there):
            continue
        mean = patient_bootstrap(100 * dice[there, k], np.array(names)[there])
        rows.append({"region": region, "patients": len(there), "Dice": mean.value, "low": mean.low, "high": mean.high,
                     "missed": int((voxels[there, k] == 0).sum())})  # fmt: skip
    return pd.DataFrame(rows)


def overlap(predicted: Scans, true: Scans) -> tuple[np.ndarray, np.ndarray]:
    """Dice and found voxels, each ``(n, regions)``."""
    if predicted.names != true.names:
        raise BadInput("predicted and true masks are of other patients; give the same cohort with both")
    known = Segmented(true.names, true.hu, true.region, ("background", *REGIONS))
    voxels = [np.bincount(one.ravel(), minlength=len(REGIONS) + 1)[1:] for one in predicted.region]
    return dice_of(predicted.region, known), np.stack(voxels)


def _check(model: nn.Module, classes: ClassMap) -> None:
    if tuple(model.config.classes) != classes.names:
        raise BadInput(
            f"the U-Net segments {len(model.config.classes)} classes and {classes!r} names others; give the map that it"
            " was trained with"
        )
    if without := [region for region in REGIONS if region not in classes.names]:
        raise BadInput(
            f"{classes!r} has no class for {', '.join(without)}, so no prompt can be drawn on each of them; take a"
            f" U-Net that was trained at granularity {GRANULARITY}"
        )


def _with_lesions(found: np.ndarray, classes: ClassMap) -> np.ndarray:
    """A lesion's voxels as those of the structure that was found nearest to them: true regions hold their lesions.

    Fluid in the pleura is in no region, there as here.
    """
    first = len(classes.names) - len(classes.lesions)
    anatomical = (found > 0) & (found < first)
    lesion = np.isin(found, [classes.names.index(name) for name in classes.lesions if _in_a_region(classes, name)])
    if not (anatomical.any() and lesion.any()):
        return found
    nearest = ndimage.distance_transform_edt(~anatomical, return_distances=False, return_indices=True)
    whole = found.copy()
    whole[lesion] = found[tuple(axis[lesion] for axis in nearest)]
    return whole


def _in_a_region(classes: ClassMap, lesion: str) -> bool:
    within = content()[classes.scope]["lesions"][lesion]["within"]
    return not within or any(contains(within, region) for region in REGIONS)
