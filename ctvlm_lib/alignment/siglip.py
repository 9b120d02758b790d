"""SigLIP: every image–text pair of a batch is one yes-or-no decision.

    L = −1/B Σ_i Σ_j log σ(z_ij (t x_i·y_j + b)),   t = exp(t')

with z_ij = +1 where the text belongs to the image and −1 elsewhere. The Med3DVLM paper prints z = 0 for pairs that
don't belong (eq. 5) and −t for t: with z = 0 each such pair would add the constant log 2, so SigLIP's ±1 is meant.
"""

import math

import torch
import torch.utils.checkpoint
from torch.nn import functional

from ctvlm_lib.alignment.gather import ring
from ctvlm_lib.errors import BadInput

SIGLIP_INIT = (math.log(10), -10.0)  # (t', b) of the SigLIP paper: at first every pair is called negative
RELEASED_INIT = (math.log(1 / 0.07), 0.0)  # (t', b) of Med3DVLM's code: at first every pair is undecided


def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    log_temperature: torch.Tensor | float,
    bias: torch.Tensor | float,
    *,
    positive: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Sigmoid loss of all pairs of images and texts.

    Args:
        image: ``(B, width)``, of length one.
        text: ``(N, width)``, of length one; without ``positive``, N = B and text i belongs to image i.
        log_temperature: t', a scalar; the logits are scaled by its exponential.
        bias: b, a scalar, added to the logits.
        positive: bool ``(B, N)``: which texts are true of which images. :func:`same_text` makes it where one text
            stands several times in a batch; any captions may be shared by any images.
        chunk: texts compared at a time. None compares all at once and keeps B·N logits for the gradient; a number
            keeps B·chunk, the rest is computed again, and value and gradient are the same.

    Returns:
        Scalar: the sum over all pairs, divided by the number of images.

    Raises:
        BadInput: shapes that don't fit, or a chunk below 1.

    Source: SigLIP (arXiv 2303.15343), algorithm 1; med3dvlm.txt eq. (5).
    """
    check_pairs(image, text, positive)
    if chunk is None:
        return _pairs(image, text, positive, log_temperature, bias) / len(image)
    if chunk < 1:
        raise BadInput(f"a chunk holds at least one text, got {chunk}")
    total = image.new_zeros(())
    for start in range(0, len(text), chunk):
        part = slice(start, start + chunk)
        true = None if positive is None else positive[:, part]
        # recomputed in the backward pass, so that no more than one chunk's logits are ever kept
        total = total + torch.utils.checkpoint.checkpoint(
            _pairs, image, text[part], true, log_temperature, bias, start, use_reentrant=False
        )
    return total / len(image)


def siglip_loss_across(
    image: torch.Tensor,
    text: torch.Tensor,
    log_temperature: torch.Tensor | float,
    bias: torch.Tensor | float,
    *,
    identity: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sigmoid loss of a batch that is spread over processes; with one process, :func:`siglip_loss`.

    The texts go round from process to process, as SigLIP proposes: each holds its own images and one neighbour's texts
    at a time, never the whole B×B matrix.

    Args:
        image, text: ``(B / processes, width)``, this process' share; the same size in each.
        log_temperature, bias: scalars, the same in each process.
        identity: int ``(B / processes,)``: texts with the same number are the same; None: all differ.

    Returns:
        This process' share of the loss times the number of processes, so that the mean over processes, and that of
        the gradients, is what one process would get.

    Source: SigLIP §3.3, chunked implementation.
    """
    total = image.new_zeros(())
    for shift, texts, theirs in ring(text, identity):
        if identity is None:
            positive = torch.eye(len(image), len(texts), dtype=torch.bool, device=image.device) & (shift == 0)
        else:
            positive = identity[:, None] == theirs[None]
        total = total + _pairs(image, texts, positive, log_temperature, bias)
    return total / len(image)


def same_text(texts: list[str]) -> torch.Tensor:
    """bool ``(B, B)``: whether two texts are equal; the ``positive`` of a batch where a text may stand twice."""
    first = {text: number for number, text in reversed(list(enumerate(texts)))}
    identity = torch.tensor([first[text] for text in texts])
    return identity[:, None] == identity[None]


def check_pairs(image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None) -> None:
    """Raise BadInput unless images, texts and positives fit each other."""
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or not len(image) or not len(text):
        raise BadInput(
            f"images and texts are (B, width) and (N, width), got {tuple(image.shape)} and {tuple(text.shape)};"
            " project both to one width"
        )
    if positive is None:
        if len(image) != len(text):
            raise BadInput(f"{len(image)} images and {len(text)} texts are no pairs; say with positive= which belong")
    elif positive.dtype != torch.bool or positive.shape != (len(image), len(text)):
        raise BadInput(
            f"positive must be bool ({len(image)}, {len(text)}), got {positive.dtype} {tuple(positive.shape)}"
        )


def diagonal(images: int, texts: int, start: int = 0, device=None) -> torch.Tensor:
    """bool ``(images, texts)``: text i, counted from ``start``, belongs to image i."""
    rows = torch.arange(images, device=device)
    return rows[:, None] == torch.arange(start, start + texts, device=device)


def _pairs(image, text, positive, log_temperature, bias, start=0) -> torch.Tensor:
    """−Σ log σ(z (t x·y + b)) over all pairs; without positives, text i is image ``start + i``'s."""
    if positive is None:
        positive = diagonal(len(image), len(text), start, image.device)
    logits = similarities(image, text, log_temperature) + bias  # (B, N)
    return -functional.logsigmoid(torch.where(positive, logits, -logits)).sum()


def similarities(image: torch.Tensor, text: torch.Tensor, log_temperature: torch.Tensor | float) -> torch.Tensor:
    """t x·y of all pairs, at least in float32: autocast's bfloat16 would round logits of 10 to sixteenths."""
    with torch.autocast(image.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        scale = torch.as_tensor(log_temperature, dtype=wide, device=image.device).exp()
        return scale * (image.to(wide) @ text.to(wide).mT)
