"""What U-VLM's report writer is put together from: a decoder, an encoder's channels, and how one reads the other."""

import inspect
from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PretrainedConfig, Starcoder2Config
from transformers.activations import ACT2FN

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.config import AroundDecoder, decoder_config

HYBRID, RELEASED, CAUSAL = ATTENTIONS = ("hybrid", "as released", "causal")


class UvlmConfig(AroundDecoder):
    """The parts of a report writer.

    Args:
        decoder: configuration of any causal language model of transformers, or its dict with ``model_type``;
            :func:`paper_decoder` gives the paper's.
        channels: of the encoder's stages, finest first.
        injection: options of :func:`ctvlm_lib.vlm.injection.inject` without ``seed``, such as
            ``{"mapping": "input only"}`` or ``ctvlm_lib.vlm.injection.AS_RELEASED``.
        attention: "hybrid", "as released" (one position off) or "causal"; see :mod:`ctvlm_lib.vlm.hybrid_mask`.
        vision_start_id, vision_end_id: of the tokens around the image.
        image_token_id: of the placeholder, which is never looked up and may lie beyond the vocabulary.
        eos_token_id, pad_token_id: of generation; by default the decoder's.

    Raises:
        BadInput: values that don't fit each other.

    Source: uvlm.txt §2.2 and §3.1; released code of U-VLM (5d7fde9).
    """

    model_type = "ctvlm_uvlm"
    has_no_defaults_at_init = True

    def __init__(
        self,
        decoder: PretrainedConfig | Mapping | None = None,
        channels: Sequence[int] | None = None,
        injection: Mapping | None = None,
        attention: str = HYBRID,
        vision_start_id: int | None = None,
        vision_end_id: int | None = None,
        image_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        **others,
    ):
        if None in (decoder, channels, vision_start_id, vision_end_id, image_token_id):
            raise BadInput(
                "a report writer needs decoder, channels, vision_start_id, vision_end_id and image_token_id; give all"
            )
        self.decoder = decoder_config(decoder)
        self.channels, self.injection, self.attention = tuple(channels), dict(injection or {}), attention
        self.vision_start_id, self.vision_end_id = int(vision_start_id), int(vision_end_id)
        self.image_token_id = int(image_token_id)
        self.check()
        super().__init__(**self.of_generation(eos_token_id, pad_token_id) | others)

    def to_dict(self) -> dict:
        """All values, the decoder's nested, without the places on this machine that they were loaded from."""
        content = super().to_dict()
        for part in (content, content["decoder"]):
            part.pop("_name_or_path", None)
        return content

    def check(self) -> None:
        """Raise BadInput if the values don't fit each other."""
        if self.attention not in ATTENTIONS:
            raise BadInput(f"attention is {self.attention!r}; choose one of {', '.join(map(repr, ATTENTIONS))}")
        around = (self.vision_start_id, self.vision_end_id)
        if not all(0 <= token < self.vocab_size for token in around):
            raise BadInput(
                f"the image stands between tokens {around}, and the decoder's vocabulary has {self.vocab_size}; add"
                " them to the tokenizer and resize the embeddings"
            )
        if self.image_token_id in around:
            raise BadInput(f"image_token_id is {self.image_token_id}, a token around the image; give it its own")


def paper_decoder(vocab_size: int, /, **changes) -> Starcoder2Config:
    """Shape of U-VLM's decoder: 8 layers, 512 wide, 8 heads, 2048 inside the MLP.

    The released code writes its own: LayerNorm before each part, biases everywhere, RoPE with base 10,000, GELU, one
    matrix to read and write words. StarCoder2's blocks are these, but for one thing: the released RoPE lays its angles
    out for two halves of a head and reads them for neighbouring channels, so that the two channels of a pair turn by
    different angles, which is no rotation. Here it is one.

    Args:
        vocab_size: words and special tokens; the paper names none, its released code takes Qwen3's.
        changes: further arguments of transformers' ``Starcoder2Config``, such as ``num_hidden_layers``.

    Raises:
        BadInput: an argument that isn't there or is of the wrong kind, or a width that the heads can't share.

    Source: uvlm.txt §3.1; released code of U-VLM (5d7fde9), ``SimpleTransformerDecoder``.
    """
    shape = {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
        "intermediate_size": 2048, "hidden_act": "gelu", "max_position_embeddings": 8192, "initializer_range": 0.02,
        "norm_epsilon": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True,
    }  # fmt: skip
    known = set(inspect.signature(Starcoder2Config).parameters) - {"vocab_size", "kwargs"}
    if unknown := sorted(set(changes) - known):  # transformers would keep it and do nothing with it
        raise BadInput(f"the decoder has no option {unknown[0]!r}; it has {', '.join(shape)}, and Starcoder2Config's")
    try:
        config = Starcoder2Config(vocab_size=vocab_size, **shape | changes)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"an option of the decoder has a value of the wrong kind: {reason}") from None
    _check_shape(config)
    return config


def _check_shape(config: Starcoder2Config) -> None:
    """Raise BadInput for what transformers would only stumble over when the decoder is built or reads."""
    width, heads, shared = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    if min(width, heads, shared, config.num_hidden_layers, config.intermediate_size) < 1:
        raise BadInput(
            f"a decoder of {config.num_hidden_layers} layers, {width} wide, {config.intermediate_size} inside, with"
            f" {heads} heads and {shared} of keys and values can't be; give 1 or more of each"
        )
    if width % (2 * heads) or heads % shared:
        raise BadInput(
            f"{heads} heads, {shared} of keys and values, can't share a width of {width}: each gets an even number of"
            " channels, and the heads are a multiple of those of keys and values; choose others, such as 8, 8 and 512"
        )
    if config.hidden_act not in ACT2FN:
        raise BadInput(f"transformers has no activation {config.hidden_act!r}; take 'gelu', the paper's, or 'silu'")


def decoder_parts(config: PretrainedConfig) -> dict[str, int]:
    """Count a decoder's parameters without any weights: {"embeddings": …, "blocks": …}, a tied matrix once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tables = {t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings())}
    embeddings = sum(table.numel() for table in tables)
    return {"embeddings": embeddings, "blocks": sum(p.numel() for p in model.parameters()) - embeddings}
