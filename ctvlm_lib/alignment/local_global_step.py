"""One step of local–global training: what is compared, and the weighted losses of it, bank included.

Where the patients come from is left to the caller: a cohort in memory, or volumes that are read from disk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ctvlm_lib.alignment.local_global import global_loss, local_loss, total_loss
from ctvlm_lib.alignment.semantic_bank import SemanticBank

if TYPE_CHECKING:
    from ctvlm_lib.alignment.local_global_training import LocalGlobal, Recipe


@dataclass(frozen=True, eq=False)
class Shown:
    """A share of a step's batch, on the model's device.

    Attributes:
        index: int ``(b,)``: which patients, numbers from 0.
        pictures: what the encoder reads, float32 ``(b, …)``.
        masks: bool ``(b, R, tokens)``: the tokens of each region.
        there: bool ``(b, R)``: the region has tokens and a sentence.
        texts: those of :func:`sources`: vectors ``(b, channels)`` of reports, ``(b, R, channels)`` of sentences.
        same: int ``(b, R)``: equal numbers are equal enriched sentences, each other's true pairs; None: no two are.
    """

    index: torch.Tensor
    pictures: torch.Tensor
    masks: torch.Tensor
    there: torch.Tensor
    texts: Mapping[str, torch.Tensor]
    same: torch.Tensor | None = None


def source_of(part: str) -> str:
    """Which texts a loss compares: "report", "region", "enriched_report" or "enriched_region"."""
    return ("enriched_" if part.endswith("semantic") else "") + ("region" if part.startswith("local") else "report")


def sources(parts: Iterable[str]) -> tuple[str, ...]:
    """The texts that these losses compare, each once."""
    return tuple(dict.fromkeys(map(source_of, parts)))


def losses(
    model: "LocalGlobal", shown: Shown, recipe: "Recipe", looked_up: list[tuple[int, int]]
) -> dict[str, torch.Tensor]:
    """The weighted parts of the loss; new enriched texts go into the bank after all searches.

    Args:
        model: in training.
        shown: this call's share of the step.
        recipe: which parts, and their weights.
        looked_up: gets for each search how many of the bank's answers were the patient's own older text, of how many.
    """
    volume, regions = model.images(shown.pictures, shown.masks)
    tau, parts, pushed = model.pairing.log_temperature, {}, []
    for part in recipe.parts:
        local, semantic = part.startswith("local"), part.endswith("semantic")
        text = model.pairing.texts(shown.texts[source_of(part)])
        if semantic and model.bank is not None:
            pushed.append(_rows(text, shown, local))
            text = _searched(model.bank, *pushed[-1], looked_up).view_as(text)
        parts[part] = (
            local_loss(regions, text, shown.there, tau, same=shown.same) if local else global_loss(volume, text, tau)
        )
    for rows in pushed:
        model.bank.push(*rows)
    return total_loss(parts, recipe.weights)


def _rows(text: torch.Tensor, shown: Shown, local: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts as rows ``(m, width)``, each with the number of its owner and whether it is a text at all."""
    regions = shown.there.shape[1]
    first = shown.index * (1 + regions)  # the report's number; the regions' follow
    if not local:
        return text, first, torch.ones_like(first, dtype=torch.bool)
    owners = first[:, None] + 1 + torch.arange(regions, device=first.device)
    return text.flatten(0, 1), owners.flatten(), shown.there.flatten()


def _searched(
    bank: SemanticBank, text: torch.Tensor, owners: torch.Tensor, real: torch.Tensor, looked_up: list[tuple[int, int]]
) -> torch.Tensor:
    """The bank's nearest texts in the place of the enriched ones."""
    answer = bank.nearest(text, owners)
    looked_up.append((int((answer.own & real).sum()), int(real.sum())))
    return answer.text
