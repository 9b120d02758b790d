"""DCFormer: a stem and four stages, whose token sequences are what a projector reads."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctvlm_lib.encoder.checks import NOT_A_MODEL, check_volume, refuse_non_finite
from ctvlm_lib.encoder.config import DCFormerConfig, variant_config
from ctvlm_lib.encoder.decomposed import ConvBlock, build_stem
from ctvlm_lib.errors import BadInput


class Streams(NamedTuple):
    """The two token sequences of a two-stream projector, and the (D, H, W) grids that they run over, D slowest.

    Attributes:
        low: finer tokens ``(B, n, C)``: the last stage but one.
        high: coarser tokens: the last stage.
        low_grid, high_grid: so that ``low.view(B, *low_grid, C)`` is a volume again.
    """

    low: Tensor
    high: Tensor
    low_grid: tuple[int, int, int]
    high_grid: tuple[int, int, int]


class TokenEncoder(PreTrainedModel):
    """What all encoders here have in common: tokens of several grids from a volume.

    A subclass gives ``encode`` and names the tensors that read the volume in ``input_weights``.
    """

    main_input_name = "volume"
    input_weights: tuple[str, ...] = ()

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode a volume.

        Args:
            volume: ``(B, in_channels, D, H, W)``.

        Returns:
            one tensor ``(B, tokens, channels)`` a stage, the finest grid first; tokens run over D, then H, then W.

        Raises:
            BadInput: a shape that doesn't fit, with the sizes that do.
        """
        return self.encode(volume)[0]

    def encode(self, volume: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tokens as forward gives them, and one vector ``(B, channels)`` a volume for contrastive training."""
        raise NotImplementedError

    def check(self, volume: Tensor) -> None:
        """Raise BadInput unless the encoder can read this tensor."""
        check_volume(volume, self.config.in_channels, self.strides_dhw()[-1])

    def streams(self, volume: Tensor) -> Streams:
        """Encode a volume and take the two streams of a two-stream projector: the last stage but one, and the last."""
        tokens = self(volume)
        low, high = self.grids(tuple(volume.shape[2:]))[-2:]
        return Streams(tokens[-2], tokens[-1], low, high)

    def grids(self, size_dhw: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """The (D, H, W) grid of each returned token sequence for a volume of this size."""
        return [tuple(n // s for n, s in zip(size_dhw, stride, strict=True)) for stride in self.strides_dhw()]

    def strides_dhw(self) -> list[tuple[int, int, int]]:
        """Voxels (D, H, W) that a token of each returned sequence stands for."""
        return self.config.strides_dhw()

    @classmethod
    def with_seed(cls, config, seed: int | None):
        """Build from a configuration; None draws the random weights from PyTorch's global state."""
        if seed is None:
            return cls(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @classmethod
    def from_pretrained(cls, folder, *args, **kwargs):
        """Load what ``save_pretrained`` wrote.

        Raises:
            BadInput: no encoder there, a damaged one, or weights that are not finite.
        """
        try:
            model = super().from_pretrained(folder, *args, **kwargs)
        except BadInput:
            raise
        except NOT_A_MODEL as error:
            raise BadInput(f"{folder} can't be read as an encoder ({type(error).__name__}); save it again") from error
        refuse_non_finite((model[0] if isinstance(model, tuple) else model).state_dict(), str(folder))
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, which the released models start from, not transformers' normal of 0.02."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


class DCFormer(TokenEncoder):
    """Decomposed-convolution encoder with the tensor names of the released weights.

    Build it with :func:`dcformer`; ``save_pretrained`` and ``from_pretrained`` use safetensors.

    Source: med3dvlm.txt §3.2.1; released code of Med3DVLM and DCFormer.
    """

    config_class = DCFormerConfig
    base_model_prefix = "vision_encoder"
    input_weights = ("s0.0.0.c1.0.weight", "s0.0.0.c2.0.weight", "s0.0.0.c3.0.weight", "s0.0.0.c4.0.weight",
                     "s0.0.0.weight")  # fmt: skip

    def __init__(self, config: DCFormerConfig):
        super().__init__(config)
        self.encoder = nn.Module()
        self.encoder.s0 = nn.Sequential(build_stem(config))
        shapes = zip(
            pairwise(config.channels), config.blocks, config.kernels_vox, config.stage_strides_dhw, strict=True
        )
        for number, ((inp, out), blocks, kernel, stride) in enumerate(shapes, start=1):
            first = ConvBlock(inp, out, kernel, config, stride)
            rest = [ConvBlock(out, out, kernel, config) for _ in range(blocks - 1)]
            self.encoder.add_module(f"s{number}", nn.Sequential(first, *rest))
        self.post_init()

    def encode(self, volume: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stem's tokens and each stage's, and the mean of the last ones, as Med3DVLM pools them."""
        self.check(volume)
        x = volume.permute(0, 1, 3, 4, 2)  # (B, C, D, H, W) → (B, C, H, W, D), the order of eqs. (1)–(4)
        tokens = []
        for stage in self.encoder.children():
            x = stage(x)
            tokens.append(x.permute(0, 4, 2, 3, 1).flatten(1, 3))  # (B, D·H·W, C)
        return tokens, tokens[-1].mean(dim=1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Layer scales start at the configuration's value; transformers leaves tensors alone that were loaded."""
        super()._init_weights(module)
        if isinstance(module, ConvBlock) and module.scale is not None:
            nn.init.constant_(module.scale, self.config.layer_scale)


def dcformer(variant: str = "small", *, preset: str | None = None, seed: int | None = None, **switches) -> DCFormer:
    """Build a DCFormer with random weights.

    Args:
        variant: nano, naive, tiny, small, base or large as released, or phantom, ours, for 32×64×64 voxels.
        preset: ``"as_released"`` or ``"as_in_paper"``; None keeps the variant's own switches.
        seed: of the random weights; None draws them from PyTorch's global state.
        switches: any argument of :class:`DCFormerConfig`, such as ``in_channels=3`` or ``stem="every_voxel"``.

    Returns:
        a module whose forward takes ``(B, in_channels, D, H, W)`` and returns one token tensor a stage, finest first.

    Raises:
        BadInput: no such variant, preset or switch.
    """
    return DCFormer.with_seed(variant_config(variant, preset=preset, **switches), seed)
