"""VISTA-3D's weights: a file of the user's, or a hub's repository where that is asked for, into MONAI's own network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput

if TYPE_CHECKING:
    import torch

RELEASED_WIDTH = 48  # encoder_embed_dim of the released weights
HUB_EXAMPLE = "nvidia/NV-Segment-CT"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def load_vista3d(weights: str | Path, profile: str = "quick") -> "torch.nn.Module":
    """Load VISTA-3D's weights into MONAI's own network, ``vista3d132``, ready to predict.

    Args:
        weights: path of ``model.pt`` or a ``.safetensors`` file, or in profile ``paper`` a repository of the model hub
            such as ``nvidia/NV-Segment-CT`` (``owner/name@revision`` fixes the revision).
        profile: quick, full or paper.

    Returns:
        ``monai.networks.nets.vista3d.VISTA3D`` on the CPU. Its width is the file's: 48 in the released weights.

    Raises:
        BadInput: no such file, no weights in it, a hub outside profile ``paper``, or tensors that don't fit: one
            sentence and a table of them.

    Source: vista3d132 and its arguments as in the MONAI bundle vista3d. The released weights have their own licence.
    """
    import torch
    from monai.networks.nets.vista3d import vista3d132

    path = _weights_file(str(weights), profile)
    tensors = _read_tensors(path)
    embedding = tensors.get("class_head.class_embeddings.weight")
    fits = embedding is not None and embedding.ndim == 2 and embedding.shape[1] % 8 == 0
    width = embedding.shape[1] if fits else RELEASED_WIDTH
    with torch.device("meta"):  # no memory and no time for random weights that the file replaces
        network = vista3d132(encoder_embed_dim=width, in_channels=1)
    _check_tensors(tensors, network.state_dict(), path.name, f"vista3d132(encoder_embed_dim={width}, in_channels=1)")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _weights_file(weights: str, profile: str) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?", weights)
    if not hub or path.suffix in SUFFIXES or path.exists():
        raise BadInput(
            f"there is no weights file {weights!r}; give the path of VISTA-3D's model.pt or model.safetensors"
        )
    if profile != "paper":
        raise BadInput(
            f"there is no file {weights!r}, and a model hub is asked only in profile paper;"
            " download its model.pt and give the path, or choose that profile"
        )
    return _from_hub(hub[1], hub[2])


def _from_hub(repository: str, revision: str | None) -> Path:
    """Fetch a repository's weights into the hub's own cache: safetensors before model.pt, never MONAI 1.3's."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision)
        fitting = [f for f in files if f.endswith((".safetensors", "model.pt")) and "1.3" not in f]
        if not fitting:
            raise BadInput(f"{repository} on the model hub holds no model.pt and no .safetensors; try {HUB_EXAMPLE}")
        chosen = min(fitting, key=lambda f: (not f.endswith(".safetensors"), f))
        return Path(huggingface_hub.hf_hub_download(repository, chosen, revision=revision))
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # the hub's own errors are kinds of these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{repository} can't be had from the model hub ({reason}); download its model.pt and give the path"
        ) from error


def _read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a weights file, float32, under the names that MONAI's network gives them."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        torch.serialization.pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise BadInput(
            f"{path.name} can't be read as weights ({type(error).__name__}): it is incomplete, or more than plain"
            " tensors; fetch it again"
        ) from error
    for key in ("model", "state_dict"):  # wrappings of training checkpoints
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise BadInput(f"{path.name} holds no tensors by name, and VISTA-3D's model.pt is expected")
    return {re.sub(r"^(module\.|network\.)+", "", k): v.float() for k, v in tensors.items()}  # wrappers' prefixes


def _is_zip(path: Path) -> bool:
    """Only the zipped form of torch.save can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _check_tensors(given: Mapping, wanted: Mapping, file: str, network: str) -> None:
    """Compare names and shapes; for the names of MONAI 1.3 the sentence says which file to take."""
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    differ = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    if not (missing or extra or differ):
        return
    advice = "give the weights of VISTA-3D's MONAI bundle, models/model.pt"
    if any(".mlp.lin1." in k for k in extra) and any(".mlp.linear1." in k for k in missing):
        advice = (
            "its layers have the names of MONAI 1.3 (mlp.lin1, which is mlp.linear1 since 1.4): take"
            f" vista3d_pretrained_model/model.pt of {HUB_EXAMPLE}, or the bundle's models/model.pt,"
            " not model_monai1.3.pt"
        )
    shapes = [f"{k} {tuple(given[k].shape)}, not {tuple(wanted[k].shape)}" for k in differ]
    rows = [_row("missing", missing), _row("not expected", extra), _row("another shape", shapes)]
    raise BadInput(f"{file} doesn't fit {network}; {advice}\n" + "\n".join(row for row in rows if row))


def _row(what: str, names: list[str], shown: int = 3) -> str:
    more = f" … and {len(names) - shown} more" if len(names) > shown else ""
    return f"  {what:<13} {len(names):>4}  {', '.join(names[:shown])}{more}" if names else ""
