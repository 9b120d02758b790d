"""MedVista3D's losses: a volume with its report, each region with its sentence, and both with enriched texts.

With s_ij the similarity of image i and text j over the temperature τ, one direction of a loss over N pairs is

    −1/N Σ_i log exp(s_ii) / Σ_j exp(s_ij)                                                          (eqs. 2, 12)

and a region's rivals are the same region of the other patients, the mean taken over all regions (eqs. 4, 14).

In (4) and (14) the print closes the numerator's exponential before the τ, so that it reads log(exp(cos)/τ) over a sum
of exp(cos/τ). That is no softmax; ``temperature="as printed"`` computes it, "inside" what (2) and (12) print.

The four losses have unlike weights in print: (1) and (3) halve the sum of two directions and (9) halves again; (11),
(13), (15) and (16) halve nothing. Of a mean over both directions that makes ½, ½, 2 and 2: see :data:`WEIGHTS`.

Source: medvista3d.txt §3.1, eqs. (1)–(4) and (9), §3.2, eqs. (11)–(16).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ctvlm_lib.alignment.clip import clip_loss
from ctvlm_lib.alignment.gather import gathered
from ctvlm_lib.errors import BadInput

PARTS = ("global", "local", "global semantic", "local semantic")
WEIGHTS: dict[str, dict[str, float]] = {
    "as printed": dict(zip(PARTS, (0.5, 0.5, 2.0, 2.0), strict=True)),
    "balanced": dict.fromkeys(PARTS, 0.5),
}
TEMPERATURES = ("inside", "as printed")


def global_loss(image: Tensor, text: Tensor, log_temperature: Tensor | float) -> Tensor:
    """InfoNCE of volumes and texts, eq. (1): half the sum of both directions; over all processes.

    Args:
        image, text: ``(N, width)``, of length one; pair i is row i of both.
        log_temperature: logarithm of 1/τ.

    Raises:
        BadInput: shapes that don't fit.
    """
    return clip_loss(gathered(image), gathered(text), log_temperature)


def local_loss(
    image: Tensor,
    text: Tensor,
    there: Tensor,
    log_temperature: Tensor | float,
    *,
    same: Tensor | None = None,
    temperature: str = "inside",
) -> Tensor:
    """InfoNCE of regions and their sentences, eq. (3); over all processes.

    Args:
        image, text: ``(N, R, width)``, of length one: region r of patient i with its sentence.
        there: bool ``(N, R)``: the region has tokens and a sentence. What isn't there is no pair and nobody's rival.
        log_temperature: logarithm of 1/τ.
        same: int ``(N, R)``: sentences with the same number are the same; each is then a true text of all these
            regions, as in fVLM. None: as printed, where a sentence is a rival even of a region that it describes.
        temperature: "inside" the exponential or "as printed".

    Returns:
        Scalar: half the sum of both directions, each the mean over all pairs that are there; 0 if none is.

    Raises:
        BadInput: shapes that don't fit, an unknown temperature, or ``same`` with the printed temperature.
    """
    if image.shape != text.shape or image.ndim != 3 or there.shape != image.shape[:2]:
        raise BadInput(
            f"regions and sentences are (N, R, width) and which are there (N, R), got {tuple(image.shape)},"
            f" {tuple(text.shape)} and {tuple(there.shape)}"
        )
    if temperature not in TEMPERATURES:
        raise BadInput(f"temperature is {temperature!r}; choose one of {', '.join(TEMPERATURES)}")
    if same is not None and temperature == "as printed":
        raise BadInput("equation (4) as printed has one true text an image; leave same out, or take 'inside'")
    image, text, there = gathered(image), gathered(text), gathered(there)
    cosine = torch.einsum("irw,jrw->rij", image.float(), text.float())
    scale = torch.as_tensor(log_temperature, device=cosine.device).exp()
    pair = there.mT[:, :, None] & there.mT[:, None, :]  # (R, N, N)
    if same is None:
        true = torch.eye(len(image), dtype=torch.bool, device=cosine.device)[None] & pair
    else:
        numbers = gathered(same).mT
        true = (numbers[:, :, None] == numbers[:, None, :]) & pair
    both = [_one_way(cosine, scale, pair, true, temperature)]
    both.append(_one_way(cosine.mT, scale, pair, true.mT, temperature))
    return sum(both) / 2


def total_loss(parts: Mapping[str, Tensor], weights: str | Mapping[str, float] = "as printed") -> dict[str, Tensor]:
    """The parts with their weights; their sum is eq. (16), of the first two alone eq. (9).

    Args:
        parts: some of PARTS, each as :func:`global_loss` and :func:`local_loss` give it: a mean of two directions.
        weights: a name of WEIGHTS, or a weight for each part.

    Raises:
        BadInput: an unknown part or name.
    """
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise BadInput(f"weights are {weights!r}; choose one of {', '.join(WEIGHTS)}, or give one for each part")
        weights = WEIGHTS[weights]
    if unknown := [name for name in parts if name not in PARTS or name not in weights]:
        raise BadInput(f"no weight for {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return {name: weights[name] * value for name, value in parts.items()}


def _one_way(cosine: Tensor, scale: Tensor, pair: Tensor, true: Tensor, temperature: str) -> Tensor:
    """−mean over all existing rows of log numerator / denominator; rows run over the last axis but one."""
    rows = true.any(dim=-1)
    if not rows.any():
        return cosine.sum() * 0.0
    low = torch.finfo(cosine.dtype).min
    logits = (cosine * scale).masked_fill(~pair, low)[rows]  # (rows, N)
    truth = true[rows]
    below = torch.logsumexp(logits, dim=-1)
    if temperature == "inside":
        share = truth / truth.sum(dim=-1, keepdim=True)
        above = (logits.masked_fill(~truth, 0.0) * share).sum(dim=-1)
    else:
        above = cosine[rows][truth] + scale.log()  # log(exp(cos) / τ)
    return (below - above).mean()
