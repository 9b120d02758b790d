"""What a frozen encoder makes of volumes can be kept, and must not be given to a model with another encoder."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctvlm_lib.errors import BadInput


class Features(NamedTuple):
    """What a frozen encoder makes of volumes, to be kept and given in their place.

    Attributes:
        low: ``(B, n, C)``, the stage before the last.
        high: ``(B, m, C′)``, the last stage.
        source: id of the encoder that made them; "" where it isn't known, and then only shapes are checked.
    """

    low: Tensor
    high: Tensor
    source: str = ""

    def rows(self, places: Sequence[int]) -> "Features":
        """Those of some volumes, in this order; one may stand several times."""
        return Features(self.low[places], self.high[places], self.source)


class WeightsId:
    """A short name for a module's weights: equal weights, equal name, whatever device they are on."""

    def __init__(self):
        self._known: tuple[int, str] | None = None

    def __call__(self, module: nn.Module) -> str:
        """Hash names and values; what was computed stays valid until a tensor is replaced or written to."""
        tensors = dict(stored(module))
        state = hash(tuple((t.data_ptr(), t._version, t.dtype) for t in tensors.values()))
        if self._known is None or self._known[0] != state:
            digest = hashlib.sha256()
            for name, tensor in tensors.items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().double().numpy().tobytes())
            self._known = (state, digest.hexdigest()[:16])
        return self._known[1]


def stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of ``state_dict``, in its order; FSDP would take weights apart again if it were called."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}".lstrip("."), tensor


def refuse_nan(what: str, tensor: Tensor) -> None:
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        rows = bad.flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise BadInput(
            f"{what} hold {int(bad.sum())} values that are NaN or infinite, in row {rows[0]} first; look at that volume"
        )
