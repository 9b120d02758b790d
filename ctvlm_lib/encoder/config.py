"""What a DCFormer is built from: its variants, and one switch for each place where code and paper differ."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from ctvlm_lib.errors import BadInput

STEMS = ("released", "every_voxel", "patches")
HALVED = (2, 2, 2)

# Each switch is one difference between the released code and the paper's text.
PRESETS: dict[str, dict] = {
    "as_released": {
        "stem_activation": False, "stem_depthwise": False, "inner_residual": False, "norm": "batch",
        "layer_scale": 1e-6,
    },
    "as_in_paper": {
        "stem_activation": True, "stem_depthwise": True, "inner_residual": True, "norm": "batch", "layer_scale": None,
    },
}  # fmt: skip

VARIANTS: dict[str, dict] = {
    "nano": {"blocks": (1, 1, 1, 1), "channels": (32, 32, 64, 128, 256)},
    "naive": {"blocks": (2, 2, 2, 2), "channels": (32, 64, 128, 256, 512)},
    "tiny": {"blocks": (2, 3, 3, 2), "channels": (64, 96, 192, 384, 768)},
    "small": {"blocks": (2, 3, 6, 2), "channels": (64, 96, 192, 384, 768)},
    "base": {"blocks": (2, 6, 6, 2), "channels": (64, 128, 256, 512, 1024)},
    "large": {"blocks": (2, 6, 12, 2), "channels": (64, 256, 512, 1024, 2048)},
    # ours, for the cohort's 32×64×64 voxels: 16³ patches, then 8³ = 512 low and 2×4×4 = 32 high tokens
    "phantom": {
        "blocks": (1, 2, 1), "channels": (32, 32, 64, 128), "kernels_vox": (7, 7, 7), "mlp_expansion": 2,
        "stem": "patches", "stem_stride_dhw_vox": (2, 4, 4), "downsample": "merge",
        "stage_strides_dhw": ((1, 1, 1), HALVED, (4, 2, 2)), "stem_activation": True, "layer_scale": None,
    },
}  # fmt: skip
RELEASED_VARIANTS = tuple(name for name in VARIANTS if name != "phantom")


class DCFormerConfig(PretrainedConfig):
    """Shape and switches of a DCFormer; the defaults are the released ``small``.

    Args:
        variant: the name it was made from; informative.
        in_channels: 1 for grey volumes, 3 for red, green and blue.
        blocks: number of blocks of each stage after the stem.
        channels: of the stem and of each stage.
        kernels_vox: length of the one-dimensional kernels of each stage, in voxels of its own grid, odd.
        stage_strides_dhw: how much coarser (D, H, W) each stage's grid is than the one before.
        stem: ``"released"``; ``"every_voxel"``, the same with a branch that reads what the others skip; ``"patches"``,
            a two-layer MLP on patches that don't overlap, which reads every voxel too.
        stem_stride_dhw_vox: voxels of the volume that one voxel of the stem's grid stands for; equal on the three axes
            unless the stem is ``"patches"``.
        downsample: ``"maxpool"`` as released (3×3×3, then 1×1×1), or ``"merge"``, one convolution with kernel = stride.
        mlp_expansion: hidden width of the blocks' MLP as a multiple of their channels.
        stem_activation: GELU after each layer of the convolutional stem. False as released, by a slip: the activation
            was passed in the place of another argument. Patches always have the one between their two layers.
        stem_depthwise: the stem's k = 3 layers are depthwise as eqs. (1)–(3) say. False as released.
        inner_residual: X is added in eq. (4). False as released.
        norm: ``"batch"`` as released, or ``"layer"``, which takes no statistics over the batch.
        layer_scale: what a block's change is multiplied with at the start, 1e-6 as released; None leaves it out.

    Raises:
        BadInput: lengths that don't match, or a value none of the above.

    Source: released code of Med3DVLM (cbbd633) and med3dvlm.txt §3.2.1.
    """

    model_type = "ctvlm_dcformer"

    def __init__(
        self,
        variant: str = "small",
        in_channels: int = 1,
        blocks: Sequence[int] = (2, 3, 6, 2),
        channels: Sequence[int] = (64, 96, 192, 384, 768),
        kernels_vox: Sequence[int] = (13, 11, 9, 7),
        stage_strides_dhw: Sequence[Sequence[int]] = (HALVED, HALVED, HALVED, HALVED),
        stem: str = "released",
        stem_stride_dhw_vox: Sequence[int] = (4, 4, 4),
        downsample: str = "maxpool",
        mlp_expansion: int = 4,
        stem_activation: bool = False,
        stem_depthwise: bool = False,
        inner_residual: bool = False,
        norm: str = "batch",
        layer_scale: float | None = 1e-6,
        **others,
    ):
        self.variant, self.in_channels = variant, in_channels
        self.blocks, self.channels, self.kernels_vox = tuple(blocks), tuple(channels), tuple(kernels_vox)
        self.stage_strides_dhw = tuple(tuple(s) for s in stage_strides_dhw)
        self.stem, self.stem_stride_dhw_vox = stem, tuple(stem_stride_dhw_vox)
        self.downsample, self.mlp_expansion = downsample, mlp_expansion
        self.stem_activation, self.stem_depthwise, self.inner_residual = stem_activation, stem_depthwise, inner_residual
        self.norm, self.layer_scale = norm, layer_scale
        self.check()
        super().__init__(**others)

    def check(self) -> None:
        """Raise BadInput if the parts don't fit together."""
        _one_of("in_channels", self.in_channels, (1, 3))
        _one_of("stem", self.stem, STEMS)
        _one_of("downsample", self.downsample, ("maxpool", "merge"))
        _one_of("norm", self.norm, ("batch", "layer"))
        lengths = {len(self.blocks), len(self.kernels_vox), len(self.stage_strides_dhw), len(self.channels) - 1}
        if len(lengths) != 1:
            raise BadInput(
                f"{len(self.blocks)} stages have {len(self.channels)} channels (the stem's and theirs),"
                f" {len(self.kernels_vox)} kernels and {len(self.stage_strides_dhw)} strides; give one for each"
            )
        if any(k % 2 == 0 or k < 1 for k in self.kernels_vox):
            raise BadInput(f"kernels must be odd numbers of voxels, got {self.kernels_vox}; take for example 7")
        if self.stem != "patches" and len(set(self.stem_stride_dhw_vox)) > 1:
            raise BadInput(
                f"a {self.stem} stem has one stride for all axes, got {self.stem_stride_dhw_vox};"
                " take (4, 4, 4), or stem='patches'"
            )

    def strides_dhw(self) -> list[tuple[int, int, int]]:
        """Voxels of the volume along (D, H, W) that one token of each stage stands for, the stem's first."""
        total = [self.stem_stride_dhw_vox]
        for stride in self.stage_strides_dhw:
            total.append(tuple(a * b for a, b in zip(total[-1], stride, strict=True)))
        return total


def variant_config(variant: str = "small", *, preset: str | None = None, **switches) -> DCFormerConfig:
    """The configuration of a named variant.

    Args:
        variant: one of VARIANTS.
        preset: ``"as_released"`` or ``"as_in_paper"`` sets the five switches of PRESETS; None keeps the variant's own,
            which are as released for all but ``phantom``.
        switches: any argument of :class:`DCFormerConfig`, which wins over the preset.

    Raises:
        BadInput: no such variant, preset or switch.
    """
    _one_of("variant", variant, tuple(VARIANTS))
    if preset is not None:
        _one_of("preset", preset, tuple(PRESETS))
    unknown = set(switches) - set(vars(DCFormerConfig()))
    if unknown:
        raise BadInput(f"a DCFormer has no option {sorted(unknown)[0]!r}; see DCFormerConfig for its arguments")
    return DCFormerConfig(**({"variant": variant} | VARIANTS[variant] | PRESETS.get(preset, {}) | switches))


def _one_of(what: str, value, known: tuple) -> None:
    if value not in known:
        raise BadInput(f"{what} is {value!r}; choose one of {', '.join(map(repr, known))}")
