"""Contrastive distillation: a small model's state on a question is matched with a larger one's on the same question.

The contour paper has one sentence on it and no formula; "SigLIP" is the loss of image–text pretraining, so that its two
sides aren't named either. What had to be decided:

    the paper says                           here
    "SigLIP-style"                           SigLIP's loss (InfoNCE by a setting); its two sides are the student's and
                                             the teacher's states, other questions of the batch are the negatives
    –, which states                          the decoder's last, after its norm, at the token in front of the answer: a
                                             causal decoder has read picture and question there and not the answer, so
                                             nothing is pooled. Each question of a row is an item, a report too
    –, widths                                one matrix without bias on the student's side; it is dropped afterwards
    –, temperature                           learnt, as SigLIP's bias, from the start that each loss was published with
    "the frozen 7 B baseline"                a finetuned model with the same encoder, tokenizer and number of image
                                             vectors; it is shown the same pictures and words
    "one epoch", beside 25, in no order      a stage after the others in which each picture comes once, LoRA's learning
                                             rate with a warm-up and a cosine of its own
    –, whether alone                         beside the loss on answers, without which nothing would hold the words
    –, weight                                0.1, not chosen on validation: of vlm-B-contour-small, beside an untrained
                                             large decoder, the gradient's norm began at 0.18, the answers' at 0.48

The teacher's states are computed in passing: each question comes once, so that nothing would be read twice.

Source: contour.txt §4.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.alignment.clip import clip_loss
from ctvlm_lib.alignment.siglip import RELEASED_INIT, SIGLIP_INIT, siglip_loss
from ctvlm_lib.encoder import frozen
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Curve, Step, train
from ctvlm_lib.vlm.closed_head import begins
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune_loss import last_states, loss_of_step
from ctvlm_lib.vlm.lessons import Drawn, Lessons, Packed
from ctvlm_lib.vlm.model import CtvlmModel

if TYPE_CHECKING:
    from ctvlm_lib.vlm.finetune import Finetuning

DISTILLATION = "distillation"
SIGLIP, INFO_NCE = "SigLIP", "InfoNCE"
STARTS = {SIGLIP: SIGLIP_INIT, INFO_NCE: (RELEASED_INIT[0], None)}  # loss → (ln t, b) at the first step


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    log_temperature: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    same: Tensor | None = None,
) -> Tensor:
    """How badly the student's representation of each item is told to be the teacher's of the same item.

    With x and y of length one and logits s_ij = t x_i·y_j, SigLIP asks of each pair whether both are the same item, and
    InfoNCE which item of the batch it is, in both directions:

        SigLIP   −1/N Σ_i Σ_j log σ(z_ij (s_ij + b)),   z_ij = +1 for the same item and −1 elsewhere
        InfoNCE  −1/2N Σ_i (log softmax_j(s_ij) + log softmax_j(s_ji)) at j = i

    Args:
        student, teacher: ``(N, width)``, of any length; no gradient flows into the teacher's.
        log_temperature: ln t.
        bias: b; None takes InfoNCE.
        same: bool ``(N, N)``: which items are the same; None: item i is only itself.

    Returns:
        scalar.

    Raises:
        BadInput: shapes that don't fit, or fewer than two items.

    Source: contour.txt §4, "SigLIP-style contrastive distillation"; :mod:`ctvlm_lib.alignment.siglip`.
    """
    if student.ndim == 2 and len(student) < 2:
        raise BadInput(
            f"a batch of {len(student)} has nothing to tell an item from; give the states of at least two questions"
        )
    x = functional.normalize(student, dim=-1)
    y = functional.normalize(teacher.detach(), dim=-1)
    if bias is None:
        return clip_loss(x, y, log_temperature, positive=same)
    return siglip_loss(x, y, log_temperature, bias, positive=same)


class Head(nn.Module):
    """What learns beside the student, and isn't kept: the matrix between the widths, temperature and bias.

    Args:
        student, teacher: widths of their states.
        loss: key of STARTS.
        seed: of the matrix.
    """

    def __init__(self, student: int, teacher: int, loss: str = SIGLIP, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = nn.Linear(student, teacher, bias=False)
        temperature, bias = STARTS[loss]
        self.log_temperature = nn.Parameter(torch.tensor(temperature))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self, student: Tensor, teacher: Tensor, same: Tensor | None = None) -> Tensor:
        """:func:`distillation_loss` of states ``(N, student's width)`` and ``(N, teacher's width)``."""
        return distillation_loss(
            self.projection(student.float()), teacher.float(), self.log_temperature, self.bias, same=same
        )


class Pair(nn.Module):
    """Student, head and frozen teacher as one module.

    So :func:`ctvlm_lib.training.train` checks that not a bit of the teacher changes, and takes up a run with the same
    teacher only.

    Args:
        student: as it came out of its last stage; what learnt there learns on.
        teacher: it is frozen whole, adapters included; None where the weight is 0.
        config: the student's.
    """

    def __init__(self, student: CtvlmModel, teacher: CtvlmModel | None, config: "Finetuning"):
        super().__init__()
        self.student, self.teacher, self.head = student, None, None
        if teacher is not None:
            self.teacher = frozen.freeze(teacher)
            widths = student.config.hidden_size, teacher.config.hidden_size
            self.head = Head(*widths, config.distillation_loss, config.seed)


def distill(
    student: CtvlmModel,
    teacher: CtvlmModel | None,
    lessons: Lessons,
    features: FeatureCache,
    config: "Finetuning",
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Curve:
    """Train a finetuned student beside its teacher.

    Args:
        student: trained in place.
        teacher: see :func:`ctvlm_lib.vlm.finetune_saving.load_teacher`; None takes the loss on answers alone.
        lessons: what is learnt. features: of all their pictures, for both.
        config: the student's.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        The curve; its part "distilled" is the weighted contrastive loss.

    Raises:
        BadInput: as ``train``, or several processes: the whole batch's questions are compared with each other.
    """

    def loss(pair: Pair, step: Step) -> dict[str, Tensor]:
        chosen = in_turn(len(lessons), step, config.pictures)
        batch = lessons.asked(chosen, step.rng("questions"), config.words)
        if pair.teacher is None:
            return loss_of_step(pair.student, lessons, features, batch, step, config)
        if step.world * step.parts > 1:
            raise BadInput("distillation compares all questions of a batch; start it without accelerate launch")
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        items: list[tuple] = []

        def keep(some: Sequence[Drawn], rows: Packed, kept, states: Tensor) -> None:
            mine.append(before_answers(states, rows))
            with torch.no_grad():
                theirs.append(before_answers(last_states(pair.teacher, rows, kept), rows))
            items.extend((one.key, words.ids[: words.start]) for one in some for words in one.words)

        parts = loss_of_step(pair.student, lessons, features, batch, step, config, keep)
        same = same_items(items).to(mine[0].device)
        found = pair.head(torch.cat(mine), torch.cat(theirs), same)
        return parts | {"distilled": config.distillation_weight * found}

    pair = Pair(student, teacher, config)
    return train(pair, loss, config.distillation(len(lessons)), folder=folder, on_step=on_step, progress=progress)


def before_answers(states: Tensor, rows: Packed) -> Tensor:
    """The state that foretells the first token of each answer: picture and question are read, the answer isn't.

    Args:
        states: ``(B, length, width)``.
        rows: the batch that they are of.

    Returns:
        ``(questions, width)``, row by row, in the order in which questions are packed.
    """
    return states[:, :-1][begins(rows)]


def same_items(items: Sequence[tuple]) -> Tensor:
    """bool ``(N, N)``: which items are equal. A question may stand twice in a batch, and isn't its own negative."""
    first = {item: number for number, item in reversed(list(enumerate(items)))}
    number = torch.tensor([first[item] for item in items])
    return number[:, None] == number[None]


def in_turn(count: int, step: Step, batch: int) -> np.ndarray:
    """Which of ``count`` pictures a step has: shuffled, each once before any comes again; the last batch is filled up.

    Args:
        count: of pictures. step: its number and seed. batch: pictures of a step.

    Returns:
        int ``(batch,)``.
    """
    epoch, part = divmod(step.number, steps_of_an_epoch(count, batch))
    order = replace(step, number=epoch).rng("order").permutation(count)
    return order.take(range(part * batch, (part + 1) * batch), mode="wrap")


def steps_of_an_epoch(count: int, batch: int) -> int:
    """Steps in which each of ``count`` pictures comes once."""
    return -(-count // batch)
