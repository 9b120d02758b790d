"""Answers: image vectors are put in once, and the decoder's own ``generate`` does the rest.

Its cache, sampling and stopping are so transformers' for every decoder, and nothing here must know how a cache is
filled or how ``generate`` prepares a step, which changed between its versions. The price: given embeddings, it returns
the new tokens only, and punishes the repetition of those alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.features import Features

# said in full, because decoders bring their own habits: Qwen2.5-Instruct samples and punishes repetition unless told
GREEDY = {
    "do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0,
}  # fmt: skip


class Answering:
    """Generation for a model with ``embed``, ``decoder`` and a configuration."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        features: Features | tuple[Tensor, Tensor] | None = None,
        max_new_tokens: int = 64,
        **options,
    ) -> Tensor:
        """Answer: the tokens behind each row, greedily, with the decoder's cache.

        Args:
            input_ids: ``(B, length)``, padded on the left.
            attention_mask: ``(B, length)``; None if nothing is padded.
            images, features: as for :meth:`forward`.
            max_new_tokens: at most so many.
            options: of transformers' ``generate``, such as ``do_sample=True`` or ``output_scores=True``.

        Returns:
            ``(B, up to max_new_tokens)``, without the prompt; padded behind the EOS of rows that end early.

        Raises:
            BadInput: inputs that don't fit, or padding on the right, behind which nothing can be written.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not bool((attention_mask[:, -1] != 0).all()):
            raise BadInput(
                "a row is padded on the right, and its answer would begin behind the padding; pad on the left, as the"
                " processor does without answers"
            )
        self.check_length(input_ids.shape[1] + max_new_tokens)
        ends = {"eos_token_id": self.config.eos_token_id, "pad_token_id": self.config.pad_token_id}
        with _evaluating(self):
            embeddings = self.embed(input_ids, attention_mask, images, features)
            return self.decoder.generate(
                inputs_embeds=embeddings, attention_mask=attention_mask, max_new_tokens=max_new_tokens,
                **{k: v for k, v in (GREEDY | ends | options).items() if v is not None},
            )  # fmt: skip


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; each module has its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
