"""The baseline: a 3-D vision transformer as in M3D, from MONAI's patch embedding and transformer blocks."""

from collections.abc import Sequence

import torch
from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from ctvlm_lib.encoder.model import TokenEncoder
from ctvlm_lib.errors import BadInput

VIT_VARIANTS: dict[str, dict] = {
    "m3d": {},
    # ours, for 32×64×64: the tokens of DCFormer's phantom variant, 512 and 32
    "phantom": {
        "size_dhw_vox": (32, 64, 64), "patch_dhw_vox": (4, 8, 8), "pool_dhw": (4, 2, 2),
        "hidden_size": 96, "mlp_size": 192, "layers": 3, "heads": 4,
    },
}  # fmt: skip


class ViT3DConfig(PretrainedConfig):
    """Shape of a 3-D vision transformer; the defaults are M3D's.

    Args:
        variant: the name it was made from; informative.
        in_channels: 1 or 3.
        size_dhw_vox: the only size (D, H, W) that it reads: positions are learned.
        patch_dhw_vox: voxels of one token.
        pool_dhw: patches averaged into one token of the coarser stream; M3D's projector averages 2×2×2.
        hidden_size, mlp_size, layers, heads: of the transformer.

    Raises:
        BadInput: sizes that don't divide each other.

    Source: released code of M3D (63e7200): 32×256×256 voxels, patches of 4×16×16, 768 wide, 12 layers, 12 heads.
    """

    model_type = "ctvlm_vit3d"

    def __init__(
        self,
        variant: str = "m3d",
        in_channels: int = 1,
        size_dhw_vox: Sequence[int] = (32, 256, 256),
        patch_dhw_vox: Sequence[int] = (4, 16, 16),
        pool_dhw: Sequence[int] = (2, 2, 2),
        hidden_size: int = 768,
        mlp_size: int = 3072,
        layers: int = 12,
        heads: int = 12,
        **others,
    ):
        self.variant, self.in_channels = variant, in_channels
        self.size_dhw_vox, self.patch_dhw_vox = tuple(size_dhw_vox), tuple(patch_dhw_vox)
        self.pool_dhw = tuple(pool_dhw)
        self.hidden_size, self.mlp_size, self.layers, self.heads = hidden_size, mlp_size, layers, heads
        if in_channels not in (1, 3):
            raise BadInput(f"in_channels is {in_channels}; choose 1 for grey volumes or 3 for RGB")
        steps = self.strides_dhw()[-1]
        if any(n % s for n, s in zip(self.size_dhw_vox, steps, strict=True)):
            raise BadInput(
                f"volumes of {self.size_dhw_vox} voxels can't be cut into patches of {self.patch_dhw_vox} pooled by"
                f" {self.pool_dhw}; choose sides that are multiples of {steps}"
            )
        if hidden_size % heads:
            raise BadInput(f"a width of {hidden_size} can't be shared by {heads} heads; choose a multiple of {heads}")
        super().__init__(**others)

    def strides_dhw(self) -> list[tuple[int, int, int]]:
        """Voxels (D, H, W) that a token of the finer and of the coarser stream stands for."""
        return [self.patch_dhw_vox, tuple(p * q for p, q in zip(self.patch_dhw_vox, self.pool_dhw, strict=True))]


class ViT3D(TokenEncoder):
    """Patches, a class token, transformer blocks; tensor names are MONAI's and so M3D's.

    Forward gives two token tensors: the patches' ``(B, 2048, 768)`` in M3D's size, and their averages over
    ``pool_dhw`` ``(B, 256, 768)``, which M3D's projector takes.
    """

    config_class = ViT3DConfig
    base_model_prefix = "vision_encoder"
    input_weights = ("patch_embedding.patch_embeddings.1.weight",)

    def __init__(self, config: ViT3DConfig):
        super().__init__(config)
        width, heads = config.hidden_size, config.heads
        self.patch_embedding = PatchEmbeddingBlock(
            config.in_channels, config.size_dhw_vox, config.patch_dhw_vox, width, heads, proj_type="perceptron"
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.mlp_size, heads, use_flash_attention=True) for _ in range(config.layers)
        )
        for block in self.blocks:
            block.norm_cross_attn = nn.Identity()  # MONAI's is never used here, and would have no gradient
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def encode(self, volume: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tokens of both streams, and the class token ``(B, hidden_size)`` that M3D's contrastive training uses."""
        self.check(volume)
        x = self.patch_embedding(volume)  # (B, patches, hidden)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return [x[:, 1:], self._pooled(x[:, 1:])], x[:, 0]

    def check(self, volume: Tensor) -> None:
        """Raise BadInput unless the volume has the one size that the positions are made for."""
        super().check(volume)
        if tuple(volume.shape[2:]) != self.config.size_dhw_vox:
            raise BadInput(
                f"this transformer has positions for {self.config.size_dhw_vox} voxels (D, H, W), got"
                f" {tuple(volume.shape[2:])}; resize the volume, or build another with size_dhw_vox="
                f"{tuple(volume.shape[2:])}"
            )

    def _pooled(self, tokens: Tensor) -> Tensor:
        grid = self.grids(self.config.size_dhw_vox)[0]
        volume = tokens.mT.unflatten(2, grid)  # (B, C, D, H, W)
        return functional.avg_pool3d(volume, self.config.pool_dhw).flatten(2).mT

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As M3D's code: PyTorch's initialisation in the blocks, a normal of 0.02 in the patch embedding."""
        super()._init_weights(module)
        if isinstance(module, PatchEmbeddingBlock):
            for tensor in (module.position_embeddings, module.patch_embeddings[1].weight):
                nn.init.trunc_normal_(tensor, std=0.02)
            nn.init.zeros_(module.patch_embeddings[1].bias)


def vit3d(variant: str = "m3d", *, seed: int | None = None, **switches) -> ViT3D:
    """Build a 3-D vision transformer with random weights.

    Args:
        variant: ``"m3d"``, or ``"phantom"``, a small one for 32×64×64 voxels.
        seed: of the random weights; None draws them from PyTorch's global state.
        switches: any argument of :class:`ViT3DConfig`.

    Raises:
        BadInput: no such variant, or sizes that don't fit.
    """
    if variant not in VIT_VARIANTS:
        raise BadInput(f"variant is {variant!r}; choose one of {', '.join(map(repr, VIT_VARIANTS))}")
    config = ViT3DConfig(**({"variant": variant} | VIT_VARIANTS[variant] | switches))
    return ViT3D.with_seed(config, seed)
