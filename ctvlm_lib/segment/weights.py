"""VISTA-3D's weights: a file of the user's, or a hub's repository where that is asked for, into MONAI's own network."""

from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput
from ctvlm_lib.weights import Fit, find, read_tensors

if TYPE_CHECKING:
    import torch

RELEASED_WIDTH = 48  # encoder_embed_dim of the released weights
HUB_EXAMPLE = "nvidia/NV-Segment-CT"
EXPECTED = "VISTA-3D's model.pt"


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

    path = find(str(weights), profile, f"{EXPECTED} or model.safetensors", _choose, HUB_EXAMPLE)
    tensors = {name: tensor.float() for name, tensor in read_tensors(path, EXPECTED).items()}
    embedding = tensors.get("class_head.class_embeddings.weight")
    fits = embedding is not None and embedding.ndim == 2 and embedding.shape[1] % 8 == 0
    width = embedding.shape[1] if fits else RELEASED_WIDTH
    with torch.device("meta"):  # no memory and no time for random weights that the file replaces
        network = vista3d132(encoder_embed_dim=width, in_channels=1)
    fit = Fit.of(tensors, network.state_dict())
    if not fit.exact:
        what = f"vista3d132(encoder_embed_dim={width}, in_channels=1)"
        raise BadInput(f"{path.name} doesn't fit {what}; {_advice(fit)}\n{fit.table(all_rows=False)}")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _choose(files: list[str]) -> list[str]:
    """safetensors before model.pt, never MONAI 1.3's."""
    fitting = [f for f in files if f.endswith((".safetensors", "model.pt")) and "1.3" not in f]
    return sorted(fitting, key=lambda f: (not f.endswith(".safetensors"), f))[:1]


def _advice(fit: Fit) -> str:
    """For the names of MONAI 1.3 the sentence says which file to take."""
    if any(".mlp.lin1." in k for k in fit.unexpected) and any(".mlp.linear1." in k for k in fit.missing):
        return (
            "its layers have the names of MONAI 1.3 (mlp.lin1, which is mlp.linear1 since 1.4): take"
            f" vista3d_pretrained_model/model.pt of {HUB_EXAMPLE}, or the bundle's models/model.pt,"
            " not model_monai1.3.pt"
        )
    return "give the weights of VISTA-3D's MONAI bundle, models/model.pt"
