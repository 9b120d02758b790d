"""VISTA-3D prompted by class or by points: preprocessing, sliding window, and back onto the CT's grid."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box
from ctvlm_lib.segment.small import Trained
from ctvlm_lib.segment.weights import load_vista3d
from ctvlm_lib.volume import RECIPES, Volume, grid, recipe

if TYPE_CHECKING:
    import torch

SPACING_MM = (1.5, 1.5, 1.5)
PATCH = (128, 128, 128)
OVERLAP = 0.3
MARGIN_VOX = 10


def preprocess(volume: Volume, spacing_mm: tuple[float, float, float] = SPACING_MM) -> tuple[np.ndarray, Volume]:
    """Prepare a CT as the bundle does: 1.5 mm, cropped to what is above 0 HU and 10 voxels around, [0, 1], RAS axes.

    Grids are matched edge to edge; MONAI's Spacing matches the first voxels' centres, less than a voxel elsewhere.

    Args:
        volume: a CT in HU.
        spacing_mm: (z, y, x) that the network was trained with; 1.5 mm for the released one.

    Returns:
        the model tensor ``(1, 1, X, Y, Z)`` float32, and the resampled volume ``(D, H, W)`` it shows, whose affine
        places it.

    Source: MONAI bundle vista3d, configs/inference.json; intensities and axes are those of ``RECIPES["VISTA-3D"]``.
    """
    fine = volume.resample(spacing_mm)
    box = bounding_box(fine.hu > 0)
    if box is not None:
        fine = fine.crop(tuple(slice(max(0, s.start - MARGIN_VOX), s.stop + MARGIN_VOX) for s in box))
    return recipe.vista3d(fine, spacing_mm), fine


def class_ids(classes: str | int | Sequence[str | int]) -> tuple[int, ...]:
    """Turn names into VISTA-3D's class prompts: groups become their parts (lung → 28…32), doubles fall away.

    Args:
        classes: a name or an id, several of them, or ``"everything"`` for the bundle's 117.

    Raises:
        BadInput: no such structure (with suggestions), one that VISTA-3D lacks, one that it lists but was not
            trained for, or none at all.
    """
    if isinstance(classes, str | Integral):
        classes = [classes]
    if list(classes) == ["everything"]:
        return anatomy.label_lists()["117"]
    ids = tuple(dict.fromkeys(i for one in classes for i in anatomy.expand(one)))
    if not ids:
        raise BadInput('no class was given; name what to segment, for example ["liver", "spleen"]')
    unsupported = [f"{anatomy.vocabulary('vista3d')[i]} ({i})" for i in ids if i in anatomy.DEPRECATED]
    if unsupported:
        raise BadInput(
            f"VISTA-3D lists {', '.join(unsupported)} but doesn't support it; leave it out"
            f" (supported are {len(anatomy.label_lists()['127'])} of its {len(anatomy.label_lists()['132'])} classes)"
        )
    return ids


def segment(
    volume: Volume,
    classes: str | int | Sequence[str | int],
    weights: "str | Path | torch.nn.Module | Trained",
    *,
    profile: str = "quick",
    patch: tuple[int, int, int] | None = None,
    overlap: float = OVERLAP,
    device: str | None = None,
    memory_gb: float = 2.0,
    progress: bool = False,
) -> LabelMap:
    """Segment classes with VISTA-3D: a voxel takes the class with the highest logit, background if none exceeds 0.

    Args:
        volume: a CT in HU, any spacing and orientation.
        classes: see :func:`class_ids`.
        weights: see :func:`load_vista3d`, or a network that it returned (for several volumes), or the small network of
            :func:`ctvlm_lib.segment.load_small`, which brings its own spacing.
        profile: hubs are asked only in ``paper``.
        patch: the sliding window, voxels along X, Y, Z; multiples of 16. None takes the network's own.
        overlap: of neighbouring windows, 0 ≤ overlap < 1.
        device: ``"cpu"`` or ``"cuda"``; None takes a GPU if torch sees one.
        memory_gb: for the logits of the whole volume; more classes than fit are prompted in several passes, each of
            which runs the encoder again.
        progress: show a bar.

    Returns:
        a LabelMap on the volume's grid with VISTA-3D's ids.

    Raises:
        BadInput: as :func:`class_ids` and :func:`load_vista3d`; a window or an overlap that can't be.

    Source: MONAI bundle vista3d, scripts/inferer.py (Gaussian blending, replicate padding) and VistaPostTransformd.
    """
    if patch is not None and any(n < 16 or n % 16 for n in patch):
        raise BadInput(f"a window of {grid.size_text(patch)} can't be halved four times; take multiples of 16")
    if not 0 <= overlap < 1:
        raise BadInput(f"windows can't overlap by {overlap:g}; choose 0 to 0.9 (the bundle takes {OVERLAP})")
    ids = class_ids(classes)
    network, source, spacing_mm, usual = _network(weights, profile, ids)
    patch = patch or usual
    tensor, fine = preprocess(volume, spacing_mm)
    found = _best_class(network, tensor, ids, patch, overlap, device, memory_gb, progress)
    note = (
        f"segmented by VISTA-3D ({source}): {len(ids)} class prompts,"
        f" windows of {grid.size_text(patch)} overlapping by {overlap:g}"
    )
    return _label_map(found, fine, volume, {i: anatomy.vocabulary("vista3d")[i] for i in ids}, note)


def segment_at(
    volume: Volume,
    points: Sequence[Sequence[float]],
    weights: "str | Path | torch.nn.Module | Trained",
    *,
    negative: Sequence[Sequence[float]] = (),
    name: str = "structure",
    profile: str = "quick",
    patch: tuple[int, int, int] | None = None,
) -> LabelMap:
    """Segment the one structure that points lie in, whatever it is called.

    Args:
        volume: a CT in HU.
        points: (d, h, w) voxels of ``volume`` inside the structure, at least one.
        weights, profile, patch: as :func:`segment`.
        negative: voxels outside the structure, near where the mask shouldn't go.
        name: what to call the structure in the result.

    Returns:
        a LabelMap with the number 1 on the volume's grid.

    Raises:
        BadInput: no point, or one outside the volume or the body; as :func:`segment`.

    Source: MONAI's point_based_window_inferer: one window around each point, the logits of overlapping windows added.
    """
    import torch
    from monai.apps.vista3d.inferer import point_based_window_inferer

    network, source, spacing_mm, usual = _network(weights, profile, ())
    tensor, fine = preprocess(volume, spacing_mm)
    clicks = [*_tensor_points(points, volume, fine), *_tensor_points(negative, volume, fine)]
    if not len(points):
        raise BadInput("no point was given inside the structure; click at least once")
    how = {
        "point_coords": torch.tensor([clicks], dtype=torch.float32),  # (1, clicks, 3)
        "point_labels": torch.tensor([[1] * len(points) + [0] * len(negative)]),
        "prompt_class": torch.tensor([[1]]),  # any class that the network supports
    }
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting affine", UserWarning)  # of MONAI's own MetaTensor
        image = torch.from_numpy(tensor)
        logits = point_based_window_inferer(image, patch or usual, network, transpose=True, **how)
    found = (torch.nan_to_num(logits[0, 0], nan=-1.0) > 0).numpy().astype(np.uint8)
    note = f"segmented by VISTA-3D ({source}) from {len(points)} points inside and {len(negative)} outside"
    return _label_map(found, fine, volume, {1: name}, note)


def _tensor_points(points: Sequence[Sequence[float]], volume: Volume, fine: Volume) -> list[list[float]]:
    """(d, h, w) of a CT → (x, y, z) of the network's tensor in RAS axes."""
    made = []
    for point in points:
        d, h, w = fine.voxel_of(volume.mm_of(np.asarray(point, dtype=float)))
        inside = all(-0.5 <= at < n - 0.5 for at, n in zip((d, h, w), fine.shape, strict=True))
        if not inside:
            raise BadInput(
                f"the point {tuple(float(p) for p in point)} lies outside the part of the CT that holds the body;"
                f" give (d, h, w) voxels of {volume!r}"
            )
        made.append([fine.shape[2] - 1 - w, fine.shape[1] - 1 - h, d])
    return made


def _label_map(found: np.ndarray, fine: Volume, volume: Volume, names: dict[int, str], note: str) -> LabelMap:
    """Labels of the network's grid ``(X, Y, Z)`` in RAS axes on the CT's own grid."""
    labels = RECIPES["VISTA-3D"].for_display(found[None, None])
    labels = grid.resample(labels, fine.affine, volume.shape, volume.affine, order="nearest", fill=0)
    return LabelMap(labels.astype(np.uint16), volume.affine.copy(), names, volume.orientation, (note,))


def windows(shape: Sequence[int], patch: Sequence[int] = PATCH, overlap: float = OVERLAP) -> list[tuple[slice, ...]]:
    """List the patches that MONAI's sliding window cuts out of an image of this shape.

    A side shorter than the patch is padded to it first, and slices count from the padded image's corner.
    """
    from monai.data.utils import dense_patch_slices

    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    step = tuple(p if p == n else max(1, int(p * (1 - overlap))) for n, p in zip(padded, patch, strict=True))
    return dense_patch_slices(padded, patch, step)


def _network(weights, profile: str, ids: tuple[int, ...]):
    """A network ready to predict, where it came from, its spacing in mm and its window."""
    if isinstance(weights, Trained):
        untrained = [anatomy.vocabulary("vista3d")[i] for i in ids if i not in weights.class_ids]
        if untrained:
            raise BadInput(
                f"{weights.name} was never trained for {', '.join(untrained[:3])}"
                f"{' and more' * (len(untrained) > 3)}; it knows {', '.join(weights.classes)}"
            )
        return weights.network, weights.name, weights.spacing_mm, weights.patch
    if callable(getattr(weights, "forward", None)):
        return weights, "a network that was handed over", SPACING_MM, PATCH
    return load_vista3d(weights, profile), f"weights {Path(str(weights)).name}", SPACING_MM, PATCH


def _best_class(network, tensor, ids, patch, overlap, device, memory_gb, progress) -> np.ndarray:
    """The winning class of each voxel, uint8 ``(X, Y, Z)``; as many classes at a time as memory allows."""
    import torch
    from monai.inferers import sliding_window_inference

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    image = torch.from_numpy(tensor)
    best = torch.zeros(tensor.shape[2:])  # background's logit: a sigmoid of 0.5
    label = torch.zeros(tensor.shape[2:], dtype=torch.uint8)
    at_once = max(1, int(memory_gb * 1e9 / (4 * image.numel())))
    network = network.to(device)
    for first in range(0, len(ids), at_once):
        some = ids[first : first + at_once]
        prompt = {"class_vector": torch.tensor(some, device=device)[:, None], "transpose": True}  # (classes, 1)
        how = {"mode": "gaussian", "padding_mode": "replicate", "sw_device": device, "device": "cpu"}
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=device.startswith("cuda")):
            logits = sliding_window_inference(image, patch, 1, network, overlap, progress=progress, **how, **prompt)
        for number, one in zip(some, logits[0], strict=True):  # one class, (X, Y, Z)
            better = one > best
            best[better], label[better] = one[better].float(), number
    return label.numpy()
