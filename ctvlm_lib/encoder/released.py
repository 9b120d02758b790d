"""Released DCFormer weights: Med3DVLM's layouts and the DCFormer repository's, by name, with a report."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ctvlm_lib.encoder.checks import refuse_non_finite
from ctvlm_lib.encoder.config import VARIANTS, variant_config
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.weights import Fit, find, read_tensors

HUB_EXAMPLE = "MagicXin/DCFormer_SigLIP"
EXPECTED = "Med3DVLM's pretrained_ViT.bin or a checkpoint that holds a DCFormer"
FIRST = "encoder.s0.0.0.c1.0.weight"


class Imported(NamedTuple):
    """A loaded encoder, and how the file's tensors fitted it; ``print(fit.table())`` shows that."""

    encoder: DCFormer
    fit: Fit


def load_released(weights: str | Path, variant: str = "small", profile: str = "quick", **switches) -> Imported:
    """Load a released DCFormer, whichever of its layouts it is stored in.

    Known are the bare encoder (``encoder.s0…``: pretrained_ViT.bin), the contrastive model
    (``vision_encoder.encoder.s0…``), the vision–language model (``model.vision_tower.vision_tower.encoder.s0…``), and
    the DCFormer repository's naming: layer scale ``gamma``, each BatchNorm stored twice, a codebook ``vq``.

    Args:
        weights: a file of ``torch.save`` or safetensors, a folder of shards, or in profile ``paper`` a repository of
            the model hub.
        variant: which DCFormer it is; Med3DVLM released ``small``.
        profile: quick, full or paper.
        switches: as for ``dcformer``; with ``stem="every_voxel"`` the added branch starts at zero.

    Returns:
        the encoder in eval mode, float32, and the report.

    Raises:
        BadInput: no such file, no DCFormer in it, tensors missing or of another shape (with the table), or values that
            are not finite.
    """
    path = find(str(weights), profile, EXPECTED, _choose, HUB_EXAMPLE)
    stored = read_tensors(path, EXPECTED, wanted=lambda name: "encoder.s" in name)
    tensors, renamed, ignored = translate(stored, prefix_of(stored, path.name))
    config = variant_config(variant, **switches)
    with torch.device("meta"):  # the file replaces all weights
        encoder = DCFormer(config)
    wanted = encoder.state_dict()
    _start_added_branch_at_zero(tensors, wanted, ignored)
    fit = Fit.of(tensors, wanted, ignored, renamed)
    if not fit.complete:
        raise BadInput(f"{path.name} doesn't fit dcformer({variant!r}); {advice(tensors, variant)}\n{fit.table()}")
    refuse_non_finite({name: tensors[name] for name in fit.matched}, path.name)
    encoder.load_state_dict({name: tensors[name] for name in fit.matched}, assign=True)
    return Imported(encoder.requires_grad_(True).eval(), fit)


def prefix_of(stored: Mapping, file: str) -> str:
    """What stands before ``encoder.s0`` in this layout."""
    found = [name.removesuffix(FIRST) for name in stored if name.endswith(FIRST)]
    if len(found) != 1:
        raise BadInput(
            f"{file} holds {len(found)} tensors named …{FIRST}, and one is expected; give {EXPECTED}"
            f" (its first tensors are {', '.join(list(stored)[:3])})"
        )
    return found[0]


def translate(stored: Mapping[str, Tensor | None], prefix: str) -> tuple[dict[str, Tensor], dict, dict]:
    """Names as the encoder here has them: tensors, what was renamed, and what was left out and why."""
    tensors, renamed, ignored = {}, {}, {}
    for name, tensor in stored.items():
        own = name.removeprefix(prefix)
        if not name.startswith(prefix) or not own.startswith("encoder.s"):
            ignored[name] = "another part of the model"
            continue
        twin = _twin(own)
        if twin and prefix + twin in stored:
            if not torch.equal(tensor, stored[prefix + twin]):
                raise BadInput(f"{name} and {prefix + twin} should be one tensor and differ; fetch the file again")
            ignored[name] = "stored twice"
            continue
        new = twin or re.sub(r"\.gamma$", ".scale", own)
        if new != own:
            renamed[name] = new
        tensors[new] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors, renamed, ignored


def _twin(name: str) -> str | None:
    """The DCFormer repository registers BatchNorm i of a decomposed convolution as ``norm.i`` and in ``c(i+1)``."""
    match = re.fullmatch(r"(.+)\.norm\.([012])\.(\w+)", name)
    return f"{match[1]}.c{int(match[2]) + 1}.1.{match[3]}" if match else None


def _start_added_branch_at_zero(tensors: dict, wanted: Mapping[str, Tensor], ignored: dict) -> None:
    """The fourth branch of an every-voxel stem is no part of released weights; a norm of weight 0 silences it."""
    added = [name for name in wanted if ".c4." in name and name not in tensors]
    for name in added:
        like = wanted[name]
        if name.endswith(".0.weight"):  # the convolution itself must not be zero, or it would have no gradient
            random = torch.Generator().manual_seed(0)
            tensors[name] = torch.randn(like.shape, generator=random) / like[0].numel() ** 0.5
        else:
            fill = torch.ones if name.endswith("running_var") else torch.zeros
            tensors[name] = fill(like.shape, dtype=like.dtype)
    if added:
        ignored["every-voxel branch c4"] = "not in the file, starts at zero"


def advice(tensors: Mapping[str, Tensor], variant: str) -> str:
    """Which variant the file looks like, by its blocks and widths."""
    blocks, channels = [], []
    for stage in range(1, 5):
        numbers = {int(m[1]) for k in tensors if (m := re.match(rf"encoder\.s{stage}\.(\d+)\.", k))}
        blocks.append(len(numbers))
        bias = tensors.get(f"encoder.s{stage}.0.dwconv.c1.0.bias")
        channels.append(0 if bias is None else len(bias))
    stem = tensors.get("encoder.s0.0.0.c1.0.bias")
    look = {"blocks": tuple(blocks), "channels": (0 if stem is None else len(stem), *channels)}
    fits = [name for name, shape in VARIANTS.items() if all(shape[k] == v for k, v in look.items())]
    if fits and fits[0] != variant:
        return f"its blocks and channels are those of variant {fits[0]!r}"
    return f"its blocks are {look['blocks']}, its channels {look['channels']}; give the whole, unchanged checkpoint"


def _choose(files: list[str]) -> list[str]:
    """All safetensors files of a repository, or else its one encoder or model file."""
    safe = [f for f in files if f.endswith(".safetensors") and "/" not in f]
    return safe or [f for f in ("pretrained_ViT.bin", "pytorch_model.bin") if f in files][:1]
