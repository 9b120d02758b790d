"""What finetuning minimises, and when it stops: answers' tokens, LoRA's size, and the loss on held-out patients.

Source: contour.txt §4 (answer tokens, focal loss on closed answers, a penalty on LoRA alone), dualbox.txt §3.2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctvlm_lib.training import Step
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import Drawn, Lessons, Packed
from ctvlm_lib.vlm.losses import focal_loss, lora_penalty
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.splice import IGNORED

if TYPE_CHECKING:
    from ctvlm_lib.vlm.finetune import Finetuning


def answer_loss(
    model: CtvlmModel, rows: Packed, features: Features, focal_gamma: float | None = None, l2: float = 0.0
) -> dict[str, Tensor]:
    """Loss of a batch, by parts: of the answers' tokens, and of LoRA's size.

    Args:
        model: with or without adapters.
        rows: of :meth:`ctvlm_lib.vlm.lessons.Lessons.pack`. features: of their pictures.
        focal_gamma: γ of the focal loss on closed answers; None takes one mean over all answers' tokens.
        l2: λ of the penalty on LoRA's matrices, where there are any.

    Returns:
        "nll", or "closed" and "open"; and "penalty", weighted.
    """
    return loss_of_states(model, last_states(model, rows, features), rows, focal_gamma, l2)


def last_states(model: CtvlmModel, rows: Packed, features: Features) -> Tensor:
    """The decoder's last states of a batch, ``(B, length, width)``, after its norm and before its output matrix."""
    embeddings = model.embed(rows.input_ids, features=features)
    return _plain(model.decoder).base_model(
        inputs_embeds=embeddings, attention_mask=rows.attention_mask, position_ids=rows.position_ids, use_cache=False
    )[0]


def loss_of_states(
    model: CtvlmModel, states: Tensor, rows: Packed, focal_gamma: float | None = None, l2: float = 0.0
) -> dict[str, Tensor]:
    """:func:`answer_loss` where the states are known; logits are computed only where there is something to learn."""
    learnt = rows.labels[:, 1:] != IGNORED  # position t foretells token t + 1
    logits = _plain(model.decoder).get_output_embeddings()(states[:, :-1][learnt]).float()
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


def has_report(one: Drawn) -> bool:
    """Whether one of a picture's answers is a report."""
    return any(words.report for words in one.words)


def learnt(one: Drawn, part: str, report: bool) -> int:
    """How much of a picture a part of :func:`answer_loss` is a mean over: tokens of answers; LoRA's size has one mean.

    Args:
        one: a picture with its questions. part: name of the part.
        report: whether the part is that of pictures with reports, or of the others.
    """
    if has_report(one) != report:
        return 0
    if part == "penalty":
        return 1
    counted = [w for w in one.words if part == "nll" or w.closed == (part == "closed")]
    return sum(len(w.ids) - w.start for w in counted)


def loss_of_step(
    model: CtvlmModel,
    lessons: Lessons,
    features: FeatureCache,
    batch: Sequence[Drawn],
    step: Step,
    config: "Finetuning",
    keep: Callable[[Sequence[Drawn], Packed, Features, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Loss of this call's share of a step's pictures, by parts.

    Args:
        model: that learns.
        lessons: of which ``batch`` are the step's. features: of their pictures.
        step: says which are this call's.
        config: weights of the parts.
        keep: called with pictures, their rows, their features and the states, once for reports and once for all else.

    Returns:
        as :func:`answer_loss`, and "report", weighted.
    """
    drawn, device = step.mine(batch), model.get_input_embeddings().weight.device
    parts: dict[str, Tensor] = {}
    for is_report in (False, True):  # apart, as the others would be padded to a report's length
        some = [one for one in drawn if is_report == has_report(one)]
        if some:
            rows, kept = lessons.pack(some).to(device), features.take([one.key for one in some], device)
            states = last_states(model, rows, kept)
            if keep:
                keep(some, rows, kept, states)
            options = () if is_report else (config.focal_gamma, config.l2)
            found = loss_of_states(model, states, rows, *options)
            for part, value in found.items():  # a share with few of a batch's tokens weighs little
                found[part] = value * step.weight(batch, partial(learnt, part=part, report=is_report))
            parts |= {"report": config.report_weight * found["nll"]} if is_report else found
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


def _plain(decoder):
    """The decoder inside peft's, or itself."""
    return decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
