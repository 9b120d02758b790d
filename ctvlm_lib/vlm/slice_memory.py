"""What slice attention knows of a batch: where the image stands, and what earlier steps of generation left."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ctvlm_lib.errors import BadInput


class Memory(DynamicLayer):
    """A layer more in the decoder's own cache, so that beams are reordered and repeated with it."""

    def keep(self, image: Tensor | None) -> Tensor:
        """Store image vectors ``(B, N, width)`` once, and give them at each later step (``image`` None)."""
        if image is not None:
            self.reset()
            self.update(image[:, None], image[:, None, :, :0])
        elif not self.is_initialized:
            raise BadInput(
                "the cache holds an image that slice attention hasn't seen; start generating after attach, from an"
                " empty cache"
            )
        return self.keys[:, 0]


class ImageMemory(Memory):
    """The image's own: it keeps its length when the cache is shortened."""

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing: words are taken back, never the image."""


def memory_in(cache: Cache, number: int, blocks: int, kind: type[Memory]) -> Memory:
    """The memory of block ``number``, behind the cache's layers for the decoder's own ``blocks``.

    Raises:
        BadInput: a cache of fixed length, which has no room for it.
    """
    if not isinstance(cache, DynamicCache):
        raise BadInput(
            f"slice attention keeps its part in a cache that grows, got {type(cache).__name__}; generate with"
            " transformers' DynamicCache, the default"
        )
    while len(cache.layers) < blocks:
        cache.layers.append(DynamicLayer())
    while len(cache.layers) <= blocks + number:
        cache.layers.append(kind())
    return cache.layers[blocks + number]


class Where:
    """Where the image stands in a batch of prompts; positions None says that there are only words.

    Attributes:
        count: N, image vectors a row.
        slices: ``(N,)``, slice of each; None without an image.
    """

    def __init__(self, positions: Tensor | None, attention_mask: Tensor | None, slices: Tensor | None):
        self.positions, self.mask, self.count, self.slices = positions, attention_mask, 0, None
        if positions is not None:
            self.count = _one_run(positions)
            self.slices = torch.arange(self.count, device=positions.device) if slices is None else slices
            if self.slices.shape != (self.count,) or int(self.slices.min()) < 0:
                raise BadInput(
                    f"slices is {tuple(self.slices.shape)} for {self.count} image vectors; give one whole number from"
                    " 0 up for each"
                )

    def image(self, batch: int, length: int, device: torch.device) -> Tensor:
        """bool ``(batch, length)``: image positions; what was generated is none, and beams repeat the rows."""
        return _fitted(self.positions, batch, length, False, device)

    def attended(self, batch: int, length: int, device: torch.device) -> Tensor:
        """bool ``(batch, length)``: what is no padding."""
        return _fitted(None if self.mask is None else self.mask != 0, batch, length, True, device)

    def slice_of(self, image: Tensor) -> Tensor:
        """Slice of each token, ``(batch, length)``; −1 at words."""
        if self.slices is None:
            return torch.full(image.shape, -1, device=image.device)
        number = (image.cumsum(dim=1) - 1).clamp(0)
        return self.slices.to(image.device)[number].masked_fill(~image, -1)


def _one_run(positions: Tensor) -> int:
    """How many image vectors each row holds."""
    if positions.ndim != 2 or positions.dtype != torch.bool:
        raise BadInput(f"positions must be bool (B, length), got {positions.dtype} {tuple(positions.shape)}")
    counts = positions.sum(dim=1)
    runs = (positions[:, 1:] & ~positions[:, :-1]).sum(dim=1) + positions[:, 0]
    if int(counts[0]) == 0 or bool((counts != counts[0]).any()) or bool((runs != 1).any()):
        raise BadInput(
            f"the rows hold {counts.tolist()} image vectors in {runs.tolist()} runs; give batches with one image a row,"
            " its vectors in one run"
        )
    return int(counts[0])


def _fitted(rows: Tensor | None, batch: int, length: int, beyond: bool, device: torch.device) -> Tensor:
    if rows is None:
        return torch.full((batch, length), beyond, device=device)
    if batch % len(rows) or length < rows.shape[1]:
        raise BadInput(
            f"the decoder reads {batch} rows of {length} tokens, and image_at was told of {tuple(rows.shape)}; call"
            " image_at for each batch, with the whole prompt"
        )
    rows = rows.to(device).repeat_interleave(batch // len(rows), dim=0)
    return functional.pad(rows, (0, length - rows.shape[1]), value=beyond)
