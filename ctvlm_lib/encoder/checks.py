"""What an encoder refuses: volumes whose size or channels don't fit, and weights that aren't numbers."""

from collections.abc import Mapping

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from ctvlm_lib.errors import BadInput

NOT_A_MODEL = (  # what transformers raises on a damaged folder of a model, depending on where the damage is
    OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, SafetensorError, StrictDataclassError,
)  # fmt: skip


def check_volume(volume: Tensor, channels: int, multiple_of_dhw: tuple[int, int, int]) -> None:
    """Raise BadInput unless a tensor is ``(B, channels, D, H, W)`` with sides that the strides divide."""
    if not isinstance(volume, Tensor):
        raise BadInput(
            f"a volume is a tensor (B, {channels}, D, H, W), got a {type(volume).__name__}; an array becomes one with"
            " torch.from_numpy(array)"
        )
    if volume.ndim != 5:
        raise BadInput(
            f"a volume is (B, {channels}, D, H, W), got {tuple(volume.shape)}; a single one becomes that with"
            " volume[None, None]"
        )
    if volume.shape[1] != channels:
        advice = "use ctvlm_lib.encoder.inflate(encoder) for RGB" if channels == 1 else "repeat a grey volume 3 times"
        raise BadInput(f"the encoder reads {channels} channel(s), got {volume.shape[1]}; {advice}")
    size = tuple(volume.shape[2:])
    if not volume.is_floating_point():
        raise BadInput(f"a volume holds floating-point numbers, got {volume.dtype}; scale it with its recipe first")
    if any(n < m or n % m for n, m in zip(size, multiple_of_dhw, strict=True)):
        fits = tuple(max(1, round(n / m)) * m for n, m in zip(size, multiple_of_dhw, strict=True))
        raise BadInput(
            f"a volume of {_text(size)} voxels (D×H×W) doesn't fit: its sides must be multiples of"
            f" {_text(multiple_of_dhw)}; the nearest size that fits is {_text(fits)}"
        )


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise BadInput if a tensor holds NaN or infinity, naming the first few."""
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise BadInput(
            f"{where} holds weights that are not finite ({', '.join(bad[:3])}{more}): its training went wrong or the"
            " file is damaged; take another checkpoint"
        )


def _text(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
