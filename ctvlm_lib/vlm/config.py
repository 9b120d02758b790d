"""What a vision–language model is put together from: an encoder, a projector, a decoder, and how they are joined."""

import copy
from collections.abc import Mapping, Sequence

import torch
from transformers import AutoConfig, PretrainedConfig

from ctvlm_lib.encoder.config import DCFormerConfig, variant_config
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput

SPLICES = ("placeholders", "as released")
ENCODERS = ("ctvlm_dcformer", "ctvlm_vit3d", "ctvlm_stemmed")


class AroundDecoder(PretrainedConfig):
    """Configuration of a model around a decoder, whose configuration is ``decoder``."""

    @property
    def vocab_size(self) -> int:
        """Rows of the decoder's embedding matrix."""
        return self.decoder.vocab_size

    @property
    def tied(self) -> bool:
        """Whether the decoder reads and writes words with one matrix."""
        return bool(getattr(self.decoder, "tie_word_embeddings", False))

    @property
    def context(self) -> int | None:
        """Positions that the decoder has, the image's included; None where it sets no limit."""
        return getattr(self.decoder, "max_position_embeddings", None)

    def of_generation(self, eos: int | Sequence[int] | None, pad: int | None) -> dict:
        """Which tokens end an answer and fill it up, by default the decoder's, and whether matrices are tied."""
        eos = self.decoder.eos_token_id if eos is None else eos
        pad = self.decoder.pad_token_id if pad is None else pad
        if pad is None:  # what a padded position holds is never attended
            pad = eos[0] if isinstance(eos, list | tuple) else eos
        return {"eos_token_id": eos, "pad_token_id": pad, "tie_word_embeddings": self.tied}


class CtvlmConfig(AroundDecoder):
    """The parts of a vision–language model; the defaults are Med3DVLM's but for the splice, which is corrected.

    Args:
        encoder: an encoder's configuration; or a dict with ``kind``, "dcformer" or "vit3d", and its variant and
            switches, such as ``{"kind": "dcformer", "variant": "nano", "in_channels": 3}``.
        decoder: configuration of any causal language model of transformers, or its dict with ``model_type``.
        projector: name in ``ctvlm_lib.vlm.projector.PROJECTORS``, or "merged".
        projector_options: further arguments of that projector, such as ``residual``.
        size_dhw_vox: the one size (D, H, W) of volumes; it fixes how many tokens the projector is built for.
        image_tokens: how many the projector gives, and so how many placeholders a sequence holds.
        image_token_id: id of the placeholder in the tokenizer.
        slice_attention: options of :func:`ctvlm_lib.vlm.slice_attention.attach`, such as ``{"kind": "SSA"}``, and
            ``by``, of :func:`ctvlm_lib.vlm.slice_attention.slices_of`; None for none.
        head_answers: those among which a head chooses for closed questions, see :mod:`ctvlm_lib.vlm.closed_head`; ()
            for no head.
        splice: ``"placeholders"`` puts image vectors where the placeholders are; ``"as released"`` one later than that
            where the tokenizer adds no BOS, which costs the question its first token.
        eos_token_id, pad_token_id: of generation; by default the decoder's.

    Raises:
        BadInput: a part that isn't known, or values that don't fit each other.

    Source: med3dvlm.txt §3.2; released code of Med3DVLM (cbbd633).
    """

    model_type = "ctvlm"
    has_no_defaults_at_init = True

    def __init__(
        self,
        encoder: PretrainedConfig | Mapping | None = None,
        decoder: PretrainedConfig | Mapping | None = None,
        projector: str = "mixer",
        projector_options: Mapping | None = None,
        size_dhw_vox: Sequence[int] = (128, 256, 256),
        image_tokens: int = 256,
        image_token_id: int = 0,
        splice: str = "placeholders",
        slice_attention: Mapping | None = None,
        head_answers: Sequence[str] = (),
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        **others,
    ):
        self.encoder = encoder_config({"kind": "dcformer"} if encoder is None else encoder)
        self.decoder = decoder_config({"model_type": "qwen2"} if decoder is None else decoder)
        self.projector, self.projector_options = projector, dict(projector_options or {})
        self.size_dhw_vox = tuple(int(n) for n in size_dhw_vox)
        self.image_tokens, self.image_token_id = int(image_tokens), int(image_token_id)
        self.splice = splice
        self.slice_attention = None if slice_attention is None else dict(slice_attention)
        self.head_answers = tuple(head_answers)
        self.check()
        super().__init__(**self.of_generation(eos_token_id, pad_token_id) | others)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder, and so of the image vectors."""
        return self.decoder.hidden_size

    def streams(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(tokens, channels) of the encoder's two last streams, the finer first, for volumes of ``size_dhw_vox``.

        Raises:
            BadInput: a size that the encoder's strides don't divide.
        """
        coarsest = self.encoder.strides_dhw()[-1]
        if any(n % s for n, s in zip(self.size_dhw_vox, coarsest, strict=True)):
            raise BadInput(
                f"volumes of {self.size_dhw_vox} voxels (D, H, W) can't be cut into the encoder's tokens of {coarsest};"
                f" choose sides that are multiples of {coarsest}"
            )
        channels = getattr(self.encoder, "channels", None) or (self.encoder.hidden_size,) * 2
        tokens = [_cells(self.size_dhw_vox, stride) for stride in self.encoder.strides_dhw()[-2:]]
        return (tokens[0], channels[-2]), (tokens[1], channels[-1])

    def to_dict(self) -> dict:
        """All values, the parts' nested, without the places on this machine that they were loaded from."""
        content = super().to_dict()
        for part in (content, content["encoder"], content["decoder"]):
            part.pop("_name_or_path", None)
        return content

    def check(self) -> None:
        """Raise BadInput if the values don't fit each other."""
        if self.splice not in SPLICES:
            raise BadInput(f"splice is {self.splice!r}; choose one of {', '.join(map(repr, SPLICES))}")
        if len(self.size_dhw_vox) != 3 or min(self.size_dhw_vox) < 1:
            raise BadInput(f"size_dhw_vox is {self.size_dhw_vox}; give three sides (D, H, W) in voxels")
        fixed = getattr(self.encoder, "size_dhw_vox", None)
        if fixed is not None and tuple(fixed) != self.size_dhw_vox:
            raise BadInput(
                f"the encoder has positions for {tuple(fixed)} voxels (D, H, W) only, and size_dhw_vox is"
                f" {self.size_dhw_vox}; give the encoder's size"
            )
        self.streams()
        if self.splice == "as released" and self.image_token_id >= self.vocab_size:
            raise BadInput(
                f"the released splice may look the placeholder up, and its id {self.image_token_id} lies beyond the"
                f" decoder's {self.vocab_size} embeddings; resize them first, as the released code does"
            )
        if self.image_tokens < 1:
            raise BadInput(f"image_tokens is {self.image_tokens}; a projector gives at least one")


def encoder_config(encoder: PretrainedConfig | Mapping) -> PretrainedConfig:
    """An encoder's configuration from what a user or a saved file gives for it."""
    if isinstance(encoder, PretrainedConfig) and encoder.model_type in ENCODERS:
        return encoder
    if not isinstance(encoder, Mapping):
        raise BadInput(f"an encoder is given by its configuration or a dict, got {type(encoder).__name__}")
    given = dict(encoder)
    kind, saved = given.pop("kind", None), given.pop("model_type", None)
    if saved:
        return encoder_classes(saved)[0].from_dict(given)
    if kind == "dcformer":
        return variant_config(**given)
    if kind == "vit3d":
        from ctvlm_lib.encoder.vit import VIT_VARIANTS, ViT3DConfig

        variant = given.get("variant", "m3d")
        if variant in VIT_VARIANTS:
            return ViT3DConfig(**VIT_VARIANTS[variant] | given)
    raise BadInput(f"an encoder's dict has kind 'dcformer' or 'vit3d' and a variant of it, got {encoder!r}")


def encoder_classes(model_type: str) -> tuple[type, type]:
    """Configuration and model of an encoder; a transformer's module is imported only for it, as MONAI takes long."""
    if model_type not in ENCODERS:
        raise BadInput(f"no encoder here has model_type {model_type!r}; choose one of {', '.join(ENCODERS)}")
    if model_type == "ctvlm_vit3d":
        from ctvlm_lib.encoder.vit import ViT3D

        return ViT3D.config_class, ViT3D
    if model_type == "ctvlm_stemmed":
        from ctvlm_lib.encoder.stemmed import Stemmed

        return Stemmed.config_class, Stemmed
    return DCFormerConfig, DCFormer


def decoder_config(decoder: PretrainedConfig | Mapping) -> PretrainedConfig:
    """A decoder's configuration from what a user or a saved file gives for it; a copy, so that ours may differ."""
    if isinstance(decoder, PretrainedConfig):
        return copy.deepcopy(decoder)
    given = dict(decoder)
    try:
        return AutoConfig.for_model(given.pop("model_type"), **given)
    except KeyError:
        raise BadInput("a decoder's dict names its model_type, such as 'qwen2' or 'llama'; add it") from None
    except ValueError as error:
        raise BadInput(f"transformers knows no decoder {decoder.get('model_type')!r}: {_first(error)}") from None


def make_projector(config: CtvlmConfig) -> torch.nn.Module:
    """Build the projector that a configuration names, for its encoder's streams and its decoder's width.

    Raises:
        BadInput: no such projector, or a width that it can't give.
    """
    from ctvlm_lib.vlm.projector import factory_of

    factory = factory_of(config.projector)
    low, high = config.streams()
    return factory(low=low, high=high, hidden_size=config.hidden_size, **config.projector_options)


def count_image_tokens(config: CtvlmConfig, projector: torch.nn.Module | None = None) -> int:
    """How many image vectors the projector gives: it is run on shapes without numbers.

    Args:
        config: whose projector and sizes count.
        projector: another one than the configuration's.

    Raises:
        BadInput: the projector doesn't give vectors of the decoder's width, or can't take the encoder's streams.
    """
    with torch.device("meta"):
        probe = make_projector(config) if projector is None else copy.deepcopy(projector).to("meta")
        low, high = (torch.empty(1, *stream) for stream in config.streams())
        try:
            given = tuple(probe.eval()(low, high).shape)
        except RuntimeError as error:
            raise BadInput(
                f"the projector can't take the encoder's streams {config.streams()} of (tokens, channels):"
                f" {_first(error)}; build it for these"
            ) from None
    if len(given) != 3 or given[2] != config.hidden_size:
        raise BadInput(
            f"the projector gives {given} (batch, tokens, width) and the decoder is {config.hidden_size} wide; a"
            f" projector is made for one decoder: build and train one with hidden_size={config.hidden_size}"
        )
    return given[1]


def _cells(size: Sequence[int], stride: Sequence[int]) -> int:
    count = 1
    for n, s in zip(size, stride, strict=True):
        count *= n // s
    return count


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
