"""A frozen stem and a dual-pathway transformer on its tokens, as one encoder of volumes.

The small aligned arms read the tokens of a DCFormer in the place of patches (``stem="tokens"`` of
:class:`~ctvlm_lib.encoder.dual_pathway.DualPathwayConfig`). A language model reads volumes. Here both are one module
with one configuration, so that it is saved, loaded and frozen as any other encoder:

    volume (B, 1, 32, 64, 64) → stem → 512 tokens of 64 → transformer → 512 tokens of 64, and 32, their averages
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PretrainedConfig

from ctvlm_lib.encoder.config import DCFormerConfig
from ctvlm_lib.encoder.dual_pathway import DualPathway, DualPathwayConfig
from ctvlm_lib.encoder.model import DCFormer, TokenEncoder
from ctvlm_lib.errors import BadInput


class StemmedConfig(PretrainedConfig):
    """A stem's and a transformer's configuration, which fit each other.

    Args:
        stem: of a DCFormer, or its dict; its stage before the last gives the tokens.
        pathway: of a dual-pathway transformer with ``stem="tokens"``, or its dict.

    Raises:
        BadInput: a transformer that reads volumes itself, or tokens of another grid or width than the stem's.
    """

    model_type = "ctvlm_stemmed"
    has_no_defaults_at_init = True

    def __init__(
        self,
        stem: DCFormerConfig | Mapping | None = None,
        pathway: DualPathwayConfig | Mapping | None = None,
        **others,
    ):
        if stem is None or pathway is None:
            raise BadInput("a stem and a transformer make this encoder, and one of them wasn't given; give both")
        self.stem = _config(DCFormerConfig, stem)
        self.pathway = _config(DualPathwayConfig, pathway)
        self._check()
        super().__init__(**others)

    @property
    def in_channels(self) -> int:
        """Of the volume, the stem's."""
        return self.stem.in_channels

    @property
    def size_dhw_vox(self) -> tuple[int, int, int]:
        """The one size (D, H, W) of volumes."""
        return self.pathway.size_dhw_vox

    @property
    def hidden_size(self) -> int:
        """Channels of both token streams."""
        return self.pathway.hidden_size

    def strides_dhw(self) -> list[tuple[int, int, int]]:
        """Voxels (D, H, W) that a token of the finer and of the coarser stream stands for."""
        return self.pathway.strides_dhw()

    def to_dict(self) -> dict:
        """All values, both parts' nested, without the places on this machine that they were loaded from."""
        parts = {"stem": self.stem.to_dict(), "pathway": self.pathway.to_dict()}
        for part in parts.values():
            part.pop("_name_or_path", None)
        return super().to_dict() | parts

    def _check(self) -> None:
        if self.pathway.stem != "tokens":
            raise BadInput("the transformer reads volumes itself; give one that was built with stem='tokens'")
        patch = tuple(self.pathway.patch_dhw_vox)
        given = tuple(self.stem.strides_dhw()[-2]), self.stem.channels[-2]
        if given != (patch, self.pathway.token_width):
            raise BadInput(
                f"the stem gives a token of {given[1]} channels every {given[0]} voxels and the transformer reads"
                f" {self.pathway.token_width} channels every {patch}; join those that were trained together"
            )


class Stemmed(TokenEncoder):
    """Stem and transformer; the stem's own coarse tokens are left out.

    Args:
        config: of both.
        stem, pathway: parts that are there already; those that aren't get random weights.
    """

    config_class = StemmedConfig
    base_model_prefix = "vision_encoder"
    input_weights = tuple(f"stem.encoder.{name}" for name in DCFormer.input_weights)

    def __init__(self, config: StemmedConfig, stem: DCFormer | None = None, pathway: DualPathway | None = None):
        super().__init__(config)
        self.stem = DCFormer(config.stem) if stem is None else stem
        self.pathway = DualPathway(config.pathway) if pathway is None else pathway
        self.post_init()

    @classmethod
    def of(cls, stem: DCFormer, pathway: DualPathway) -> "Stemmed":
        """Join two trained encoders; they are used as they are, not copied.

        Raises:
            BadInput: they don't fit each other.
        """
        return cls(StemmedConfig(stem.config, pathway.config), stem, pathway)

    def encode(self, volume: Tensor) -> tuple[list[Tensor], Tensor]:
        """The transformer's patch tokens, their averages, and its class token ``(B, hidden_size)``."""
        self.check(volume)
        return self.pathway.encode(self.stem.encode(volume)[0][-2])

    def check(self, volume: Tensor) -> None:
        """Raise BadInput unless the volume has the one size that the positions are made for."""
        self.stem.check(volume)
        size = self.config.size_dhw_vox
        if tuple(volume.shape[2:]) != size:
            raise BadInput(
                f"this encoder has positions for {math.prod(self.grids(size)[0])} tokens of {size} voxels (D, H, W),"
                f" got {tuple(volume.shape[2:])}; resize the volume"
            )

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: both parts start by their own rules."""


def _config(kind: type[PretrainedConfig], given: PretrainedConfig | Mapping) -> PretrainedConfig:
    """A part's configuration, from itself or from what a saved file has of it."""
    if isinstance(given, kind):
        return given
    if isinstance(given, PretrainedConfig):
        raise BadInput(f"a {kind.model_type} is expected as this part, got a {given.model_type}")
    return kind.from_dict({name: value for name, value in given.items() if name != "model_type"})
