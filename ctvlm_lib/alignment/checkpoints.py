"""Aligned models on disk: :mod:`ctvlm_lib.checkpoints`, with what is needed to build the model again in the record."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.heads import Aligned, Pairing
from ctvlm_lib.errors import BadInput

FOLDER = checkpoints.FOLDER


def save(folder: str | Path, model: Aligned, record: Mapping) -> Path:
    """Write an aligned model, its weights rounded to 16 bits, as a folder that appears whole.

    Args:
        folder: e.g. ``data_samples/checkpoints/A``; its last part is the checkpoint's name.
        model: whose encoder has a transformers config.
        record: what made it, as JSON can hold it.
    """
    encoder = {"class": type(model.encoder).__name__} | model.encoder.config.to_diff_dict()
    pairings = {
        name: {"image_width": p.image.in_features, "text_width": p.text.in_features, "width": p.text.out_features,
               "loss": p.loss}
        for name, p in model.pairings.items()
    }  # fmt: skip
    built = {"model": {"encoder": encoder, "pairings": pairings}}
    return checkpoints.save(Path(folder).name, model.state_dict(), {**record, **built}, Path(folder).parent)


def load(folder: str | Path) -> tuple[Aligned, dict]:
    """Read an aligned model and its record.

    Args:
        folder: a path, or the name of a shipped checkpoint such as "A".

    Returns:
        The model in evaluation mode, frozen, in float32, and the record.

    Raises:
        BadInput: no such checkpoint, a damaged one, one whose weights aren't those of its record, one that isn't of an
            aligned model, or tensors that are missing, not expected, of another shape or not finite.
    """
    folder = Path(folder) if Path(folder).is_dir() else FOLDER / folder
    tensors, record = checkpoints.load(folder.name, folder.parent)
    if "model" not in record:
        raise BadInput(f"the checkpoint {folder.name} isn't of an aligned encoder; give one that pretraining made")
    try:
        model = _built(record["model"])
    except BadInput:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"the record of {folder.name} describes no model ({type(error).__name__}: {error}); restore it, or train"
            " again"
        ) from error
    check_tensors(tensors, model.state_dict(), folder.name)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), record


def check_tensors(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise BadInput with a table of tensors that don't fit a model."""
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    differ = [
        f"{k} {tuple(given[k].shape)}, not {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and given[k].shape != wanted[k].shape
    ]
    wild = [k for k in wanted if k in given and not torch.isfinite(given[k].float()).all()]
    found = {"missing": missing, "not expected": extra, "another shape": differ, "not finite": wild}
    if any(found.values()):
        rows = [f"  {what:<13} {len(keys):>4}  {', '.join(keys[:3])}" for what, keys in found.items() if keys]
        raise BadInput(f"the tensors of {name} don't fit the model that it describes\n" + "\n".join(rows))


def _built(parts: dict) -> nn.Module:
    from ctvlm_lib import encoder

    kinds = "DCFormer", "ViT3D"
    settings = dict(parts["encoder"])
    kind = settings.pop("class", None)
    if kind not in kinds:
        raise BadInput(f"the checkpoint describes an encoder {kind!r}; {', '.join(kinds)} can be built")
    model, config = getattr(encoder, kind), getattr(encoder, f"{kind}Config")  # by name: ViT3D imports MONAI, seconds
    return Aligned(
        model(config.from_dict(settings)), {name: Pairing(**sizes) for name, sizes in parts["pairings"].items()}
    )
