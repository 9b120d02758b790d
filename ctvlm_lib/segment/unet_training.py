"""Stage 1 of U-VLM: a U-Net learns to segment, by Dice and cross-entropy at every scale of its decoder.

As in nnU-Net, Dice leaves the background out, and some patches are drawn around a class of the foreground. Three things
are otherwise on the cohort, and as there with a user's data (``as_nnunet`` of :func:`fit`, ``gaussian`` of
:func:`segment`):

                          on the cohort                           nnU-Net, and U-VLM's released trainer
    losses of the scales  1, ½, ¼, ⅛, 1/16; every one counts      1, ½, ¼ …, the coarsest 0, divided by their sum
    Dice                  over all patches of a step              of each patch, then their mean
    overlapping windows   count alike                             count by a Gaussian, most in their middle

Decided here, as steps are few on a CPU: two thirds of the patches are drawn around the foreground, not a third; and on
the cohort rare classes weigh more (:func:`class_weights`) and AdamW learns, in place of SGD with momentum .99. Shifts
and noise stand for nnU-Net's augmentation. Nothing is mirrored, in training or when it is asked, which both of the
others do: that makes left of right.

Source: uvlm.txt §2.1, equation (1), and §3.1; nnU-Net's trainer for what the paper leaves to it; U-VLM's released code
(5d7fde9), nnUNetTrainer_ResEncoderUNet.py, inference_seg.py and plans.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from ctvlm_lib.alignment.scans import KNOTS_HU, SHIFT_VOX, as_input, shifted
from ctvlm_lib.encoder.unet import UNet
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import patient_bootstrap
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.segment.containment import contains
from ctvlm_lib.training import Curve, Step, Training, train

NOISE_HU = 20.0
OF_FOREGROUND = 2 / 3  # share of the patches that are drawn around a voxel of the foreground; nnU-Net's is 1/3


@dataclass(frozen=True, eq=False)
class Segmented:
    """Volumes with what shall be found in them.

    Attributes:
        names: of the patients.
        hu: int16 ``(n, D, H, W)``.
        target: uint8 ``(n, D, H, W)``, indices into ``classes``.
        classes: names, background first.

    Raises:
        BadInput: parts of different lengths or grids, or a target that is no index into the classes.
    """

    names: tuple[str, ...]
    hu: np.ndarray
    target: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.hu.shape != self.target.shape or len(self.hu) != len(self.names):
            raise BadInput(
                f"{len(self.names)} names, volumes {self.hu.shape} and targets {self.target.shape}: give one of each"
                " for every patient, on one grid"
            )
        if self.target.size and not 0 <= int(self.target.min()) <= int(self.target.max()) < len(self.classes):
            wrong = min(int(self.target.min()), 0) or int(self.target.max())
            raise BadInput(
                f"a target holds label {wrong} and there are {len(self.classes)} classes, 0 to"
                f" {len(self.classes) - 1}; make the targets with the class map that names them"
            )

    def __len__(self) -> int:
        return len(self.names)

    def as_input(self, k: int, hu: np.ndarray) -> np.ndarray:
        """HU of the k-th patient, or of a part of it, as a network reads them."""
        return as_input(hu)


def class_weights(target: np.ndarray, classes: int) -> Tensor:
    """1/√share of the voxels of each class, their mean 1; a class without a voxel gets the rarest one's weight."""
    counts = np.bincount(target.ravel(), minlength=classes)
    weights = 1 / np.sqrt(np.where(counts > 0, counts, counts[counts > 0].min()))
    return torch.from_numpy(weights / weights.mean()).float()


def scale_weights(scales: int) -> list[float]:
    """nnU-Net's: 1, ½, ¼ … from the finest on, nothing for the coarsest, together 1; a single scale has all of it."""
    halves = [0.5**k for k in range(scales - 1)] + [0.0] if scales > 1 else [1.0]
    return [one / sum(halves) for one in halves]


def segmentation_loss(
    logits: Sequence[Tensor], target: Tensor, weights: Tensor | None = None, *, as_nnunet: bool = False
) -> Tensor:
    """Equation (1) at every scale: Dice over the foreground, and cross-entropy.

    Args:
        logits: ``(B, classes, D_i, H_i, W_i)``, the finest first.
        target: ``(B, D, H, W)`` whole numbers; coarser scales see the voxel in the middle of each of their cells.
        weights: ``(classes,)`` of both terms; None: all alike, as printed.
        as_nnunet: the scales weigh as :func:`scale_weights` says, and Dice is each patch's own; False: 1, ½, ¼, ⅛ and
            1/16, and Dice over all patches.

    Returns:
        scalar; nnU-Net's is 1 lower, as it takes −Dice for 1 − Dice.

    Source: uvlm.txt eq. (1); MONAI's DiceCELoss and DeepSupervisionLoss.
    """
    from monai.losses import DeepSupervisionLoss, DiceCELoss

    one = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=not as_nnunet, weight=weights)
    scales = scale_weights(len(logits)) if as_nnunet else None
    deep = DeepSupervisionLoss(one, weight_mode="exp", weights=scales)
    return deep(list(logits), target[:, None].float())  # it resizes floats only


def fit(
    model: UNet,
    known: Segmented,
    settings: Training,
    batch: int = 2,
    patch_dhw_vox: tuple[int, int, int] | None = None,
    balanced: bool = True,
    *,
    as_nnunet: bool = False,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Curve:
    """Train a U-Net in place.

    Args:
        model: with the classes of ``known``.
        known: whom it learns from; any object with these attributes, such as one that reads each volume from disk.
        settings: how.
        batch: patches a step, over all processes; each takes its Dice over its own share.
        patch_dhw_vox: their size; None takes whole volumes, shifted.
        balanced: rare classes weigh more, see :func:`class_weights`; False: all alike, as printed.
        as_nnunet: see :func:`segmentation_loss`.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: other classes than the model's, a volume smaller than the patch, or fewer patients than a batch.
    """
    if tuple(model.config.classes) != known.classes:
        raise BadInput(
            f"the U-Net segments {len(model.config.classes)} classes and the targets have {len(known.classes)}; build"
            " it with those of the targets"
        )
    if batch > len(known):
        raise BadInput(f"a batch of {batch} is larger than the cohort of {len(known)}; choose a smaller one")
    if patch_dhw_vox and any(n < p for n, p in zip(known.hu.shape[1:], patch_dhw_vox, strict=True)):
        raise BadInput(
            f"volumes of {known.hu.shape[1:]} voxels (D, H, W) are smaller than the patch of {patch_dhw_vox}; choose a"
            " smaller patch, or pad them"
        )

    weights = class_weights(known.target, len(known.classes)) if balanced else None

    def loss(network: UNet, step: Step) -> Tensor:
        drawn = step.mine(step.rng("patients").choice(len(known), batch, replace=False))
        rng = step.own_rng("look")
        pairs = [_example(known, int(k), rng, patch_dhw_vox) for k in drawn]
        image, target = (np.stack(part) for part in zip(*pairs, strict=True))
        device = next(network.parameters()).device
        volume = torch.from_numpy(image)[:, None].to(device, memory_format=torch.channels_last_3d)
        wanted = torch.from_numpy(target.astype(np.int64)).to(device)
        by_class = None if weights is None else weights.to(device)
        return segmentation_loss(network(volume), wanted, by_class, as_nnunet=as_nnunet)

    model.to(memory_format=torch.channels_last_3d)  # a quarter faster on a CPU
    return train(model, loss, settings, folder=folder, on_step=on_step, progress=progress)


@torch.inference_mode()
def segment(
    model: UNet, hu: np.ndarray, patch_dhw_vox: tuple[int, int, int] | None = None, batch: int = 4,
    look: Callable[[np.ndarray], np.ndarray] = as_input, *, gaussian: bool = False,
) -> np.ndarray:  # fmt: skip
    """Segment volumes.

    Args:
        model: trained.
        hu: ``(n, D, H, W)``.
        patch_dhw_vox: window that slides over a volume, half overlapping; None reads it whole.
        batch: volumes, or windows, at a time.
        look: HU → what the network reads.
        gaussian: where windows overlap, their middle counts most, by a Gaussian of an eighth of their size, as in
            nnU-Net; False: all of a window counts alike.

    Returns:
        uint8 ``(n, D, H, W)``, the likeliest class of each voxel.

    Raises:
        BadInput: a volume smaller than the window, or HU that aren't numbers.
    """
    from monai.inferers import sliding_window_inference

    if not np.isfinite(hu).all():
        raise BadInput("a volume holds HU that are NaN or infinite; read it anew, or put air, −1000, in their place")
    if patch_dhw_vox and any(n < p for n, p in zip(hu.shape[1:], patch_dhw_vox, strict=True)):
        raise BadInput(f"a volume of {hu.shape[1:]} voxels is smaller than the window of {patch_dhw_vox}; pad it")
    found, device = np.zeros(hu.shape, np.uint8), next(model.parameters()).device
    how = {"overlap": 0.5, "mode": "gaussian" if gaussian else "constant"}
    for start in range(0, len(hu), batch):
        some = torch.from_numpy(look(hu[start : start + batch]))[:, None].to(device)
        if patch_dhw_vox:
            logits = sliding_window_inference(some, patch_dhw_vox, batch, lambda x: model(x)[0], **how)
        else:
            logits = model(some)[0]
        found[start : start + batch] = logits.argmax(dim=1).cpu().numpy()
    return found


def dice_of(found: np.ndarray, known: Segmented) -> np.ndarray:
    """Dice of each patient and class, ``(n, classes − 1)`` without the background; NaN where a class isn't there."""
    made = np.full((len(known), len(known.classes) - 1), np.nan)
    for k, (one, true) in enumerate(zip(found, known.target, strict=True)):
        size = len(known.classes)
        both = np.bincount(true[one == true].ravel(), minlength=size)[1:]
        of_true, of_found = (np.bincount(array.ravel(), minlength=size)[1:] for array in (true, one))
        there = of_true > 0
        made[k, there] = 2 * both[there] / (of_true + of_found)[there]
    return made


def dice_table(found: np.ndarray, known: Segmented) -> pd.DataFrame:
    """Mean Dice of each class over the patients who have it, with its interval.

    Returns:
        columns class, patients, Dice, low, high (%); a class that nobody has is left out.
    """
    rows, dice = [], 100 * dice_of(found, known)
    for name, column in zip(known.classes[1:], dice.T, strict=True):
        there = np.flatnonzero(np.isfinite(column))
        if not len(there):
            continue
        mean = patient_bootstrap(column[there], np.array(known.names)[there])
        rows.append({"class": name, "patients": len(there), "Dice": mean.value, "low": mean.low, "high": mean.high})
    return pd.DataFrame(rows)


def lesion_voxels(found: np.ndarray, classes: ClassMap, organs: Sequence[str]) -> np.ndarray:
    """Voxels of lesions in each organ: a lesion's voxel belongs to the structure that was found nearest to it.

    Args:
        found: ``(D, H, W)``, indices into ``classes.names``.
        classes: what they mean; an organ's classes are those that it contains.
        organs: names of structures.

    Returns:
        int ``(organs,)``.

    Raises:
        BadInput: classes without lesions.
    """
    if not classes.lesions:
        raise BadInput(f"{classes!r} has no lesions to count; take C+L or F+L")
    first = len(classes.names) - len(classes.lesions)
    anatomical = (found > 0) & (found < first)
    lesion = found >= first
    if not anatomical.any() or not lesion.any():
        return np.zeros(len(organs), int)
    nearest = ndimage.distance_transform_edt(~anatomical, return_distances=False, return_indices=True)
    around = found[tuple(axis[lesion] for axis in nearest)]
    of = [[k for k, name in enumerate(classes.names[:first]) if contains(organ, name)] for organ in organs]
    return np.array([np.isin(around, numbers).sum() for numbers in of])


def _example(known: Segmented, k: int, rng: np.random.Generator, patch) -> tuple[np.ndarray, np.ndarray]:
    """One patient as a step sees it: moved or cut, with noise; float32 and labels ``(D, H, W)``."""
    hu, target = known.hu[k], known.target[k]
    if patch is None:
        by = np.array([rng.integers(-s, s + 1) for s in SHIFT_VOX])
        hu, target = shifted(hu, by, int(KNOTS_HU[0])), shifted(target, by, 0)
    else:
        crop = _patch(target, rng, patch)
        hu, target = hu[crop], target[crop]
    return known.as_input(k, hu + rng.normal(0, NOISE_HU, hu.shape)), target


def _patch(target: np.ndarray, rng: np.random.Generator, patch) -> tuple[slice, ...]:
    """A place for a patch: anywhere, or around a voxel of a class that is there."""
    room = [n - p for n, p in zip(target.shape, patch, strict=True)]
    start = [int(rng.integers(r + 1)) for r in room]
    there = np.flatnonzero(np.bincount(target.ravel())[1:]) + 1
    if len(there) and rng.random() < OF_FOREGROUND:
        places = np.argwhere(target == rng.choice(there))
        middle = places[rng.integers(len(places))]
        start = [int(np.clip(m - p // 2, 0, r)) for m, p, r in zip(middle, patch, room, strict=True)]
    return tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
