"""The vision–language model: a 3-D encoder's two streams, projected and read by a decoder among its words."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ctvlm_lib.encoder import frozen
from ctvlm_lib.encoder.model import TokenEncoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.closed_head import ClosedHead
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens, encoder_classes, make_projector
from ctvlm_lib.vlm.features import Features, WeightsId, refuse_nan
from ctvlm_lib.vlm.generation import Answering
from ctvlm_lib.vlm.saving import SavedModel
from ctvlm_lib.vlm.slice_attention import SliceAttention, attach, slices_of
from ctvlm_lib.vlm.splice import image_positions, splice_embeddings


class CtvlmModel(Answering, SavedModel):
    """Encoder, projector and decoder; built by :meth:`assemble`, :meth:`with_seed` or ``from_pretrained``.

    The sequence keeps its length: each placeholder's embedding is replaced by one image vector.

    Args:
        config: the parts.
        encoder, projector, decoder: parts that are there already; the others get random weights.

    Raises:
        BadInput: parts that don't fit each other.

    Source: med3dvlm.txt §3.2, figure 1.
    """

    config_class = CtvlmConfig
    base_model_prefix = "ctvlm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(
        self,
        config: CtvlmConfig,
        encoder: TokenEncoder | None = None,
        projector: nn.Module | None = None,
        decoder: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        tokens = count_image_tokens(config, projector)
        if tokens != config.image_tokens:
            raise BadInput(
                f"the projector gives {tokens} image vectors and image_tokens is {config.image_tokens}; give {tokens}"
            )
        self.encoder = encoder_classes(config.encoder.model_type)[1](config.encoder) if encoder is None else encoder
        self.projector = make_projector(config) if projector is None else projector
        self.decoder = AutoModelForCausalLM.from_config(config.decoder) if decoder is None else decoder
        if self.decoder.config.hidden_size != config.hidden_size:
            raise BadInput(
                f"the decoder is {self.decoder.config.hidden_size} wide and its configuration says"
                f" {config.hidden_size}; give the configuration of this decoder"
            )
        config.encoder, config.decoder = self.encoder.config, self.decoder.config
        self.slice_attention: SliceAttention | None = None
        self.slices: Tensor | None = None  # of each image vector
        if config.slice_attention is not None:
            options = dict(config.slice_attention)
            grids, by = self.encoder.grids(config.size_dhw_vox)[-2:], options.pop("by", "vector")
            self.slices = slices_of(self.projector, *grids, config.size_dhw_vox[0], by)
            self.slice_attention = attach(self.decoder, **options)
        answers = config.head_answers
        self.closed_head: ClosedHead | None = ClosedHead(config.hidden_size, answers) if answers else None
        self._encoder_id = WeightsId()
        self.post_init()

    @classmethod
    def with_seed(cls, config: CtvlmConfig, seed: int = 0) -> "CtvlmModel":
        """Build a model whose weights are all random, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @classmethod
    def assemble(
        cls,
        encoder: TokenEncoder,
        decoder: PreTrainedModel,
        *,
        size_dhw_vox: Sequence[int],
        image_token_id: int,
        projector: str = "mixer",
        seed: int = 0,
        **options,
    ) -> "CtvlmModel":
        """Join a trained encoder and a trained decoder by a projector with random weights.

        Args:
            encoder, decoder: with their weights; used as they are, not copied.
            size_dhw_vox: sides of the volumes.
            image_token_id: of the placeholder; it may lie beyond the embedding matrix, as it is never looked up with
                ``splice="placeholders"``.
            projector: name in ``ctvlm_lib.vlm.projector.PROJECTORS``, or "merged"; a trained one goes to the class
                itself.
            seed: of the projector's weights.
            options: further arguments of :class:`CtvlmConfig`.

        Raises:
            BadInput: parts that don't fit each other.
        """
        config = CtvlmConfig(
            encoder.config, decoder.config, projector, size_dhw_vox=size_dhw_vox, image_token_id=image_token_id,
            **options,
        )  # fmt: skip
        config.image_tokens = count_image_tokens(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, encoder, make_projector(config), decoder)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        features: Features | tuple[Tensor, Tensor] | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options,
    ):
        """Predict each next token.

        Args:
            input_ids: ``(B, length)``, placeholders included.
            attention_mask: ``(B, length)``, 0 at padding on either side; or ``(B, 1, length, length)`` of the decoder's
                own kind, then with ``position_ids``.
            images: ``(B, C, D, H, W)``, one a row.
            features: in their place, what :meth:`image_features` gave for them. Neither: the sequence has only words.
            labels: ``(B, length)``, −100 where nothing is learnt; the decoder shifts them by one.
            position_ids: ``(B, length)``; None counts the attended positions.
            options: further arguments of the decoder, such as ``use_cache``.

        Returns:
            the decoder's output: ``loss`` with labels, ``logits`` ``(B, length, vocabulary)``.

        Raises:
            BadInput: inputs that don't fit the model.
        """
        embeddings = self.embed(input_ids, attention_mask, images, features)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            if bool((attention_mask[:, 0] == 0).any()):
                position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if position_ids is not None:
            options["position_ids"] = position_ids
        return self.decoder(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels, **options)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, images: Tensor | None = None, features=None
    ) -> Tensor:
        """The sequence as the decoder reads it, ``(B, length, width)``: words' embeddings and image vectors."""
        self.check_length(input_ids.shape[1])
        table, config = self.decoder.get_input_embeddings(), self.config
        if images is None and features is None:
            if bool((input_ids == config.image_token_id).any()):
                raise BadInput("the sequence holds placeholders, but neither images nor features were given; add one")
            if self.slice_attention is not None:
                self.slice_attention.image_at(None)
            return table(input_ids)
        if images is not None and features is not None:
            raise BadInput("both images and features were given; give the volumes, or what the encoder made of them")
        positions = image_positions(
            input_ids, config.image_token_id, config.image_tokens, config.splice, attention_mask
        )
        if self.slice_attention is not None:
            told = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
            self.slice_attention.image_at(positions, told, self.slices)
        image = self.project(self.image_features(images) if features is None else features)
        return splice_embeddings(table(input_ids.masked_fill(positions, 0)), positions, image)

    def image_features(self, images: Tensor) -> Features:
        """Encode volumes ``(B, C, D, H, W)``; of a frozen encoder they are marked with its id and can be kept.

        Raises:
            BadInput: another size or number of channels than the encoder's, or values that are not finite.
        """
        size = self.config.size_dhw_vox
        if images.ndim == 5 and tuple(images.shape[2:]) != size:
            raise BadInput(
                f"volumes are {tuple(images.shape[2:])} voxels (D, H, W) and the model was built for {size}; make them"
                " with its processor"
            )
        self.encoder.check(images)
        refuse_nan("images", images)
        tokens = self.encoder(images.to(self.encoder.dtype))
        return Features(tokens[-2], tokens[-1], self.encoder_id() if frozen.is_frozen(self.encoder) else "")

    def project(self, features: Features | tuple[Tensor, Tensor]) -> Tensor:
        """Image vectors ``(B, image_tokens, width)`` of an encoder's two streams.

        Raises:
            BadInput: features of another encoder or size, or values that are not finite.
        """
        features = Features(*features)
        wanted = self.config.streams()
        given = tuple(tuple(stream.shape[1:]) for stream in features[:2])
        if given != wanted or len(features.low) != len(features.high):
            raise BadInput(
                f"features are {tuple(features.low.shape)} and {tuple(features.high.shape)} and this model's encoder"
                f" gives {wanted} of (tokens, channels) a volume; make them with model.image_features"
            )
        if features.source and features.source != self.encoder_id():
            raise BadInput(
                f"the features were made by encoder {features.source} and this model's is {self.encoder_id()}; make"
                " them again with model.image_features"
            )
        for name, stream in (("low features", features.low), ("high features", features.high)):
            refuse_nan(name, stream)
        dtype = next((p.dtype for p in self.projector.parameters()), self.decoder.dtype)
        return self.projector(features.low.to(dtype), features.high.to(dtype))

    def freeze(
        self, encoder: bool | None = True, projector: bool | None = False, decoder: bool | None = True
    ) -> "CtvlmModel":
        """Fix parts: no gradients, and eval mode whatever mode the whole is put in.

        Args:
            encoder, projector, decoder: True fixes, False lets learn, None leaves as it is. Of a decoder with LoRA
                adapters give None: they learn inside it, and peft fixes the rest.

        Returns:
            the model itself.
        """
        for name, fixed in (("encoder", encoder), ("projector", projector), ("decoder", decoder)):
            part = getattr(self, name)
            if fixed:
                frozen.freeze(part)
            elif fixed is not None:
                frozen.unfreeze(part).train(self.training)
        return self

    def encoder_id(self) -> str:
        """Hash of the encoder's weights, computed again when one was replaced or written to."""
        return self._encoder_id(self.encoder)

    def check_length(self, length: int) -> None:
        """Raise BadInput if the decoder has no positions for so many tokens."""
        limit = self.config.context
        if limit is not None and length > limit:
            raise BadInput(
                f"the sequence takes {length} tokens, the {self.config.image_tokens} of the image included, and the"
                f" decoder has positions for {limit}; shorten the question, or ask for fewer new tokens"
            )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None, **options) -> None:
        """Write the model, see :class:`SavedModel`; the configuration tells of the head that is there now."""
        self.config.head_answers = () if self.closed_head is None else self.closed_head.answers
        super().save_pretrained(folder, dtype, **options)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: encoder and decoder start by their own rules, and the projector has its weights when it is built."""
