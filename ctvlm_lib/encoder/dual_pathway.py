"""MedVista3D's image encoder: one vision transformer that reads a whole volume, and single regions of it.

The global pathway sends all patches through all blocks. The local pathway takes the tokens of one region out, before a
block of choice, and sends only these, with the class token, through the remaining blocks: they see nothing else there.
What of a region lies in which token is told by masks that were pooled to the patch grid (:func:`pooled_masks`).

What the paper leaves open, and what is decided here:

- *Patches*: their size isn't printed; a config says it. Their embedding is one linear layer, as in ViT; or it reads the
  tokens of another encoder (``stem="tokens"``), so that small arms can be compared in minutes.
- *Where tokens are taken*: §3.1 takes them "from p_i", the patch embeddings, and sends them through the last block;
  §4.4 pools "before the last transformer block". ``pooled_before`` counts from 1 and the tokens go through that block
  and all after it; ``skip_to_last`` sends them straight to the last, so that (1, True) is §3.1 to the letter.
- *The local vector* is the class token of Figure 4, or the mean of the region's tokens (``local_vector``).
- *A region that fills no token up to the threshold* takes its fullest one (``empty="fullest"``), or isn't there.
"""

import math

import torch
from torch import Tensor, nn

from ctvlm_lib.encoder.vit import ViT3D, ViT3DConfig
from ctvlm_lib.errors import BadInput

LOCAL_VECTORS = ("class token", "mean")
STEMS = ("linear", "tokens")
EMPTY = ("fullest", "missing")

DUAL_VARIANTS: dict[str, dict] = {
    # MedVista3D-ViT: 96×320×320, 768 wide, 12 blocks; the patch is ours, 8×16×16 divides the volume into 4,800 tokens
    "medvista3d": {"size_dhw_vox": (96, 320, 320), "patch_dhw_vox": (8, 16, 16), "stem": "linear"},
    # ours, for the cohort's 32×64×64 voxels: 8×8×8 tokens, those of the frozen DCFormer "A"
    "phantom": {
        "size_dhw_vox": (32, 64, 64), "patch_dhw_vox": (4, 8, 8), "pool_dhw": (4, 2, 2),
        "hidden_size": 64, "mlp_size": 128, "layers": 3, "heads": 2, "stem": "tokens", "token_width": 64,
    },
}  # fmt: skip


def pooled_masks(share: Tensor, threshold: float = 0.5, empty: str = "fullest") -> Tensor:
    """Which tokens belong to each region.

    Args:
        share: float ``(…, tokens)``: of each token's voxels those in the region, 0…1.
        threshold: a token belongs to a region from this share on, MedVista3D's 0.5; 0 takes any overlap, as fVLM does.
        empty: what a region gets that fills no token so far: "fullest", its fullest token, or "missing", none.

    Returns:
        bool ``(…, tokens)``. A region without a voxel has no token either way.

    Raises:
        BadInput: a threshold outside 0…1 or an unknown ``empty``.

    Source: medvista3d.txt §3.1; fVLM's released code (d768ec1) for any overlap.
    """
    if not 0 <= threshold <= 1:
        raise BadInput(f"the threshold is a share of a token's voxels, 0 to 1, got {threshold:g}")
    if empty not in EMPTY:
        raise BadInput(f"empty is {empty!r}; choose one of {', '.join(EMPTY)}")
    top = share.amax(dim=-1, keepdim=True)
    least = torch.minimum(top, torch.full_like(top, threshold)) if empty == "fullest" else threshold
    return (share >= least) & (share > 0)


def boxed_masks(tokens_of: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Each region's bounding box on the patch grid, in place of its mask: local alignment without mask pooling.

    Args:
        tokens_of: bool ``(…, tokens)`` of :func:`pooled_masks`.
        grid: (D, H, W) of the tokens.

    Returns:
        bool ``(…, tokens)``; a region without a token still has none.
    """
    volume = tokens_of.unflatten(-1, grid)
    box = torch.ones_like(volume)
    for axis in (-3, -2, -1):
        others = tuple(a for a in (-3, -2, -1) if a != axis)
        along = volume.any(dim=others[0], keepdim=True).any(dim=others[1], keepdim=True)  # a slab of one cell thick
        first = along.int().cummax(dim=axis).values.bool()  # true from the region's first cell on
        last = along.int().flip(axis).cummax(dim=axis).values.flip(axis).bool()
        box &= first & last
    return box.flatten(-3)


class DualPathwayConfig(ViT3DConfig):
    """Shape of a dual-pathway transformer; those of :class:`~ctvlm_lib.encoder.vit.ViT3DConfig`, and:

    Args:
        pooled_before: number of the block, from 1, before which a region's tokens are taken; 0 is the last.
        skip_to_last: the tokens go from there straight to the last block.
        local_vector: "class token" or "mean".
        stem: "linear", one layer on each patch of a volume; or "tokens": it reads another encoder's tokens, one a
            place of the patch grid, instead of a volume.
        token_width: channels of those tokens.

    Raises:
        BadInput: a block that isn't there, or a value none of the above.
    """

    model_type = "ctvlm_dual_pathway"

    def __init__(
        self,
        pooled_before: int = 0,
        skip_to_last: bool = False,
        local_vector: str = "class token",
        stem: str = "linear",
        token_width: int = 0,
        **others,
    ):
        super().__init__(**others)
        for what, value, known in (("local_vector", local_vector, LOCAL_VECTORS), ("stem", stem, STEMS)):
            if value not in known:
                raise BadInput(f"{what} is {value!r}; choose one of {', '.join(known)}")
        if not 0 <= pooled_before <= self.layers:
            raise BadInput(f"regions can be pooled before block 1 to {self.layers} (0: the last), got {pooled_before}")
        self.pooled_before, self.skip_to_last = pooled_before, skip_to_last
        self.local_vector, self.stem, self.token_width = local_vector, stem, token_width
        if (stem == "tokens") != (token_width > 0):
            raise BadInput(f"stem='tokens' needs token_width, and only it; got {stem!r} and {token_width}")

    def local_blocks(self) -> range:
        """Indices, from 0, of the blocks that a region's tokens go through by themselves."""
        first = (self.pooled_before or self.layers) - 1
        return range(self.layers - 1, self.layers) if self.skip_to_last else range(first, self.layers)


class DualPathway(ViT3D):
    """A 3-D vision transformer with a local pathway through its last blocks.

    ``encode`` is the global pathway, as every encoder here has it; :meth:`both` gives the regions' vectors as well.

    Source: medvista3d.txt §3.1, "Dual-pathway transformer", and table 5.
    """

    config_class = DualPathwayConfig

    def __init__(self, config: DualPathwayConfig):
        super().__init__(config)
        if config.stem == "tokens":
            tokens = math.prod(self.grids(config.size_dhw_vox)[0])
            self.patch_embedding = TokenEmbedding(tokens, config.token_width, config.hidden_size)
            self.post_init()

    def both(self, volume: Tensor, tokens_of: Tensor) -> tuple[Tensor, Tensor]:
        """Encode volumes and regions of them.

        Args:
            volume: ``(B, in_channels, D, H, W)``, or with ``stem="tokens"`` ``(B, tokens, token_width)``.
            tokens_of: bool ``(B, R, tokens)`` of :func:`pooled_masks`; a region without a token gives zeros.

        Returns:
            the volumes' vectors ``(B, hidden_size)``, the regions' ``(B, R, hidden_size)``.

        Raises:
            BadInput: masks that don't fit the patch grid.
        """
        self.check(volume)
        start = (self.config.pooled_before or self.config.layers) - 1
        x, taken = self._embedded(volume), None
        if tokens_of.shape[0] != len(x) or tokens_of.shape[-1] != x.shape[1] - 1:
            raise BadInput(
                f"masks of regions are (B, R, tokens) = ({len(x)}, R, {x.shape[1] - 1}), got {tuple(tokens_of.shape)};"
                " pool them to this encoder's patch grid with ctvlm_lib.alignment.tokens.shares"
            )
        for number, block in enumerate(self.blocks):
            taken = x if number == start else taken
            x = block(x)
        return self.norm(x)[:, 0], self.regions(taken, tokens_of)

    def regions(self, x: Tensor, tokens_of: Tensor) -> Tensor:
        """Send each region's tokens through the local blocks by themselves.

        Args:
            x: ``(B, 1 + tokens, hidden_size)``: the sequence that the tokens are taken from, its class token first.
            tokens_of: bool ``(B, R, tokens)``.

        Returns:
            ``(B, R, hidden_size)``, zeros where a region has no token.
        """
        there = tokens_of.any(dim=-1)
        picture, region = torch.nonzero(there, as_tuple=True)
        out = x.new_zeros(*there.shape, x.shape[-1])
        if not len(picture):
            return out
        keep, order = tokens_of[picture, region].sort(dim=-1, descending=True, stable=True)
        longest = int(keep.sum(dim=-1).max())
        keep, order = keep[:, :longest], order[:, :longest]  # rows × longest, padded
        local = torch.cat([x[picture, :1], x[picture[:, None], order + 1]], dim=1)
        keep = torch.cat([torch.ones_like(keep[:, :1]), keep], dim=1)
        for number in self.config.local_blocks():
            block = self.blocks[number]
            local = local + block.attn(block.norm1(local), attn_mask=keep[:, None, None, :])
            local = local + block.mlp(block.norm2(local))
        local = self.norm(local)
        if self.config.local_vector == "class token":
            vectors = local[:, 0]
        else:
            weight = keep[:, 1:, None].to(local.dtype)
            vectors = (local[:, 1:] * weight).sum(dim=1) / weight.sum(dim=1)
        return out.to(vectors.dtype).index_put((picture, region), vectors)

    @torch.inference_mode()
    def attention(self, volume: Tensor) -> Tensor:
        """How the global class token's attention in the last block is shared out, mean over the heads (Figure 4).

        Args:
            volume: as for :meth:`both`.

        Returns:
            ``(B, 1 + tokens)``, adds up to 1; first its share of the class token itself.
        """
        self.check(volume)
        x = self._embedded(volume)
        for block in self.blocks[:-1]:
            x = block(x)
        layer = self.blocks[-1].attn
        query, key, _ = layer.input_rearrange(layer.qkv(self.blocks[-1].norm1(x)))  # (B, heads, 1 + tokens, channels)
        return (query[:, :, :1] @ key.mT * layer.scale).softmax(dim=-1).mean(dim=1)[:, 0]

    def check(self, volume: Tensor) -> None:
        """Raise BadInput unless this is a volume, or tokens, of the one size that the positions are made for."""
        if self.config.stem != "tokens":
            super().check(volume)
            return
        wanted = (math.prod(self.grids(self.config.size_dhw_vox)[0]), self.config.token_width)
        if volume.ndim != 3 or tuple(volume.shape[1:]) != wanted:
            raise BadInput(
                f"this transformer reads another encoder's tokens (B, {wanted[0]}, {wanted[1]}), got"
                f" {tuple(volume.shape)}; encode the volume with that one first"
            )

    def _embedded(self, volume: Tensor) -> Tensor:
        """The class token and the patches, with their positions: ``(B, 1 + tokens, hidden_size)``."""
        x = self.patch_embedding(volume)
        return torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)


class TokenEmbedding(nn.Module):
    """Another encoder's tokens in place of patches: normalised, brought to the width, with a position each."""

    def __init__(self, tokens: int, width: int, hidden_size: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, hidden_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions as MONAI's patch embedding begins with; the layers have PyTorch's own."""
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, tokens, width)`` → ``(B, tokens, hidden_size)``."""
        return self.linear(self.norm(tokens)) + self.position_embeddings


def dual_pathway(variant: str = "medvista3d", *, seed: int | None = None, **switches) -> DualPathway:
    """Build a dual-pathway transformer with random weights.

    Args:
        variant: "medvista3d", or "phantom", a small one for 32×64×64 voxels.
        seed: of the random weights; None draws them from PyTorch's global state.
        switches: any argument of :class:`DualPathwayConfig`.

    Raises:
        BadInput: no such variant, or sizes that don't fit.
    """
    if variant not in DUAL_VARIANTS:
        raise BadInput(f"variant is {variant!r}; choose one of {', '.join(map(repr, DUAL_VARIANTS))}")
    return DualPathway.with_seed(DualPathwayConfig(**({"variant": variant} | DUAL_VARIANTS[variant] | switches)), seed)
