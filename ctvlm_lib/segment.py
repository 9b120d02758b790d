"""Masks made here: VISTA-3D through MONAI, prompted by class, and lungs by threshold where no model is at hand.

The network class, its blocks and the sliding window are MONAI's; the weights are the user's, and nothing is fetched unless
profile ``paper`` is asked for. Whatever made a mask, it comes back as a :class:`ctvlm_lib.mask.LabelMap` on the CT's own grid.
"""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box
from ctvlm_lib.volume import RECIPES, Volume, grid

if TYPE_CHECKING:
    import torch

SPACING_MM = (1.5, 1.5, 1.5)
PATCH = (128, 128, 128)
OVERLAP = 0.3
MARGIN_VOX = 10
RELEASED_WIDTH = 48  # encoder_embed_dim of the released weights
HUB_EXAMPLE = "nvidia/NV-Segment-CT"


def preprocess(volume: Volume) -> tuple[np.ndarray, Volume]:
    """Prepare a CT as the bundle does: 1.5 mm, cropped to what is above 0 HU and 10 voxels around, [0, 1], RAS axes.

    Grids are matched edge to edge; MONAI's Spacing keeps the first voxel's centre, at most half a voxel elsewhere.

    Returns:
        the model tensor ``(1, 1, X, Y, Z)`` float32, and the 1.5 mm volume ``(D, H, W)`` it shows, whose affine places it.

    Source: MONAI bundle vista3d, configs/inference.json; the intensities and axes are ``RECIPES["VISTA-3D"]``.
    """
    fine = volume.resample(SPACING_MM)
    box = bounding_box(fine.hu > 0)
    if box is not None:
        fine = fine.crop(tuple(slice(max(0, s.start - MARGIN_VOX), s.stop + MARGIN_VOX) for s in box))
    return RECIPES["VISTA-3D"](fine), fine


def class_ids(classes: str | int | Sequence[str | int]) -> tuple[int, ...]:
    """Turn names into VISTA-3D's class prompts: groups become their parts (lung → 28…32), doubles fall away.

    Args:
        classes: a name or an id, several of them, or ``"everything"`` for the bundle's 117.

    Raises:
        BadInput: no such structure (with suggestions), one that VISTA-3D lacks, one that it lists but doesn't support, or none.
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
        raise BadInput(f"VISTA-3D lists {', '.join(unsupported)} but was not trained for it; leave it out (127 of its 132 classes are supported)")
    return ids


def segment(
    volume: Volume,
    classes: str | int | Sequence[str | int],
    weights: "str | Path | torch.nn.Module",
    *,
    profile: str = "quick",
    patch: tuple[int, int, int] = PATCH,
    overlap: float = OVERLAP,
    device: str | None = None,
    memory_gb: float = 2.0,
    progress: bool = False,
) -> LabelMap:
    """Segment the prompted classes with VISTA-3D; a voxel takes the class with the highest logit, background if none exceeds 0.

    Args:
        volume: a CT in HU, any spacing and orientation.
        classes: see :func:`class_ids`.
        weights: see :func:`load_vista3d`, or a network that it returned (for several volumes).
        profile: hubs are asked only in ``paper``.
        patch: the sliding window, voxels of 1.5 mm along X, Y, Z; divisible by 16.
        overlap: of neighbouring windows, 0 ≤ overlap < 1.
        device: ``"cpu"`` or ``"cuda"``; None takes a GPU if torch sees one.
        memory_gb: for the logits of the whole volume; more classes than fit are prompted in several passes.
        progress: show a bar.

    Returns:
        a LabelMap on the volume's grid with VISTA-3D's ids.

    Raises:
        BadInput: as :func:`class_ids` and :func:`load_vista3d`; a window that the network can't halve four times.
    """
    if any(n < 16 or n % 16 for n in patch):
        raise BadInput(f"the window {grid.size_text(patch)} can't be halved four times; take multiples of 16, such as 128×128×128")
    if not 0 <= overlap < 1:
        raise BadInput(f"windows can't overlap by {overlap:g}; choose 0 to 0.9 (the bundle takes {OVERLAP})")
    ids = class_ids(classes)
    network, source = _network(weights, profile)
    tensor, fine = preprocess(volume)
    found = _best_class(network, tensor, ids, patch, overlap, device, memory_gb, progress)
    labels = RECIPES["VISTA-3D"].for_display(found[None, None])
    labels = grid.resample(labels, fine.affine, volume.shape, volume.affine, order="nearest", fill=0)
    note = f"segmented by VISTA-3D ({source}), {len(ids)} class prompts, windows of {grid.size_text(patch)} overlapping by {overlap:g}"
    names = {i: anatomy.vocabulary("vista3d")[i] for i in ids}
    return LabelMap(labels.astype(np.uint16), volume.affine.copy(), names, volume.orientation, (note,))


def windows(shape: Sequence[int], patch: Sequence[int] = PATCH, overlap: float = OVERLAP) -> list[tuple[slice, ...]]:
    """List the patches that MONAI's sliding window cuts out of an image of this shape; a smaller image is padded to one patch."""
    from monai.data.utils import dense_patch_slices

    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    step = tuple(p if p == n else max(1, int(p * (1 - overlap))) for n, p in zip(padded, patch, strict=True))
    return dense_patch_slices(padded, patch, step)


def load_vista3d(weights: str | Path, profile: str = "quick") -> "torch.nn.Module":
    """Load VISTA-3D's weights into MONAI's own network, ``vista3d132``, ready to predict.

    Args:
        weights: path of ``model.pt`` or a ``.safetensors`` file, or in profile ``paper`` a repository of the model hub
            such as ``nvidia/NV-Segment-CT`` (``owner/name@revision`` fixes the revision).
        profile: quick, full or paper.

    Returns:
        ``monai.networks.nets.vista3d.VISTA3D`` on the CPU. Its width is the file's: 48 in the released weights.

    Raises:
        BadInput: no such file, no weights in it, a hub outside profile ``paper``, or tensors that don't fit (a table of them).

    Source: vista3d132 and its arguments as in the MONAI bundle vista3d. The released weights have their own licence.
    """
    import torch
    from monai.networks.nets.vista3d import vista3d132

    path = _weights_file(str(weights), profile)
    tensors = _read_tensors(path)
    embedding = tensors.get("class_head.class_embeddings.weight")
    width = RELEASED_WIDTH if embedding is None or embedding.ndim != 2 or embedding.shape[1] % 8 else embedding.shape[1]
    with torch.device("meta"):  # no memory and no time for random weights that the file replaces
        network = vista3d132(encoder_embed_dim=width, in_channels=1)
    _check_tensors(tensors, network.state_dict(), path.name, f"vista3d132(encoder_embed_dim={width}, in_channels=1)")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _network(weights, profile: str):
    """A network ready to predict and where it came from."""
    if callable(getattr(weights, "forward", None)):
        return weights, "a network that was handed over"
    return load_vista3d(weights, profile), Path(str(weights)).name


def _best_class(network, tensor, ids, patch, overlap, device, memory_gb, progress) -> np.ndarray:
    """The winning class of each voxel, uint8 ``(X, Y, Z)``; a few classes at a time, so that memory stays bounded."""
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
        prompt = torch.tensor(some, device=device)[:, None]  # (classes, 1)
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=device.startswith("cuda")):
            logits = sliding_window_inference(
                image, patch, 1, network, overlap, mode="gaussian", padding_mode="replicate", sw_device=device, device="cpu",
                progress=progress, transpose=True, class_vector=prompt,
            )[0]  # (classes, X, Y, Z)  # fmt: skip
        for number, one in zip(some, logits, strict=True):
            better = one > best
            best[better], label[better] = one[better], number
    return label.numpy()


def _weights_file(weights: str, profile: str) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?", weights)
    if not weights or not hub or path.suffix in (".pt", ".pth", ".bin", ".safetensors") or path.exists():
        raise BadInput(f"there is no weights file {weights!r}; give the path of VISTA-3D's model.pt or a .safetensors file")
    if profile != "paper":
        raise BadInput(
            f"there is no file {weights!r}, and a model hub is asked only in profile paper; download its model.pt and give"
            ' the path, or choose profile="paper"'
        )
    return _from_hub(hub[1], hub[2])


def _from_hub(repository: str, revision: str | None) -> Path:
    """Fetch one weights file of a repository into the hub's own cache: safetensors first, then model.pt, never MONAI 1.3's."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision)
        fitting = [f for f in files if f.endswith((".safetensors", "model.pt")) and "1.3" not in f]
        if not fitting:
            raise BadInput(f"{repository} on the model hub holds neither model.pt nor a .safetensors file; try {HUB_EXAMPLE}")
        chosen = min(fitting, key=lambda f: (not f.endswith(".safetensors"), f))
        return Path(huggingface_hub.hf_hub_download(repository, chosen, revision=revision))
    except (OSError, ValueError) as error:  # the hub's own errors are among these
        if isinstance(error, BadInput):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{repository} can't be had from the model hub ({reason}); download model.pt and give its path") from error


def _read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a weights file under the names that MONAI's network gives them, float32."""
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = type(error).__name__
        raise BadInput(f"{path.name} can't be read as weights ({reason}); it is incomplete or no plain file of tensors: fetch it again") from error
    except Exception as error:  # safetensors has its own error class, which derives from nothing narrower
        raise BadInput(f"{path.name} can't be read as weights ({type(error).__name__}); fetch it again") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise BadInput(f"{path.name} holds no tensors by name; VISTA-3D's model.pt is expected")
    return {re.sub(r"^(module\.|network\.)+", "", k): v.float() for k, v in tensors.items()}


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _check_tensors(given, wanted, file: str, network: str) -> None:
    """Compare names and shapes; a mismatch becomes one sentence and a table, MONAI 1.3's names a hint which file to take."""
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    shapes = [f"{k} {tuple(given[k].shape)}, not {tuple(wanted[k].shape)}" for k in wanted if k in given and given[k].shape != wanted[k].shape]
    if not (missing or extra or shapes):
        return
    if any(".mlp.lin1." in k for k in extra) and any(".mlp.linear1." in k for k in missing):
        advice = (
            "its layers have the names of MONAI 1.3 (mlp.lin1, now mlp.linear1): take model.pt of the bundle or of"
            f" {HUB_EXAMPLE} (vista3d_pretrained_model/model.pt) in place of model_monai1.3.pt"
        )
    else:
        advice = "give the weights of VISTA-3D's bundle (MONAI 1.4 or later), model.pt"
    rows = [_row("missing", missing), _row("not expected", extra), _row("another shape", shapes)]
    raise BadInput(f"{file} doesn't fit {network}; {advice}\n" + "\n".join(row for row in rows if row))


def _row(what: str, names: list[str], shown: int = 3) -> str:
    more = f" … and {len(names) - shown} more" if len(names) > shown else ""
    return f"  {what:<13} {len(names):>4}  {', '.join(names[:shown])}{more}" if names else ""


def lungs_by_threshold(volume: Volume, threshold_hu: float = -400, airway_hu: float = -930) -> LabelMap:
    """Find the lungs without a model: air that the body encloses, without trachea and main bronchi, split into left and right.

    It fails where lung isn't dark or isn't enclosed: consolidation, effusion, large masses and vessels are left out; a lung cut
    by the image's side is lost; with severe emphysema lung and airway look alike. Never a substitute for a checked mask.

    Args:
        volume: a CT in HU that holds at least the lung bases.
        threshold_hu: below it a voxel is air or lung.
        airway_hu: below it, after smoothing over 3×3×3 voxels, a voxel is gas.

    Returns:
        a LabelMap with ``left lung`` (1) and ``right lung`` (2) on the volume's grid; its notes say how it was made.

    Raises:
        BadInput: nothing here looks like lung.
    """
    from scipy import ndimage

    gas = ndimage.uniform_filter(volume.hu, 3) < airway_hu
    lungs = _lung_like(_enclosed(volume.hu < threshold_hu), gas, volume)
    airway = _airway(lungs & gas, lungs)
    lungs &= ~ndimage.binary_dilation(airway)
    labels, how = _left_right(lungs)
    note = (
        f"lungs by threshold ({threshold_hu:g} HU) and connected components, not by a model; {how};"
        f" airway left out: {airway.sum() * _voxel_ml(volume):.0f} mL"
    ).replace("-", "−")
    return LabelMap(labels, volume.affine.copy(), {1: "left lung", 2: "right lung"}, volume.orientation, (note,))


def _enclosed(air: np.ndarray) -> np.ndarray:
    """Numbers of the 6-connected parts of air that don't touch the image's sides; top and bottom may cut the lungs."""
    import cc3d

    parts = cc3d.connected_components(air, connectivity=6, out_dtype=np.uint32)
    sides = np.unique(np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()]))
    parts[np.isin(parts, sides)] = 0
    return parts


def _lung_like(parts: np.ndarray, gas: np.ndarray, volume: Volume) -> np.ndarray:
    """The largest part, and a second of at least a fifth of it; parts that are mostly gas are bowel or airway."""
    sizes = np.bincount(parts.ravel())
    gassy = np.bincount(parts.ravel(), weights=gas.ravel()) > 0.5 * sizes
    sizes = np.where(gassy, 0, sizes)
    sizes[0] = 0
    first, *second = np.argsort(-sizes)[:2]
    if sizes[first] * _voxel_ml(volume) < 20:
        raise BadInput(f"nothing in {volume.name} looks like lung (20 mL of enclosed air above pure gas); is the chest in the image?")
    return np.isin(parts, [first, *(n for n in second if sizes[n] >= 0.2 * sizes[first])])


def _airway(gas: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Trachea and main bronchi: the largest connected gas in the lungs; none if it is over a tenth of them (emphysema)."""
    from ctvlm_lib.mask import largest_component

    airway = largest_component(gas)
    return airway if airway.sum() <= 0.1 * lungs.sum() else np.zeros_like(airway)


def _left_right(lungs: np.ndarray) -> tuple[np.ndarray, str]:
    """1 on the patient's left, 2 on the right: the lungs part after two erosions, and a voxel goes to the nearer of the two."""
    import cc3d
    from scipy import ndimage

    labels = np.zeros(lungs.shape, np.uint16)
    box = bounding_box(lungs)
    inside = lungs[box]
    cores = cc3d.connected_components(ndimage.binary_erosion(inside, iterations=2), connectivity=6, out_dtype=np.uint32)
    sizes = np.bincount(cores.ravel())
    sizes[0] = 0
    two = np.argsort(-sizes)[:2]
    if len(two) == 2 and sizes[two[1]] >= 0.1 * sizes[two[0]]:
        side = np.zeros(cores.shape, np.uint16)
        for number, core in enumerate(sorted(two, key=lambda n: -np.nonzero(cores == n)[2].mean()), start=1):
            side[cores == core] = number  # w grows to the patient's left
        nearest = ndimage.distance_transform_edt(side == 0, return_distances=False, return_indices=True)
        labels[box], how = np.where(inside, side[tuple(nearest)], 0), "left and right are separate parts"
    else:
        left = np.arange(lungs.shape[2]) >= lungs.shape[2] / 2
        labels[lungs] = np.broadcast_to(np.where(left, 1, 2), lungs.shape)[lungs]
        how = "left and right cut at the middle of the image, because they are one part or one lung"
    return labels, how


def _voxel_ml(volume: Volume) -> float:
    return abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
