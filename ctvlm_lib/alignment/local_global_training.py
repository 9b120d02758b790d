"""Training a dual-pathway encoder with any of MedVista3D's four losses: recipe, model, objective.

Decided here, as the paper leaves it open: volumes and regions share one projection, reports and sentences another, and
all four losses one temperature; the text tower stays as it was pretrained, its projection is trained; the bank holds
projected, detached vectors; global texts are pushed before local ones, each after its search (Algorithm 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ctvlm_lib.alignment.grounded import Grounded, Texts
from ctvlm_lib.alignment.heads import Pairing
from ctvlm_lib.alignment.local_global import PARTS, WEIGHTS
from ctvlm_lib.alignment.local_global_step import Shown, losses, sources
from ctvlm_lib.alignment.semantic_bank import SemanticBank
from ctvlm_lib.encoder.dual_pathway import DualPathway, boxed_masks, dual_pathway, pooled_masks
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.protocol import check_budget
from ctvlm_lib.training import Curve, Step, Training, train

POOLING = ("mask", "box")


@dataclass(frozen=True)
class Recipe:
    """What is trained on what.

    Attributes:
        parts: which of the four losses.
        weights: of the parts, a name of :data:`ctvlm_lib.alignment.local_global.WEIGHTS`.
        pooling: a region's tokens are those of its "mask", or of its bounding "box".
        threshold: of mask pooling.
        pooled_before: number of the block; 0 is the last. local_vector: see the encoder.
        same_text: regions whose enriched sentences are the same are each other's true pairs, as in fVLM.
        bank: how many vectors; 0 leaves the bank out: an enriched text is compared with its image itself. 2,048 is a
            quarter of the cohort's epoch, as 65,536 is of RadGenome-ChestCT's with ten regions.
        neighbours, overflow, start, exclude_self: of the bank.
        width: of the common space. batch: volumes a step, over all processes.
        stem: name of the frozen encoder whose tokens are read, where it reads tokens.
        patients: the first so many of the training split; 0 takes all.
        training: steps, rates, seed.

    Raises:
        BadInput: unknown or missing parts, an unknown option, or a bank smaller than what a batch pushes at once.
    """

    parts: tuple[str, ...] = PARTS
    weights: str = "as printed"
    pooling: str = "mask"
    threshold: float = 0.5
    pooled_before: int = 0
    local_vector: str = "class token"
    same_text: bool = False
    bank: int = 2048
    neighbours: int = 1
    overflow: str = "wrap"
    start: str = "empty"
    exclude_self: bool = False
    width: int = 64
    batch: int = 16
    patients: int = 0
    stem: str = "A"
    training: Training = field(default_factory=lambda: Training(steps=400, lr=2e-3))

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) - set(PARTS):
            raise BadInput(f"parts are any of {', '.join(PARTS)}, got {list(self.parts)}")
        for what, value, known in (("weights", self.weights, WEIGHTS), ("pooling", self.pooling, POOLING)):
            if value not in known:
                raise BadInput(f"{what} is {value!r}; choose one of {', '.join(known)}")
        pushed = self.batch * (1 + len(REGIONS))
        if 0 < self.bank < pushed and self.semantic:
            raise BadInput(
                f"a bank of {self.bank} is smaller than what one batch pushes, {self.batch} reports and up to"
                f" {pushed - self.batch} sentences; take at least {pushed}, or 0 for none"
            )

    @property
    def semantic(self) -> bool:
        """Whether enriched texts take part."""
        return any(part.endswith("semantic") for part in self.parts)


class LocalGlobal(nn.Module):
    """A dual-pathway encoder, the projections of both modalities, and the bank.

    Args:
        encoder: reads volumes or tokens.
        text_width: channels of a text's vector.
        recipe: width, bank, seed.
    """

    def __init__(self, encoder: DualPathway, text_width: int, recipe: Recipe):
        super().__init__()
        self.encoder = encoder
        self.pairing = Pairing(encoder.config.hidden_size, text_width, recipe.width, loss="clip",
                               seed=recipe.training.seed + 1)  # fmt: skip
        self.bank = None
        if recipe.semantic and recipe.bank:
            self.bank = SemanticBank(recipe.width, recipe.bank, recipe.neighbours, recipe.overflow, recipe.start,
                                     recipe.exclude_self, seed=recipe.training.seed)  # fmt: skip

    def images(self, pictures: torch.Tensor, tokens_of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Volumes ``(B, width)`` and regions ``(B, R, width)``, of length one; pictures are what the encoder reads."""
        volume, regions = self.encoder.both(pictures, tokens_of)
        return self.pairing.images(volume), self.pairing.images(regions)

    def volumes(self, pictures: torch.Tensor) -> torch.Tensor:
        """The global pathway alone: ``(B, width)``."""
        return self.pairing.images(self.encoder.encode(pictures)[1])


def build(recipe: Recipe, text_width: int, **encoder) -> LocalGlobal:
    """The model before training, random from the recipe's seed.

    Args:
        recipe: what for.
        text_width: channels of a text's vector.
        encoder: any argument of :func:`ctvlm_lib.encoder.dual_pathway.dual_pathway`.
    """
    switches = {"pooled_before": recipe.pooled_before, "local_vector": recipe.local_vector} | encoder
    variant = switches.pop("variant", "phantom")
    return LocalGlobal(dual_pathway(variant, seed=recipe.training.seed, **switches), text_width, recipe)


def tokens_of(cohort: Grounded, encoder: DualPathway, recipe: Recipe) -> torch.Tensor:
    """bool ``(n, 10, tokens)``: what a recipe takes for each region of a cohort."""
    grid = encoder.grids(encoder.config.size_dhw_vox)[0]
    masks = pooled_masks(cohort.share(grid), recipe.threshold)
    return boxed_masks(masks, grid) if recipe.pooling == "box" else masks


@dataclass(eq=False)
class Objective:
    """The losses of a recipe on a cohort, a function of model and step.

    Attributes:
        recipe: what is minimised.
        pictures: what the encoder reads, one a patient: ``(n, …)``, float16 or float32.
        masks: bool ``(n, 10, tokens)``.
        there: bool ``(n, 10)``.
        texts: of the patients.
        looked_up: for each step how many of the bank's answers were the patient's own older text, and of how many.
    """

    recipe: Recipe
    pictures: torch.Tensor
    masks: torch.Tensor
    there: torch.Tensor
    texts: Texts
    looked_up: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.pictures) < self.recipe.batch:
            raise BadInput(f"a batch of {self.recipe.batch} is larger than the cohort of {len(self.pictures)} patients")
        self.there = self.there & self.masks.any(dim=-1)

    def __call__(self, model: LocalGlobal, step: Step) -> dict[str, torch.Tensor]:
        """The weighted parts of the loss of this step's share."""
        drawn = step.rng("batch").choice(len(self.pictures), self.recipe.batch, replace=False)
        index = torch.from_numpy(step.mine(drawn))
        device = next(model.parameters()).device
        shown = Shown(
            index.to(device), self.pictures[index].float().to(device), self.masks[index].to(device),
            self.there[index].to(device),
            {name: getattr(self.texts, name)[index].to(device) for name in sources(self.recipe.parts)},
            self.texts.same_region[index].to(device) if self.recipe.same_text else None,
        )  # fmt: skip
        return losses(model, shown, self.recipe, self.looked_up)


def fit(
    recipe: Recipe,
    cohort: Grounded,
    texts: Texts,
    pictures: torch.Tensor,
    *,
    encoder: dict | None = None,
    folder: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> tuple[LocalGlobal, Curve, dict]:
    """Train a recipe.

    Args:
        recipe: what.
        cohort, texts: the training patients.
        pictures: what the encoder reads, ``(n, …)``.
        encoder: see :func:`build`.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        The model, its curve, and with a bank ``own_text_share``: of its answers, in the steps of this call, those that
        were the patient's own older text.

    Raises:
        BadInput: settings that don't go together, or more patients than there are.
    """
    check_budget(recipe.patients, len(pictures))
    if recipe.patients:
        n = recipe.patients
        texts = Texts(**{name: value[:n] for name, value in vars(texts).items()})
        pictures = pictures[:n]
    model = build(recipe, texts.report.shape[1], **(encoder or {}))
    model.pairing.centre_on(texts.all())
    masks = tokens_of(cohort, model.encoder, recipe)[: len(pictures)]
    objective = Objective(recipe, pictures, masks, torch.from_numpy(cohort.there[: len(pictures)]), texts)
    curve = train(model, objective, recipe.training, folder=folder, on_step=on_step, progress=progress)
    own, asked = (sum(counts) for counts in zip((0, 0), *objective.looked_up, strict=True))
    return model, curve, {"own_text_share": own / asked} if asked else {}
