"""An encoder's stages as token sequences of one length, and which stage each decoder layer gets.

    stage (of 6)      1 … r − 1                   r                r + 1 … 6
    equation (4)      pooled to stage r's grid    kept             flattened, zeros behind its tokens up to K
    decoder layers    the last ones               …                the first ones: stage 6 goes to layer 1

Stages and layers are counted from 1, as the paper does. Left open by it, and decided here:

- **More layers than stages.** Equation (5) gives layer j stage N − j + 1, so with 8 layers and 6 stages nothing is
  said of layers 7 and 8: see :func:`layer_map`.
- **Zeros.** Equation (5) projects what is padded, so once biases have learnt, every padded position gets one and the
  same vector. The released code projects first and pads then, so that they stay zero: ``masked`` of
  :class:`StageProjection`.
- **Places.** Zeros go behind a deeper stage's own tokens, so its k-th token meets the reference's k-th, which stands
  for another part of the volume.

Sources: uvlm.txt §2.2, equations (4) and (5); released code of U-VLM (5d7fde9), networks/uvlm.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.errors import BadInput

AS_PRINTED, SPREAD, PER_STAGE, INPUT_ONLY = LAYER_MAPS = ("as printed", "spread", "layers per stage", "input only")


def stage_number(stage: int, stages: int) -> int:
    """A stage counted from 1; negative ones count from the last, which is −1.

    Raises:
        BadInput: there is no such stage.
    """
    if not 1 <= abs(stage) <= stages:
        raise BadInput(
            f"stage {stage} isn't there: the encoder has {stages}, counted from 1, the finest, or from −1, the deepest"
        )
    return stage if stage > 0 else stages + 1 + stage


def pool(features: Sequence[Tensor], reference: int = -1) -> list[Tensor]:
    """Average each stage before the reference over the reference's cells; the others stay as they are.

    What it gives is small enough to be kept, and :func:`align` makes the same of it as of ``features``.

    Args:
        features: ``(B, C_i, D_i, H_i, W_i)``, finest first.
        reference: stage whose grid counts, from 1; −1 is the last.

    Returns:
        as many maps; those up to the reference have its (D, H, W).

    Raises:
        BadInput: no such reference, maps that don't fit each other or don't go from fine to coarse.
    """
    number = stage_number(reference, len(features))
    _check(features, number)
    grid = features[number - 1].shape[2:]
    finer = [functional.adaptive_avg_pool3d(map_, grid) for map_ in features[: number - 1]]
    return [*finer, *features[number - 1 :]]


def align(features: Sequence[Tensor], reference: int = -1) -> list[Tensor]:
    """Make token sequences of one length K, the reference's number of cells.

    Args:
        features: ``(B, C_i, D_i, H_i, W_i)``, finest first.
        reference: stage r, counted from 1. −1, the last, is the released code's (384 tokens at the paper's size); the
            text says "typically r = N − 1", here −2 (3072).

    Returns:
        ``(B, K, C_i)`` for each stage; tokens in the order of (D, H, W), W fastest.

    Raises:
        BadInput: as :func:`pool`; a deeper stage with more than K tokens.

    Source: uvlm.txt §2.2, equation (4).
    """
    pooled = pool(features, reference)
    tokens = [map_.flatten(2).mT for map_ in pooled]  # (B, own tokens, C)
    length = tokens[stage_number(reference, len(features)) - 1].shape[1]
    return [functional.pad(one, (0, 0, 0, length - one.shape[1])) for one in tokens]


def own_tokens(features: Sequence[Tensor], reference: int = -1) -> list[int]:
    """How many of the K tokens that :func:`align` gives are each stage's own; zeros come behind them."""
    number = stage_number(reference, len(features))
    _check(features, number)
    length = features[number - 1][0, 0].numel()
    return [length if stage <= number else map_[0, 0].numel() for stage, map_ in enumerate(features, start=1)]


def layer_map(stages: int | Sequence[int], layers: int, kind: str = SPREAD) -> list[int | None]:
    """Say which stage each decoder layer gets: the deepest goes to the first.

    Args:
        stages: N, for all of them; or the stages that are injected, counted from 1.
        layers: of the decoder.
        kind: with n stages,
            "as printed": equation (5), one a layer; layers after the n-th get none;
            "spread", ours: each stage serves consecutive layers, as evenly as can be, the deepest the longer where it
            doesn't come out even (6 stages, 8 layers: 6 6 5 5 4 3 2 1);
            "layers per stage": the released code's, layers = n · k, each stage serves k layers;
            "input only": no layer gets any; the decoder reads the reference stage at its input, as other models do.

    Returns:
        one entry a layer, None where nothing is injected.

    Raises:
        BadInput: no such kind, stages that aren't there or stand twice, fewer layers than stages, for "layers per
            stage" a number of layers that isn't a multiple.

    Source: uvlm.txt §2.2, equation (5); released code of U-VLM (5d7fde9).
    """
    chosen = _deepest_first(stages)
    if kind not in LAYER_MAPS:
        raise BadInput(f"the layer map is {kind!r}; choose one of {', '.join(map(repr, LAYER_MAPS))}")
    if kind == INPUT_ONLY:
        return [None] * layers
    if layers < len(chosen):
        raise BadInput(
            f"{len(chosen)} stages are injected and the decoder has {layers} layers; choose at most {layers} stages"
        )
    if kind == AS_PRINTED:
        return [*chosen, *[None] * (layers - len(chosen))]
    each, more = divmod(layers, len(chosen))
    if kind == PER_STAGE and more:
        raise BadInput(
            f"{layers} layers aren't a multiple of {len(chosen)} stages; the released code builds stages · k layers, so"
            f" take {each * len(chosen)} layers, other stages, or {SPREAD!r}"
        )
    return [stage for place, stage in enumerate(chosen) for _ in range(each + (place < more))]


class StageProjection(nn.Module):
    """Proj of equation (5), as released: LN(C) → Linear(C → inner) → GELU → Linear(inner → width) → LN(width).

    Args:
        channels: C, of the stage.
        width: D, of the decoder.
        inner: width between the two; None is 2·width, the released 1024 for 512.
        masked: positions that :func:`align` filled with zeros stay zero behind the projection; else they get what
            norms and biases make of zeros.
    """

    def __init__(self, channels: int, width: int, inner: int | None = None, masked: bool = True):
        super().__init__()
        self.masked = masked
        inner = 2 * width if inner is None else inner
        if min(channels, width, inner) < 1:
            raise BadInput(f"a projection from {channels} over {inner} to {width} channels; give 1 or more of each")
        self.norm = nn.LayerNorm(channels)
        self.inner = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, width)
        self.out_norm = nn.LayerNorm(width, eps=1e-6)
        for linear in (self.inner, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, own: int) -> Tensor:
        """Project ``(B, K, C)``, of which the first ``own`` are the stage's, to ``(B, K, width)``."""
        kept = tokens[:, :own] if self.masked else tokens
        projected = self.out_norm(self.out(functional.gelu(self.inner(self.norm(kept)))))
        return functional.pad(projected, (0, 0, 0, tokens.shape[1] - kept.shape[1]))


def _deepest_first(stages: int | Sequence[int]) -> list[int]:
    chosen = list(range(1, stages + 1)) if isinstance(stages, int) else [int(stage) for stage in stages]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 1:
        raise BadInput(f"stages is {stages!r}; give how many there are, or different ones, counted from 1")
    return sorted(chosen, reverse=True)


def _check(features: Sequence[Tensor], reference: int) -> None:
    """Raise BadInput unless these are maps of one batch, from fine to coarse."""
    shapes = [tuple(map_.shape) for map_ in features]
    if any(len(shape) != 5 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise BadInput(f"features are {shapes}; give one map (B, C, D, H, W) a stage, all of the same volumes")
    grid = shapes[reference - 1][2:]
    length = torch.Size(grid).numel()
    for stage, shape in enumerate(shapes, start=1):
        if stage < reference and any(n < cell for n, cell in zip(shape[2:], grid, strict=True)):
            raise BadInput(
                f"stage {stage} has {shape[2:]} cells and the reference, stage {reference}, {grid}; give the finest"
                " stage first"
            )
        if stage > reference and torch.Size(shape[2:]).numel() > length:
            raise BadInput(
                f"stage {stage} has {torch.Size(shape[2:]).numel()} tokens and the reference, stage {reference}, only"
                f" {length}; give the finest stage first, or choose a later reference"
            )
