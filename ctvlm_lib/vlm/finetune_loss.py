"""What finetuning minimises, and when it stops: answers' tokens, LoRA's size, and the loss on held-out patients.

Without a head for them (:mod:`ctvlm_lib.vlm.closed_head`) closed answers are texts like any other, and the focal loss
is on their tokens, each with the weight of the answer that it is a part of.

Source: contour.txt §4 (answer tokens, focal loss on closed answers, a penalty on LoRA alone), dualbox.txt §3.2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from ctvlm_lib.checkpoints import HELD_OUT
from ctvlm_lib.training import Step
from ctvlm_lib.vlm.closed_head import begins
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import Drawn, Lessons, Packed
from ctvlm_lib.vlm.losses import LossWeights, focal_loss, lora_penalty
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.splice import IGNORED

if TYPE_CHECKING:
    from ctvlm_lib.vlm.finetune import Finetuning

NO_PENALTY = LossWeights(reg=0.0)


def answer_loss(
    model: CtvlmModel,
    rows: Packed,
    features: Features,
    focal_gamma: float | None = None,
    weights: LossWeights = NO_PENALTY,
    alpha: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of a batch, by parts: of the answers' tokens, and of LoRA's size.

    Args:
        model: with or without adapters and head.
        rows: of :meth:`ctvlm_lib.vlm.lessons.Lessons.pack`. features: of their pictures.
        focal_gamma: γ of the focal loss on closed answers; None takes one mean over all answers' tokens, with a head
            its cross-entropy beside that of open answers' tokens.
        weights: λ of the parts that have a mean of their own; the penalty is taken where there are adapters.
        alpha: ``(answers,)``, weight of each closed answer, as ``Lessons.alpha``; None weighs all alike.

    Returns:
        "nll", or "closed" and "open"; and "penalty", weighted.
    """
    return loss_of_states(model, last_states(model, rows, features), rows, focal_gamma, weights, alpha)


def last_states(model: CtvlmModel, rows: Packed, features: Features) -> Tensor:
    """The decoder's last states of a batch, ``(B, length, width)``, after its norm and before its output matrix."""
    embeddings = model.embed(rows.input_ids, features=features)
    return plain_decoder(model).base_model(
        inputs_embeds=embeddings, attention_mask=rows.attention_mask, position_ids=rows.position_ids, use_cache=False
    )[0]


def loss_of_states(
    model: CtvlmModel,
    states: Tensor,
    rows: Packed,
    focal_gamma: float | None = None,
    weights: LossWeights = NO_PENALTY,
    alpha: Tensor | None = None,
) -> dict[str, Tensor]:
    """:func:`answer_loss` where the states are known; logits are computed only where there is something to learn."""
    head, parts = model.closed_head, {}
    learnt = rows.labels[:, 1:] != IGNORED  # position t foretells token t + 1
    if head is not None:
        chosen = begins(rows) & rows.closed[:, 1:]
        if bool(chosen.any()):
            targets = rows.answers[:, 1:][chosen]
            parts["closed"] = weights.cls * focal_loss(head(states[:, :-1][chosen]), targets, focal_gamma or 0.0, alpha)
        learnt = learnt & ~rows.closed[:, 1:]
    if bool(learnt.any()):
        logits = plain_decoder(model).get_output_embeddings()(states[:, :-1][learnt]).float()
        targets, closed = rows.labels[:, 1:][learnt], rows.closed[:, 1:][learnt]
        if focal_gamma is None and head is None:
            parts["nll"] = functional.cross_entropy(logits, targets)
        else:
            if bool(closed.any()):
                each = None if alpha is None else alpha.to(logits.device)[rows.answers[:, 1:][learnt][closed]]
                found = focal_loss(logits[closed], targets[closed], focal_gamma, weights=each)
                parts["closed"] = weights.cls * found
            if not bool(closed.all()):
                parts["open"] = weights.gen * functional.cross_entropy(logits[~closed], targets[~closed])
    if weights.reg and any(".lora_A." in name for name, _ in model.named_parameters()):
        parts["penalty"] = weights.reg * lora_penalty(model)
    return parts


def has_report(one: Drawn) -> bool:
    """Whether one of a picture's answers is a report."""
    return any(words.report for words in one.words)


def learnt(one: Drawn, part: str, report: bool, head: bool = False) -> int:
    """How much of a picture a part of :func:`answer_loss` is a mean over: tokens of answers; LoRA's size has one mean.

    Args:
        one: a picture with its questions. part: name of the part.
        report: whether the part is that of pictures with reports, or of the others.
        head: whether closed questions have a head; then they count themselves, and not their answers' tokens.
    """
    if has_report(one) != report:
        return 0
    if part == "penalty":
        return 1
    counted = [w for w in one.words if part == "nll" or w.closed == (part == "closed")]
    return len(counted) if head and part == "closed" else sum(len(w.ids) - w.start for w in counted)


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
    if config.checkpointing:
        recompute_frozen(model)
    parts: dict[str, Tensor] = {}
    head = model.closed_head is not None
    alpha = lessons.alpha if config.class_balanced else None
    for is_report in (False, True):  # apart, as the others would be padded to a report's length
        some = [one for one in drawn if is_report == has_report(one)]
        if some:
            rows, kept = lessons.pack(some).to(device), features.take([one.key for one in some], device)
            states = last_states(model, rows, kept)
            if keep:
                keep(some, rows, kept, states)
            options = () if is_report else (config.focal_gamma, config.weights, alpha)
            found = loss_of_states(model, states, rows, *options)
            for part, value in found.items():  # a share with few of a batch's tokens weighs little
                found[part] = value * step.weight(batch, partial(learnt, part=part, report=is_report, head=head))
            parts |= {"report": config.report_weight * sum(found.values())} if is_report else found
    return parts


def recompute_frozen(model: CtvlmModel) -> None:
    """Let also a decoder that sleeps recompute its layers: transformers asks each layer whether it is in training.

    While the projector learns alone, the decoder is in evaluation mode, but what its layers keep for the backward pass
    is as large. Only the layers are told so, not what they are made of: no dropout awakes.
    """
    for module in model.decoder.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


@torch.no_grad()
def held_out_loss(
    model: CtvlmModel, lessons: Lessons, features: FeatureCache, *, words: int = 120, batch: int = 24
) -> float:
    """Mean negative log-likelihood of answers' tokens on other lessons; the same questions whenever it is called.

    With a head for closed questions it is that of open answers' tokens, and that of closed answers on top.
    """
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    was, device = model.training, model.get_input_embeddings().weight.device
    model.eval()
    drawn = lessons.draw(np.random.default_rng(0), len(lessons), words)
    for start in range(0, len(drawn), batch):
        some = drawn[start : start + batch]
        rows = lessons.pack(some).to(device)
        found = answer_loss(model, rows, features.take([one.key for one in some], device))
        for part, value in found.items():
            head = model.closed_head is not None
            count = sum(learnt(one, part, has_report(one), head) for one in some)
            totals[part], counts[part] = totals.get(part, 0.0) + float(value) * count, counts.get(part, 0) + count
    model.train(was)
    return sum(totals[part] / counts[part] for part in totals)


class Patience:
    """Looks at the held-out loss now and then, notes it in the curve, and ends a stage when it no longer falls.

    A run that is taken up again begins to wait anew.

    Args:
        lessons, features: held out, of validation patients.
        every: steps between two looks.
        looks: in a row without a new lowest loss, after which training ends; 0 only looks.
        options: ``words`` and ``batch`` of :func:`held_out_loss`.
    """

    def __init__(self, lessons: Lessons, features: FeatureCache, every: int = 100, looks: int = 3, **options):
        self.lessons, self.features, self.every, self.looks, self.options = lessons, features, every, looks, options
        self.seen: list[float] = []

    def __call__(self, model: CtvlmModel, row: dict[str, float]) -> bool:
        """Whether to end, after the step that ``row`` tells of."""
        if int(row["step"]) % self.every:
            return False
        row[HELD_OUT] = held_out_loss(model, self.lessons, self.features, **self.options)
        self.seen.append(row[HELD_OUT])
        return 0 < self.looks <= len(self.seen) - 1 - self.seen.index(min(self.seen))


def plain_decoder(model: CtvlmModel):
    """The decoder inside peft's, or itself."""
    return model.decoder.get_base_model() if hasattr(model.decoder, "get_base_model") else model.decoder
