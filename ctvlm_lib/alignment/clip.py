"""CLIP's loss: each image picks its text among the batch's, and each text its image."""

import torch
from torch.nn import functional

from ctvlm_lib.alignment.gather import gathered, processes
from ctvlm_lib.alignment.siglip import check_pairs, diagonal, similarities


def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    log_temperature: torch.Tensor | float,
    *,
    positive: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric softmax loss (InfoNCE) of a batch.

    Args:
        image: ``(B, width)``, of length one.
        text: ``(N, width)``, of length one.
        log_temperature: logarithm of the factor on the similarities. M3D's and Med3DVLM's code multiply by the
            logarithm itself; here its exponential is meant, as in CLIP.
        positive: bool ``(B, N)``; where an image has several true texts (or a text several images), the target is
            spread evenly over them. None: text i belongs to image i.

    Returns:
        Scalar: mean of the two cross-entropies. Rows and columns without a positive are left out.

    Raises:
        BadInput: shapes that don't fit.

    Source: CLIP (arXiv 2103.00020), figure 3.
    """
    check_pairs(image, text, positive)
    if positive is None:
        positive = diagonal(len(image), len(text), device=image.device)
    logits = similarities(image, text, log_temperature)
    return (_picked(logits, positive) + _picked(logits.mT, positive.mT)) / 2


def clip_loss_across(
    image: torch.Tensor,
    text: torch.Tensor,
    log_temperature: torch.Tensor | float,
    *,
    identity: torch.Tensor | None = None,
) -> torch.Tensor:
    """CLIP's loss of a batch that is spread over processes: every process gathers all features, gradients return.

    Args:
        image, text: ``(B / processes, width)``, this process' share.
        log_temperature: the same in each process.
        identity: int ``(B / processes,)``: texts with the same number are the same; None: all differ.

    Returns:
        The loss of the whole batch, the same in every process.
    """
    if processes() == 1 and identity is None:
        return clip_loss(image, text, log_temperature)
    everyone = None if identity is None else gathered(identity)
    positive = None if everyone is None else everyone[:, None] == everyone[None]
    return clip_loss(gathered(image), gathered(text), log_temperature, positive=positive)


def _picked(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the rows against their positives in equal shares."""
    has = positive.any(dim=1)
    shares = positive.to(logits.dtype)[has]
    return functional.cross_entropy(logits[has], shares / shares.sum(dim=1, keepdim=True))
