"""What a vision–language model learns from: answer tokens, closed answers with focal weights, a penalty on LoRA.

contour.txt §4 names three terms and no formula; dualbox.txt §3.2 writes two of them, λ_cls L_focal + λ_gen L_nll.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import lora_parameters


class LossWeights(NamedTuple):
    """λ of each term: closed answers, open ones, and :func:`lora_penalty`; the contour paper's values.

    The dual-box paper has no penalty: ``reg=0``.

    Source: contour.txt §4; dualbox.txt §3.2.
    """

    cls: float = 1.0
    gen: float = 1.0
    reg: float = 1e-4


def focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Mean of −α_t (1 − p_t)^γ log p_t: easy examples, of which the model is sure, count little.

    Args:
        logits: ``(N, classes)``.
        targets: ``(N,)``, classes.
        gamma: γ; 0 gives cross-entropy.
        alpha: ``(classes,)``, weight of each class, e.g. of :func:`class_balanced_alpha`; None weighs all alike. The
            mean is over examples, not over their weights.
        weights: ``(N,)``, of each example, where not its class but what it is a part of has a weight: a token of an
            answer that is learnt as text has that of the answer.

    Returns:
        scalar.

    Raises:
        BadInput: shapes that don't fit, a target that is no class, or γ below 0.

    Source: Lin et al., Focal loss for dense object detection, equation (5); γ = 2 of contour.txt §4.
    """
    if gamma < 0:
        raise BadInput(f"gamma is {gamma}; give 0 for cross-entropy, or more")
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        raise BadInput(
            f"logits and targets are (N, classes) and (N,), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    classes = logits.shape[1]
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        reach = f"{int(targets.min())} to {int(targets.max())}"
        raise BadInput(f"targets reach from {reach} and there are {classes} classes; give 0 to {classes - 1}")
    if alpha is not None and alpha.shape != (classes,):
        raise BadInput(f"alpha is {tuple(alpha.shape)} for {classes} classes; give one weight for each")
    if weights is not None and weights.shape != targets.shape:
        raise BadInput(f"weights are {tuple(weights.shape)} for {len(targets)} examples; give one for each")
    log_p = functional.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    # −expm1 is 1 − p_t without cancelling; where p_t rounds to 1, the power's gradient for γ < 1 would be infinite
    miss = -torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).tiny))
    loss = -(miss**gamma) * log_p
    if weights is not None:
        loss = weights.to(loss) * loss
    return (loss if alpha is None else alpha.to(loss)[targets] * loss).mean()


def class_balanced_alpha(counts: Sequence[int], beta: float | None = None) -> Tensor:
    """Weights that make rare classes count as much as frequent ones.

    The papers say "class-balanced" and no more.

    Args:
        counts: training examples of each class.
        beta: None weighs by 1/n. A number in [0, 1) weighs by (1 − β)/(1 − βⁿ), Cui et al.'s effective number of
            samples: 0 weighs all alike, near 1 it is 1/n.

    Returns:
        float32 ``(classes,)``, 1 on average over the classes that occur; 0 for a class that doesn't.

    Raises:
        BadInput: no examples, or β outside [0, 1).

    Source: contour.txt §4, "class-balanced focal loss"; Cui et al., Class-balanced loss based on effective number of
    samples, equation (2).
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    if n.ndim != 1 or not bool((n >= 0).all()) or not bool(n.any()):
        raise BadInput(f"counts are {list(counts)}; give the number of training examples of each class")
    if beta is not None and not 0 <= beta < 1:
        raise BadInput(f"beta is {beta}; give a number from 0 to below 1, such as 0.999, or None for 1/n")
    occurs = n > 0
    effective = n if beta is None else (1 - torch.as_tensor(beta, dtype=n.dtype) ** n) / (1 - beta)
    weights = torch.where(occurs, 1 / effective.where(occurs, 1.0), 0.0)
    return (weights / weights[occurs].mean()).float()


def lora_penalty(model: nn.Module) -> Tensor:
    """ℓ₂ penalty: sum of squares of all LoRA matrices, and of nothing else.

    At step 0 B is zero, and peft draws A uniformly with variance 1/(3·inputs): every adapter adds about r/3. With r 16
    on all seven matrices of a block, λ 1e-4 gives 0.09 for 24 blocks (0.5B) and 0.13 for 36 (3B).

    Returns:
        scalar.

    Raises:
        BadInput: a model without adapters.

    Source: contour.txt §4, "regularises only the LoRA parameters, contributing about five percent of the initial loss".
    """
    matrices = lora_parameters(model)
    if not matrices:
        raise BadInput("the model has no LoRA adapters to penalise; make them with with_lora, or leave the penalty out")
    return torch.stack([(matrix.float() ** 2).sum() for matrix in matrices]).sum()
