"""U-VLM's report writer: a decoder that reads an encoder's stages at its input and inside its layers.

It takes what an encoder made of volumes, so that any encoder serves and a frozen one's features can be kept. The
sequence is ``<|vision_start|> K image vectors <|vision_end|> words``; at the image's positions the decoder's input
holds zeros and what the injection adds there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.generation import Answering
from ctvlm_lib.vlm.hybrid_mask import HybridAttention, attend
from ctvlm_lib.vlm.injection import inject
from ctvlm_lib.vlm.saving import SavedModel
from ctvlm_lib.vlm.splice import IGNORED, image_positions
from ctvlm_lib.vlm.stage_tokens import own_tokens
from ctvlm_lib.vlm.uvlm_config import CAUSAL, RELEASED, UvlmConfig


class UvlmDecoder(Answering, SavedModel):
    """A decoder with projections and, but for "causal", the hybrid mask.

    Args:
        config: the parts.
        decoder: one that is there already, such as Qwen3; None makes one with random weights. LoRA goes on afterwards:
            ``model.decoder = with_lora(model.decoder, rank=64, alpha=128, targets="attention")``.

    Attributes:
        injection: :class:`ctvlm_lib.vlm.injection.LayerInjection`, with the projections' weights.
        hybrid: :class:`ctvlm_lib.vlm.hybrid_mask.HybridAttention`; None where attention is causal.

    Raises:
        BadInput: parts that don't fit each other.

    Source: uvlm.txt §2.2, equations (3) to (5), §3.1.
    """

    config_class = UvlmConfig
    base_model_prefix = "uvlm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: UvlmConfig, decoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.decoder = AutoModelForCausalLM.from_config(config.decoder) if decoder is None else decoder
        if self.decoder.config.hidden_size != config.decoder.hidden_size:
            raise BadInput(
                f"the decoder is {self.decoder.config.hidden_size} wide and its configuration says"
                f" {config.decoder.hidden_size}; give the configuration of this decoder"
            )
        config.decoder = self.decoder.config
        self.injection = inject(self.decoder, config.channels, **config.injection, seed=None)
        self.hybrid: HybridAttention | None = None
        if config.attention != CAUSAL:
            self.hybrid = attend(self.decoder, as_released=config.attention == RELEASED)
        self.post_init()

    @classmethod
    def with_seed(cls, config: UvlmConfig, seed: int = 0, decoder: PreTrainedModel | None = None) -> "UvlmDecoder":
        """Build a model whose weights are random, the same for the same seed; a given decoder keeps its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, decoder)

    def forward(
        self,
        features: Sequence[Tensor] | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **options,
    ):
        """Predict each next token.

        Args:
            features: ``(B, C_i, D_i, H_i, W_i)`` of all stages, finest first, or what
                :func:`ctvlm_lib.vlm.stage_tokens.pool` made of them. None: the sequence has only words.
            input_ids: ``(B, length)``, words alone, in front of which the image is put; or with K placeholders a row,
                where it stands then.
            attention_mask: ``(B, length)``, 0 at padding on either side.
            labels: ``(B, length)``, −100 where nothing is learnt. Words alone: the first is learnt as well, from
                ``<|vision_end|>`` in front of it.
            options: further arguments of the decoder, such as ``use_cache``.

        Returns:
            the decoder's output: ``loss`` with labels; ``logits`` ``(B, length, vocabulary)``, at each of ``input_ids``
            what comes next.

        Raises:
            BadInput: inputs that don't fit the model.
        """
        words = input_ids.shape[1]
        ids, mask, labels = self.with_image(features, input_ids, attention_mask, labels)
        embeddings = self.embed(ids, mask, features=features)
        if "position_ids" not in options and bool((mask[:, 0] == 0).any()):
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        kept = 0
        if ids.shape[1] > words and "logits_to_keep" not in options:  # not those of the image, which are many
            kept = options["logits_to_keep"] = words + 1
        labels = None if labels is None else labels[:, -kept:]
        out = self.decoder(inputs_embeds=embeddings, attention_mask=mask, labels=labels, **options)
        if kept:
            out.logits = out.logits[:, 1:]
        return out

    @torch.no_grad()
    def generate(
        self,
        features: Sequence[Tensor] | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 64,
        **options,
    ) -> Tensor:
        """Write the tokens behind each row, greedily, with the decoder's cache.

        Args:
            features, attention_mask: as for :meth:`forward`.
            input_ids: as for :meth:`forward`, padded on the left; None with features: the report begins behind the
                image.
            max_new_tokens: at most so many.
            options: of transformers' ``generate``, such as ``do_sample=True, temperature=0.7, top_p=0.9``, the released
                way.

        Returns:
            ``(B, up to max_new_tokens)``, without the prompt; padded behind the EOS of rows that end early.

        Raises:
            BadInput: inputs that don't fit, or padding on the right.
        """
        if input_ids is None:
            if features is None:
                raise BadInput("there are neither features nor words to begin with; give one of them")
            input_ids = torch.zeros(len(features[0]), 0, dtype=torch.long, device=self.device)
        ids, mask, _ = self.with_image(features, input_ids, attention_mask)
        return super().generate(ids, mask, features=features, max_new_tokens=max_new_tokens, **options)

    def with_image(
        self,
        features: Sequence[Tensor] | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put ``<|vision_start|>``, K placeholders and ``<|vision_end|>`` in front of each row's first word.

        Returns:
            input_ids, attention_mask and labels ``(B, K + 2 + length)``; as they are where rows hold placeholders
            already, or there is no image.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape or (labels is not None and labels.shape != input_ids.shape):
            raise BadInput(
                f"input_ids are {tuple(input_ids.shape)}, attention_mask {tuple(mask.shape)} and labels"
                f" {None if labels is None else tuple(labels.shape)}; give them one shape (B, length)"
            )
        config = self.config
        if features is None or bool((input_ids == config.image_token_id).any()):
            return input_ids, mask, labels
        count = max(own_tokens(features, self.injection.reference))
        front = [config.vision_start_id, *[config.image_token_id] * count, config.vision_end_id]
        padded = (mask.cumsum(dim=1) == 0).sum(dim=1)  # positions on the left
        ids = _in_front(front, input_ids, padded)
        labels = None if labels is None else _in_front([IGNORED] * len(front), labels, padded)
        return ids, _in_front([1] * len(front), mask, padded), labels

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None, images=None, features=None) -> Tensor:
        """The sequence as the decoder reads it, ``(B, length, width)``, zeros at placeholders; and say where they are.

        Args:
            input_ids: ``(B, length)``, placeholders included.
            attention_mask: not read.
            images: None; volumes go through an encoder first.
            features: as for :meth:`forward`.
        """
        if images is not None:
            raise BadInput("this model reads an encoder's features, not volumes; give features")
        self.check_length(input_ids.shape[1])
        positions = input_ids == self.config.image_token_id
        if features is not None:
            count = max(own_tokens(features, self.injection.reference))
            positions = image_positions(input_ids, self.config.image_token_id, count)
        elif bool(positions.any()):
            raise BadInput("the sequence holds placeholders, but no features were given; add them")
        self.injection.image_at(None if features is None else positions, features)
        if self.hybrid is not None:
            self.hybrid.image_at(None if features is None else positions)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(positions, self.config.vision_start_id))
        return embeddings.masked_fill(positions[..., None], 0)

    def check_length(self, length: int) -> None:
        """Raise BadInput if the decoder has no positions for so many tokens."""
        limit = self.config.context
        if limit is not None and length > limit:
            raise BadInput(
                f"the sequence takes {length} tokens, the image's included, and the decoder has positions for {limit};"
                " choose a later reference stage, shorten the text, or ask for fewer new tokens"
            )

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the decoder starts by its own rules, and the projections have their weights when they are built."""


def _in_front(front: Sequence[int], rows: Tensor, padded: Tensor) -> Tensor:
    """Put ``front`` into each of ``rows`` ``(B, length)`` behind its first ``padded`` positions."""
    put = rows.new_tensor(front).expand(len(rows), -1)
    place = torch.arange(len(front) + rows.shape[1], device=rows.device).expand(len(rows), -1)
    behind = padded[:, None] + len(front)
    source = torch.where(place < behind, place - padded[:, None], place)
    source = torch.where(place < padded[:, None], place + len(front), source)
    return torch.cat([put, rows], dim=1).gather(1, source)
