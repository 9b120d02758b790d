"""Slice attention (SSA, MSSA): text reads the image vectors once more in front of a decoder's first blocks.

The contour paper prints two modules and leaves much open. What is decided here, and why:

- **Who is updated.** In equation (2) V asks and T answers, so image positions would take in words. In a decoder the
  image comes first: a word at position t would then see, through the image, every later word. :func:`slice_attention`
  computes (2) for any two sequences; inside a decoder the words ask and the image answers: SSA(T, V).
- **Where.** Block i reads x + SSA(x at text, x at image), x being what block i was about to read; i < k. k isn't given.
- **Widths.** Both streams have the decoder's width there; (2) has no weights.
- **Who sees whom (MSSA).** A word sees the image and the words up to itself; an image vector sees all image vectors and
  no word behind the image's beginning. So no word learns of a later one. Where the decoder is given a mask of its own
  (rows that pack many questions behind one image), words see what that mask lets them see.
- **R** is added between two image vectors, by the difference of their slices; words have no slice and get none.
- **Slices.** "Slice embeddings from DCFormer" are, behind the projector, image vectors. Where the projector keeps the
  tokens' places, as the merging one and the perceptrons do, each vector has the slice in the middle of what it covers,
  and R is a bias by the distance between slices: ``by="slice"``, see :func:`slices_of`. A mixer's vectors have no slice
  left, as it mixes tokens; there, and by default (``by="vector"``, by which arm ``-MSSA`` was trained), each vector
  counts as a slice of its own, and R is a bias by the distance between vectors.
- **Starting.** W_O starts at zero, so that MSSA starts as nothing. SSA has no weight to do that with: ``gate=True``,
  ours, multiplies it by a number that starts at zero.

Source: contour.txt §3.2, equations (2) to (4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.projector_streams import Grid, Projector
from ctvlm_lib.vlm.slice_heads import MultiHeadSliceAttention, check_form, seen_by, slice_attention
from ctvlm_lib.vlm.slice_memory import ImageMemory, Memory, Where, memory_in

KINDS = ("SSA", "MSSA")
BY = ("vector", "slice")  # what R counts the distance in
SLICES = 256  # S of R, unless more are asked for


class SliceAttention(nn.Module):
    """Hooks in front of a decoder's first blocks; made by :func:`attach`.

    The decoder's own tensors and code stay as they are; the weights of MSSA lie in this module, which the caller adds
    to what is trained and saved. Tell it where the image stands with :meth:`image_at` before the decoder runs.

    Attributes:
        enabled: False leaves the decoder as it was, bit for bit.
        blocks: the weights, one module a block.
    """

    def __init__(self, layers: Sequence[nn.Module], hidden_size: int, kind: str, first: int, **options):
        super().__init__()
        self.kind, self.form, self.enabled, self.total = kind, options["form"], True, len(layers)
        self._memory = ImageMemory if kind == "SSA" else Memory
        self.blocks = nn.ModuleList(_Block(hidden_size, kind, **options) for _ in range(first))
        self._where: Where | None = None
        self._hooks: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._hook(number), with_kwargs=True)
            for number, layer in enumerate(layers[:first])
        ]

    def image_at(
        self, positions: Tensor | None, attention_mask: Tensor | None = None, slices: Tensor | None = None
    ) -> "SliceAttention":
        """Say where the image vectors stand in the sequences that come next, until it is said anew.

        While words are generated with a cache, positions are those of the prompt; all later ones are words.

        Args:
            positions: bool ``(B, length)``; one run of as many true positions in every row. None: only words.
            attention_mask: ``(B, length)``, 0 at padding; None if nothing is padded.
            slices: ``(N,)`` whole numbers, the slice of each image vector; None counts each vector as one.

        Returns:
            the module itself.

        Raises:
            BadInput: rows with different numbers of image vectors or with gaps, more slices than MSSA has a bias for.
        """
        self._where = Where(positions, attention_mask, slices)
        for block in self.blocks:
            block.check_slices(self._where)
        return self

    def detach(self) -> None:
        """Take the hooks off; the decoder is as it was before :func:`attach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, number: int):
        def before(layer: nn.Module, args: tuple, kwargs: dict):
            if not self.enabled:
                return None
            if self._where is None:
                raise BadInput(
                    "slice attention doesn't know where the image stands; call image_at(positions) before the decoder"
                    " runs, or image_at(None) for words alone"
                )
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else cache.get_seq_length(number)
            memory = None if cache is None else memory_in(cache, number, self.total, self._memory)
            mask = kwargs.get("attention_mask")
            hidden = hidden + self.blocks[number](hidden, self._where, past, memory, mask)
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return before


def slices_of(
    projector: nn.Module, low_grid: Grid, high_grid: Grid, depth_vox: int, by: str = "slice"
) -> Tensor | None:
    """The slice of each image vector, for :meth:`SliceAttention.image_at`.

    Vectors that cover the same depth have the same slice, those of the coarse stream the one in their own middle.

    Args:
        projector: that makes the vectors.
        low_grid, high_grid: (D, H, W) of the encoder's two streams.
        depth_vox: slices of the volume that the encoder reads.
        by: "slice"; or "vector" for none.

    Returns:
        int64 ``(vectors,)`` in 0 … depth_vox − 1; None where each vector counts as a slice of its own: by "vector", or
        behind a projector that keeps no places, such as a mixer.

    Raises:
        BadInput: no such way to count.
    """
    if by not in BY:
        raise BadInput(f"by is {by!r}; choose one of {', '.join(map(repr, BY))}")
    depths = projector.depths(low_grid, high_grid) if by == "slice" and isinstance(projector, Projector) else None
    return None if depths is None else (depths * depth_vox + 1e-6).long()  # a whole number may lie below itself


def attach(
    decoder: nn.Module,
    kind: str = "SSA",
    first: int = 2,
    form: str = "as meant",
    heads: int = 4,
    slices: int = SLICES,
    gate: bool = False,
    seed: int = 0,
) -> SliceAttention:
    """Put slice attention in front of a decoder's first blocks; its source and its tensors aren't touched.

    Args:
        decoder: a causal language model of transformers whose blocks lie in one list (Qwen2, Llama and their kin), with
            or without LoRA adapters.
        kind: "SSA", equation (2), or "MSSA", equations (3) and (4).
        first: k, how many blocks.
        form: "as meant": softmax of the scores over √d, heads side by side; or "as printed": no softmax, scores times
            √d, heads multiplied with each other.
        heads: h, of MSSA.
        slices: S; MSSA's bias R has 2S − 1 values a head.
        gate: multiply SSA by a learned number that starts at zero; ours.
        seed: of MSSA's weights.

    Returns:
        the module that holds the weights, with :meth:`SliceAttention.detach`.

    Raises:
        BadInput: no such kind or form, more blocks than there are, a width that the heads can't share.
    """
    check_form(form)
    layers, width = _layers(decoder)
    if gate and kind == "MSSA":
        raise BadInput("gate is for SSA; MSSA starts as nothing by its W_O, which is zero at first")
    if kind not in KINDS:
        raise BadInput(f"kind is {kind!r}; choose one of {', '.join(map(repr, KINDS))}")
    if not 1 <= first <= len(layers):
        raise BadInput(f"first is {first} and the decoder has {len(layers)} blocks; choose 1 to {len(layers)}")
    options = {"form": form, "heads": heads, "slices": slices, "gate": gate}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = SliceAttention(layers, width, kind, first, **options)
    like = next(decoder.parameters())
    return made.to(like.device, like.dtype)


class _Block(nn.Module):
    """What is added in front of one block."""

    def __init__(self, width: int, kind: str, form: str, heads: int, slices: int, gate: bool):
        super().__init__()
        self.form = form
        self.heads = MultiHeadSliceAttention(width, heads, slices, form) if kind == "MSSA" else None
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

    def check_slices(self, where: Where) -> None:
        """Raise BadInput unless R has a value for each pair."""
        if self.heads is not None and where.slices is not None and int(where.slices.max()) >= self.heads.slices:
            raise BadInput(
                f"slice {int(where.slices.max())} has no bias: R was made for {self.heads.slices} slices; attach with"
                f" slices={int(where.slices.max()) + 1}"
            )

    def forward(
        self, hidden: Tensor, where: Where, past: int, memory: Memory | None, mask: Tensor | None = None
    ) -> Tensor:
        """The addition to ``hidden`` ``(B, n, width)``, in front of which ``past`` tokens lie in the cache."""
        batch, length = len(hidden), past + hidden.shape[1]
        image = where.image(batch, length, hidden.device)
        if self.heads is None:
            return self._ssa(hidden, image, where.count, past, memory)
        attended = where.attended(batch, length, hidden.device)
        seen = seen_by(image, attended, past)
        if mask is not None and mask.ndim == 4:  # the decoder's own: (B, 1, n, m), bool or 0 and −∞
            free = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -1
            seen = seen & (free | (image[:, past:, None] & image[:, None]))
        return self.heads(hidden, seen, where.slice_of(image), memory)

    def _ssa(self, hidden: Tensor, image: Tensor, count: int, past: int, memory: Memory | None) -> Tensor:
        if not count:
            return torch.zeros_like(hidden)
        in_cache = int(image[:, :past].sum())
        if in_cache not in (0, image.sum()):
            raise BadInput("the cache ends within an image; give the decoder the whole prompt in one piece")
        vectors = None if in_cache else hidden[image[:, past:]].unflatten(0, (len(hidden), count))  # (B, N, width)
        if memory is not None:
            vectors = memory.keep(vectors)
        behind = (image.cumsum(dim=1) == count)[:, past:] & ~image[:, past:]  # words behind the image
        added = slice_attention(hidden, vectors, self.form) * behind[..., None]
        return added if self.gate is None else self.gate * added


def _layers(decoder: nn.Module) -> tuple[nn.ModuleList, int]:
    """The decoder's blocks and its width."""
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    layers = getattr(base.get_decoder(), "layers", None) if hasattr(base, "get_decoder") else None
    if not isinstance(layers, nn.ModuleList):
        raise BadInput(
            f"{type(base).__name__} has no list of blocks at get_decoder().layers; give a causal language model of"
            " transformers, such as Qwen2's or Llama's"
        )
    return layers, base.config.hidden_size
