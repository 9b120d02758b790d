"""What a frozen encoder makes of each picture, computed once and kept in 16 bits: 76 kB a picture of the cohort.

A step of the decoder's training then costs nothing for the encoder, and decoders, seeds and learning rates share what
was computed. A picture that many questions are about is kept once; without a prompt that is one a patient.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.model import CtvlmModel

_TENSORS = ("low", "low_scale", "high", "high_scale")


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Kept features.

    Attributes:
        keys: name of each picture.
        low, low_scale: float16 ``(n, tokens, channels)`` and float32 ``(n, tokens, 1)``; their product is the encoder's
            stage before the last.
        high, high_scale: likewise, its last stage.
        source: id of the encoder that made them; a model with another one refuses them.
    """

    keys: tuple[str, ...]
    low: Tensor
    low_scale: Tensor
    high: Tensor
    high_scale: Tensor
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {key: k for k, key in enumerate(self.keys)})
        if not len(self._place) == len(self.keys) == len(self.low) == len(self.high):
            raise BadInput(
                f"{len(self._place)} different names, {len(self.low)} low and {len(self.high)} high streams were given;"
                " give one of each for every picture"
            )

    @classmethod
    def of(
        cls,
        model: CtvlmModel,
        keys: Sequence[str],
        picture_of: Callable[[str], np.ndarray],
        *,
        batch: int = 24,
        progress: Callable[[int, int], None] | None = None,
    ) -> "FeatureCache":
        """Encode pictures.

        Args:
            model: whose encoder is frozen, see :meth:`CtvlmModel.freeze`.
            keys: names of the pictures; a name that stands twice is encoded once.
            picture_of: name → float32 ``(channels, D, H, W)`` in −1…1, called once for each.
            batch: pictures at a time.
            progress: called with (pictures, of how many).

        Raises:
            BadInput: no pictures, or an encoder that may still change.
        """
        keys = tuple(dict.fromkeys(keys))
        if not keys:
            raise BadInput("there are no pictures to encode; give the name of at least one")
        streams = model.config.streams()
        low, high = (torch.empty(len(keys), *size, dtype=torch.float16) for size in streams)
        scales = [torch.empty(len(keys), tokens, 1) for tokens, _ in streams]
        source, device = "", next(model.encoder.parameters()).device
        for start in range(0, len(keys), batch):
            some = slice(start, start + batch)
            pictures = torch.from_numpy(np.stack([picture_of(key) for key in keys[some]])).to(device)
            with torch.inference_mode():
                found = model.image_features(pictures)
            source = found.source
            for kept, scale, stream in zip((low, high), scales, found[:2], strict=True):
                kept[some], scale[some] = _in_16_bits(stream.cpu())
            if progress:
                progress(min(start + batch, len(keys)), len(keys))
        if not source:
            raise BadInput("the encoder may still learn, so what it gives can't be kept; freeze it with model.freeze()")
        return cls(keys, low, scales[0], high, scales[1], source)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def take(self, keys: Sequence[str], device: torch.device | str = "cpu") -> Features:
        """Features of some pictures in float32, in the order of the names; one may stand several times.

        Raises:
            BadInput: a picture that isn't kept.
        """
        lost = [key for key in keys if key not in self._place]
        if lost:
            raise BadInput(f"{lost[0]} isn't among the {len(self)} kept pictures; encode it, too")
        rows = torch.tensor([self._place[key] for key in keys])
        low, high = self.low[rows] * self.low_scale[rows], self.high[rows] * self.high_scale[rows]  # float32
        return Features(low.to(device), high.to(device), self.source)

    def save(self, path: str | Path) -> Path:
        """Write the features as one safetensors file, whole or not at all."""
        about = {"keys": json.dumps(self.keys), "source": self.source}
        with atomic_path(path) as partial:
            save_file({name: getattr(self, name) for name in _TENSORS}, partial, metadata=about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "FeatureCache":
        """Read what :meth:`save` wrote.

        Raises:
            BadInput: no such file, or a damaged one.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                tensors = [file.get_tensor(name) for name in _TENSORS]
                return cls(tuple(json.loads(about["keys"])), *tensors, about["source"])
        except (OSError, SafetensorError, KeyError, TypeError, *NOT_JSON) as error:
            raise BadInput(
                f"{path.name} can't be read as features ({type(error).__name__}); compute them again"
            ) from None


def _in_16_bits(stream: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers between −1 and 1, and a power of two for each token: the product rounds as float16 does, at any size."""
    _, exponent = torch.frexp(stream.float().abs().amax(dim=2, keepdim=True))
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return (stream.float() / scale).half(), scale
