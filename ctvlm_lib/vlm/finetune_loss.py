"""What finetuning minimises, and when it stops: answers' tokens, LoRA's size, and the loss on held-out patients.

Source: contour.txt §4 (answer tokens, focal loss on closed answers, a penalty on LoRA alone), dualbox.txt §3.2.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import Lessons, Packed
from ctvlm_lib.vlm.losses import focal_loss, lora_penalty
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.splice import IGNORED


def answer_loss(
    model: CtvlmModel, rows: Packed, features: Features, focal_gamma: float | None = None, l2: float = 0.0
) -> dict[str, Tensor]:
    """Loss of a batch, by parts: of the answers' tokens, and of LoRA's size.

    Logits are computed only where there is something to learn.

    Args:
        model: with or without adapters.
        rows: of :meth:`ctvlm_lib.vlm.lessons.Lessons.pack`. features: of their pictures.
        focal_gamma: γ of the focal loss on closed answers; None takes one mean over all answers' tokens.
        l2: λ of the penalty on LoRA's matrices, where there are any.

    Returns:
        "nll", or "closed" and "open"; and "penalty", weighted.
    """
    embeddings = model.embed(rows.input_ids, features=features)
    decoder = model.decoder.get_base_model() if hasattr(model.decoder, "get_base_model") else model.decoder
    states = decoder.base_model(
        inputs_embeds=embeddings, attention_mask=rows.attention_mask, position_ids=rows.position_ids, use_cache=False
    )[0]
    learnt = rows.labels[:, 1:] != IGNORED  # position t foretells token t + 1
    logits = decoder.get_output_embeddings()(states[:, :-1][learnt]).float()
    targets, closed = rows.labels[:, 1:][learnt], rows.closed[:, 1:][learnt]
    parts = {}
    if focal_gamma is None:
        parts["nll"] = functional.cross_entropy(logits, targets)
    else:
        if bool(closed.any()):
            parts["closed"] = focal_loss(logits[closed], targets[closed], focal_gamma)
        if not bool(closed.all()):
            parts["open"] = functional.cross_entropy(logits[~closed], targets[~closed])
    if l2 and any(".lora_A." in name for name, _ in model.named_parameters()):
        parts["penalty"] = l2 * lora_penalty(model)
    return parts


@torch.no_grad()
def held_out_loss(
    model: CtvlmModel, lessons: Lessons, features: FeatureCache, *, words: int = 120, batch: int = 24
) -> float:
    """Mean negative log-likelihood of answers' tokens on other lessons; the same questions whenever it is called."""
    total = count = 0.0
    was, device = model.training, model.get_input_embeddings().weight.device
    model.eval()
    drawn = lessons.draw(np.random.default_rng(0), len(lessons), words)
    for start in range(0, len(drawn), batch):
        some = drawn[start : start + batch]
        rows = lessons.pack(some).to(device)
        loss = answer_loss(model, rows, features.take([one.key for one in some], device))["nll"]
        learnt = int((rows.labels != IGNORED).sum())
        total, count = total + float(loss) * learnt, count + learnt
    model.train(was)
    return total / count


class Patience:
    """Early stop: ends a stage when the held-out loss hasn't fallen for a while.

    A run that is taken up again begins to wait anew.

    Args:
        lessons, features: held out, of validation patients.
        every: steps between two looks.
        looks: in a row without a new lowest loss, after which training ends.
    """

    def __init__(self, lessons: Lessons, features: FeatureCache, every: int = 100, looks: int = 3):
        self.lessons, self.features, self.every, self.looks = lessons, features, every, looks
        self.seen: list[float] = []

    def __call__(self, model: CtvlmModel, row: dict[str, float]) -> bool:
        """Whether to end, after the step that ``row`` tells of."""
        if int(row["step"]) % self.every:
            return False
        self.seen.append(held_out_loss(model, self.lessons, self.features))
        return len(self.seen) - 1 - self.seen.index(min(self.seen)) >= self.looks
