"""MedVista3D's pretraining on a user's CT-RATE and RadGenome-ChestCT: what is trained, on what and for how long.

What the paper leaves open, and what is decided here:

- *Regions*: those that RadGenome-ChestCT's tables begin with, ten, and the aorta, as local detection asks about it. A
  sentence belongs to each region that its path passes through.
- *Patches* of 8×16×16 voxels, a common space of 512 (CT-CLIP's), gradients of norm 1 at most, AdamW's usual betas.
- *The text tower* stays as it was pretrained, so that every text is computed once. Algorithm 1 updates it.
- *Enriched texts*: the paper's rewrites aren't public. See :mod:`ctvlm_lib.alignment.radgenome_texts`.
- *Thresholds* are chosen on patients of the training split that are held out, not on those that are scored.

Source: medvista3d.txt §4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch

from ctvlm_lib.alignment.local_global_training import Recipe
from ctvlm_lib.encoder.dual_pathway import DualPathway, dual_pathway
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Training

HEADS = (
    "lung", "trachea and bronchie", "pleura", "mediastinum", "heart", "esophagus", "bone", "breast", "thyroid",
    "abdomen",
)  # fmt: skip
REGIONS = (*HEADS, "aorta")
VOLUMES = 24_128  # of the training split
VARIANT = "medvista3d"
PAPER = {"batch": 32, "bank": 65_536, "width": 512}
TRAINING = Training(steps=1, lr=5e-5, weight_decay=1e-5, betas=(0.9, 0.999), precision="bf16", checkpoint_every=250)
UNSAID = ("workers", "checkpoint_every")  # options that change no result
SWITCHES = ("variant", "size_dhw_vox", "patch_dhw_vox", "pool_dhw", "hidden_size", "mlp_size", "layers", "heads",
            "skip_to_last")  # fmt: skip


@dataclass(frozen=True)
class OnRadGenome:
    """What is trained; the defaults are the paper's.

    Attributes:
        recipe: losses, pooling, bank, batch, rates. Its steps follow from the epochs, see :meth:`for_volumes`. Parts
            that a step is computed in (``accumulate``) don't see each other's texts; more processes are no such parts.
        epochs: how often each volume is seen.
        steps: fewer, for a trial; 0 goes by epochs.
        warmup_steps: in which the rate rises.
        regions: names in RadGenome-ChestCT's paths and masks.
        enriched: "labels", "none", or a file of rewrites, see :mod:`ctvlm_lib.alignment.radgenome_texts`.
        held_out: share of the training split's patients that thresholds are chosen on.
        encoder: some of SWITCHES, arguments of :func:`ctvlm_lib.encoder.dual_pathway.dual_pathway`.
        patients: the first so many of each split; 0 takes all.
        workers: threads that read volumes, in each process; each holds a whole scan meanwhile.

    Raises:
        BadInput: numbers that can't be, or a bank smaller than what a batch pushes at once.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(**PAPER, training=TRAINING))
    epochs: int = 16
    steps: int = 0
    warmup_steps: int = 200
    regions: tuple[str, ...] = REGIONS
    enriched: str = "labels"
    held_out: float = 0.02
    encoder: Mapping = field(default_factory=dict)
    patients: int = 0
    workers: int = 8

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.workers < 1 or min(self.steps, self.warmup_steps, self.patients) < 0:
            raise BadInput(
                "epochs and workers are at least 1, steps, warmup_steps and patients not negative; got"
                f" {self.epochs}, {self.workers}, {self.steps}, {self.warmup_steps} and {self.patients}"
            )
        if not 0 < self.held_out < 1:
            raise BadInput(f"held_out is a share of the patients between 0 and 1, got {self.held_out:g}")
        if unknown := sorted(set(self.encoder) - set(SWITCHES)):
            raise BadInput(f"the encoder has no option {unknown[0]!r}; it has {', '.join(SWITCHES)}")
        if not self.regions or len(set(self.regions)) != len(self.regions):
            raise BadInput(f"regions are names, each once, got {list(self.regions)}")
        pushed = self.recipe.batch * (1 + len(self.regions))
        if self.recipe.semantic and 0 < self.recipe.bank < pushed:
            raise BadInput(f"a bank of {self.recipe.bank} is smaller than the {pushed} texts of a batch; enlarge it")

    def build_encoder(self) -> DualPathway:
        """The encoder with random weights from the recipe's seed."""
        return dual_pathway(self.encoder.get("variant", VARIANT), seed=self.recipe.training.seed, **self.switches)

    @property
    def shapes(self) -> DualPathway:
        """The encoder without numbers, on the meta device: what has to be known of its shapes."""
        with torch.device("meta"):
            return self.build_encoder()

    @property
    def switches(self) -> dict:
        """Arguments of the encoder, those of the recipe included."""
        own = {"pooled_before": self.recipe.pooled_before, "local_vector": self.recipe.local_vector}
        return own | {name: value for name, value in self.encoder.items() if name != "variant"}

    def for_volumes(self, count: int) -> "OnRadGenome":
        """The same with as many steps as the epochs take over so many volumes; what fills no batch is left out.

        Raises:
            BadInput: fewer volumes than a batch.
        """
        if count < self.recipe.batch:
            raise BadInput(f"a batch of {self.recipe.batch} is larger than the {count} training volumes; lower it")
        steps = self.steps or self.epochs * (count // self.recipe.batch)
        training = replace(self.recipe.training, steps=steps, warmup_share=min(1.0, self.warmup_steps / steps))
        return replace(self, recipe=replace(self.recipe, training=training))


def on_radgenome(arm: Recipe, seed: int = 0, options: Mapping | None = None) -> OnRadGenome:
    """An arm of the cohort with the paper's sizes.

    Args:
        arm: says which losses, pooling and texts.
        seed: of everything random.
        options: fields of :class:`OnRadGenome`, :class:`~ctvlm_lib.alignment.local_global_training.Recipe` or
            :class:`~ctvlm_lib.training.Training` that are otherwise.

    Raises:
        BadInput: no such option, or a value that doesn't fit.
    """
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in (options or {}).items()}
    homes = {kind: {f.name for f in fields(kind)} for kind in (OnRadGenome, Recipe, Training)}
    homes[OnRadGenome] -= {"recipe"}
    homes[Recipe] -= homes[OnRadGenome] | {"training", "stem"}
    homes[Training] -= homes[OnRadGenome] | {"seed", "warmup_share"}
    own = {kind: {name: value for name, value in options.items() if name in names} for kind, names in homes.items()}
    if unknown := sorted(set(options).difference(*own.values())):
        there = ", ".join(sorted(set().union(*homes.values())))
        raise BadInput(f"alignment has no option {unknown[0]!r}; there are: {there}")
    sizes = PAPER | ({} if arm.bank else {"bank": 0})
    try:
        training = replace(TRAINING, seed=seed, **own[Training])
        recipe = replace(arm, **(sizes | own[Recipe]), patients=0, training=training)
        return OnRadGenome(recipe, **own[OnRadGenome])
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(f"an option of alignment has a value of the wrong kind: {error}") from None
