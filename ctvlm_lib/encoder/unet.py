"""nnU-Net's U-Net with a residual encoder, whose stages U-VLM shares between segmentation, classification and reports.

Tensor names are those of nnU-Net's checkpoints, without the second names that its modules give the same tensors
(``…all_modules.0.weight``, ``decoder.encoder.…``): :func:`from_nnunet` takes these away. All maps are
``(B, C, D, H, W)``.

    stage          1            2            …   N
    encoder        stem, residual blocks     …   residual blocks       each after the first begins with a stride
    decoder        ← transposed convolution, skip joined, convolution  a segmentation head at each stage

Sources: uvlm.txt §2.1 and §3.1; nnU-Net's ResEnc-L (dynamic-network-architectures 0.4.4), whose outputs this one gives
with the same weights.
"""

import inspect
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ctvlm_lib.alignment.checkpoints import check_tensors
from ctvlm_lib.encoder.model import TokenEncoder
from ctvlm_lib.errors import BadInput

SLOPE = 0.01  # of the leaky ReLU, and of the initialisation that goes with it

UNET_VARIANTS: dict[str, dict] = {
    # nnU-Net's ResEnc-L, U-VLM's: volumes of 192×256×256, patches of 96×128×128 in segmentation
    "uvlm": {
        "channels": (32, 64, 128, 256, 320, 320), "blocks": (1, 3, 4, 6, 6, 6),
        "stage_strides_dhw": ((1, 1, 1), *((2, 2, 2),) * 5),
    },
    # ours, for the cohort's 32×64×64 voxels of 10.6×5.3×5.3 mm: the first stride makes them nearly cubes, and the last
    # grid, 4×8×8, has the paper's cells of some 40 mm in the plane (6×8×8 there)
    "phantom": {
        "channels": (8, 16, 32, 64, 64), "blocks": (1, 1, 1, 1, 1),
        "stage_strides_dhw": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 1)),
    },
}  # fmt: skip


class UNetConfig(PretrainedConfig):
    """Shape of a U-Net.

    Args:
        channels: of each stage.
        blocks: residual blocks of each stage.
        stage_strides_dhw: (D, H, W) steps of each stage's first block; the first stage's is usually (1, 1, 1).
        in_channels: of the volume.
        classes: names of what is segmented, background first: two or more for a U-Net, () for an encoder alone.
        variant: the name that it was built by.

    Raises:
        BadInput: lists of different lengths, or a value below 1.
    """

    model_type = "ctvlm_unet"

    def __init__(
        self,
        channels: Sequence[int] = UNET_VARIANTS["uvlm"]["channels"],
        blocks: Sequence[int] = UNET_VARIANTS["uvlm"]["blocks"],
        stage_strides_dhw: Sequence[Sequence[int]] = UNET_VARIANTS["uvlm"]["stage_strides_dhw"],
        in_channels: int = 1,
        classes: Sequence[str] = (),
        variant: str = "",
        **others,
    ):
        self.channels, self.blocks = tuple(channels), tuple(blocks)
        self.stage_strides_dhw = tuple(tuple(stride) for stride in stage_strides_dhw)
        self.in_channels, self.classes, self.variant = in_channels, tuple(classes), variant
        if not 1 < len(self.channels) == len(self.blocks) == len(self.stage_strides_dhw):
            raise BadInput(
                f"a U-Net has two stages or more, each with channels, blocks and a stride; got {len(self.channels)},"
                f" {len(self.blocks)} and {len(self.stage_strides_dhw)} of them"
            )
        if min(*self.channels, *self.blocks, in_channels, *(n for s in self.stage_strides_dhw for n in s)) < 1:
            raise BadInput(f"channels {self.channels}, blocks {self.blocks} and strides must be 1 or more")
        super().__init__(**others)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.channels[-1]

    def strides_dhw(self) -> list[tuple[int, int, int]]:
        """Voxels (D, H, W) that a place of each stage stands for."""
        made, now = [], (1, 1, 1)
        for stride in self.stage_strides_dhw:
            now = tuple(a * b for a, b in zip(now, stride, strict=True))
            made.append(now)
        return made


class ConvNorm(nn.Module):
    """A convolution that keeps the grid but for its stride, instance normalisation, and a leaky ReLU or none."""

    def __init__(self, inp: int, out: int, kernel: int, stride: Sequence[int] = (1, 1, 1), *, bias=True, active=True):
        super().__init__()
        self.conv = nn.Conv3d(inp, out, kernel, tuple(stride), padding=kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(out, eps=1e-5, affine=True)
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inp, D, H, W)`` → ``(B, out, D', H', W')``."""
        x = self.norm(self.conv(x))
        return nn.functional.leaky_relu(x, SLOPE) if self._active else x


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, which averages where there is a stride and is projected to new channels."""

    def __init__(self, inp: int, out: int, stride: Sequence[int]):
        super().__init__()
        self.conv1 = ConvNorm(inp, out, 3, stride)
        self.conv2 = ConvNorm(out, out, 3, active=False)
        self.conv2.norm.starts_at_zero = True  # a block begins as its skip alone
        pooled = [nn.AvgPool3d(tuple(stride), tuple(stride))] if math.prod(stride) > 1 else []
        projected = [ConvNorm(inp, out, 1, bias=False, active=False)] if inp != out else []
        self.skip = nn.Sequential(*pooled, *projected)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inp, D, H, W)`` → ``(B, out, D', H', W')``."""
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), SLOPE)


class UNetEncoder(TokenEncoder):
    """The residual encoder: a stem and N stages.

    Source: uvlm.txt §2.1: {f_i} of one volume.
    """

    config_class = UNetConfig
    base_model_prefix = "unet_encoder"
    input_weights = ("stem.convs.0.conv.weight",)

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        first = config.channels[0]
        self.stem = _named("convs", ConvNorm(config.in_channels, first, 3))
        stages, inp = [], first
        for out, blocks, stride in zip(config.channels, config.blocks, config.stage_strides_dhw, strict=True):
            rest = [ResidualBlock(out, out, (1, 1, 1)) for _ in range(blocks - 1)]
            stages.append(_named("blocks", ResidualBlock(inp, out, stride), *rest))
            inp = out
        self.stages = nn.Sequential(*stages)
        self.post_init()

    def check(self, volume: Tensor) -> None:
        """Raise BadInput unless the encoder can read this tensor: its last grid needs two places, for the norms."""
        super().check(volume)
        d, h, w = volume.shape[2:]
        if math.prod(self.grids((d, h, w))[-1]) == 1:
            raise BadInput(
                f"of a volume of {d}×{h}×{w} voxels (D×H×W) the last of {len(self.config.channels)} stages has a single"
                f" place, and its norm is over two or more; give a larger one, such as {d}×{h}×{2 * w}, or fewer stages"
            )

    def features(self, volume: Tensor) -> list[Tensor]:
        """Feature maps ``(B, C_i, D_i, H_i, W_i)`` of all stages, the finest first.

        Raises:
            BadInput: not a tensor of floats, a shape that the strides don't divide, or a last stage of a single place.
        """
        self.check(volume)
        x, made = self.stem.convs(volume), []
        for stage in self.stages:
            x = stage.blocks(x)
            made.append(x)
        return made

    def encode(self, volume: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each stage's places as tokens, and the mean of the last stage's."""
        tokens = [x.flatten(2).mT for x in self.features(volume)]  # (B, D·H·W, C)
        return tokens, tokens[-1].mean(dim=1)

    def _init_weights(self, module: nn.Module) -> None:
        _initialise(module)


class UNetDecoder(nn.Module):
    """The way back: at each stage a transposed convolution, the encoder's map beside it, a convolution, and a head."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        steps = list(zip(config.channels[:0:-1], config.channels[-2::-1], config.stage_strides_dhw[:0:-1], strict=True))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(deep, out, s, s) for deep, out, s in steps)
        self.stages = nn.ModuleList(_named("convs", ConvNorm(2 * out, out, 3)) for _, out, _ in steps)
        self.seg_layers = nn.ModuleList(nn.Conv3d(out, len(config.classes), 1) for _, out, _ in steps)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps, the finest first → logits ``(B, classes, D_i, H_i, W_i)`` of all stages but the last."""
        x, made = features[-1], []
        for up, stage, head, skip in zip(self.transpconvs, self.stages, self.seg_layers, features[-2::-1], strict=True):
            x = stage.convs(torch.cat([up(x), skip], dim=1))
            made.append(head(x))
        return made[::-1]


class UNet(PreTrainedModel):
    """Encoder and decoder; ``forward`` gives the logits of every scale for deep supervision, the finest first.

    Source: uvlm.txt §2.1, stage 1.
    """

    config_class = UNetConfig
    base_model_prefix = "unet"
    main_input_name = "volume"

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        if len(config.classes) < 2:
            raise BadInput(f"a U-Net segments the background and a class at least, got {config.classes}; name them")
        self.encoder = UNetEncoder(config)
        self.decoder = UNetDecoder(config)
        self.post_init()

    def forward(self, volume: Tensor) -> list[Tensor]:
        """``(B, in_channels, D, H, W)`` → logits ``(B, classes, D_i, H_i, W_i)``, the finest first."""
        return self.decoder(self.encoder.features(volume))

    def _init_weights(self, module: nn.Module) -> None:
        _initialise(module)


def unet(classes: Sequence[str], variant: str = "uvlm", *, seed: int | None = None, **switches) -> UNet:
    """Build a U-Net with random weights.

    Args:
        classes: names, background first.
        variant: "uvlm", or "phantom", a small one for 32×64×64 voxels.
        seed: of the random weights; None draws them from PyTorch's global state.
        switches: any argument of :class:`UNetConfig`.

    Raises:
        BadInput: no such variant or switch, or values that don't fit.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return UNet(_config(variant, classes=classes, **switches))


def unet_encoder(variant: str = "uvlm", *, seed: int | None = None, **switches) -> UNetEncoder:
    """Build the encoder alone; arguments and errors as of :func:`unet`."""
    return UNetEncoder.with_seed(_config(variant, **switches), seed)


def from_nnunet(tensors: Mapping[str, Tensor], model: UNet) -> UNet:
    """Put weights of nnU-Net into a U-Net of the same shape.

    Args:
        tensors: state dict of its ``network_weights``, each tensor under all its names.
        model: changed in place.

    Returns:
        the model itself.

    Raises:
        BadInput: names of one tensor that differ in value, or a tensor that is missing, left over or of another shape.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _plain_name(name)
        if plain in kept and not torch.equal(kept[plain], tensor):
            raise BadInput(
                f"{name} is another name of {plain}, and the two differ; the file was changed, fetch it again"
            )
        kept[plain] = tensor
    check_tensors(kept, model.state_dict(), "the U-Net")
    model.load_state_dict(kept)
    return model


def _plain_name(name: str) -> str:
    """The first of the names that nnU-Net's modules give one tensor."""
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    return name.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")


def _config(variant: str, **switches) -> UNetConfig:
    if variant not in UNET_VARIANTS:
        raise BadInput(f"variant is {variant!r}; choose one of {', '.join(map(repr, UNET_VARIANTS))}")
    known = [name for name in inspect.signature(UNetConfig).parameters if name not in ("self", "others")]
    if unknown := sorted(set(switches) - set(known)):  # transformers would keep it and do nothing with it
        raise BadInput(f"a U-Net has no option {unknown[0]!r}; it has {', '.join(known)}")
    return UNetConfig(**{"variant": variant} | UNET_VARIANTS[variant] | switches)


def _named(name: str, *modules: nn.Module) -> nn.Module:
    """A module that holds a sequence under a name, as nnU-Net's tensors are called."""
    outer = nn.Module()
    outer.add_module(name, nn.Sequential(*modules))
    return outer


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """nnU-Net's start: He's normal numbers, no bias, and blocks that begin as their skip alone."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif getattr(module, "starts_at_zero", False):
        nn.init.zeros_(module.weight)
