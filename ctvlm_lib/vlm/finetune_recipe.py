"""How a vision–language model is finetuned: one recipe, as arms, records and sources files hold it.

Source: med3dvlm.txt §3.3 and §3.4 (the two stages), contour.txt §3.2 and §4, dualbox.txt §3.2 and §4.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Training
from ctvlm_lib.vlm import distillation, smollm2
from ctvlm_lib.vlm.colour import way_of
from ctvlm_lib.vlm.losses import LossWeights

PROJECTOR, LORA, ALL = "projector", "LoRA", "all weights"
SIZE_DHW_VOX = (32, 64, 64)  # of the cohort


@dataclass(frozen=True)
class Finetuning:
    """How a vision–language model is made; two of them that differ in nothing but ``condition`` see the same questions.

    Attributes:
        encoder: name of a shipped encoder, such as "B"; with ``variant`` weights of a DCFormer in a released layout.
        condition: what is drawn before it sees a volume, and how questions are worded.
        colour: how coloured lines get in, one of ``ctvlm_lib.vlm.colour.WAYS``; "" what the protocol fixes for the
            encoder: colours if it reads three channels, their luminance if it reads one.
        decoder: size of :data:`ctvlm_lib.vlm.ladder.SIZES`, "smollm2", see :mod:`ctvlm_lib.vlm.smollm2`, or a language
            model in the hub's layout.
        seed: of the projector's weights, the adapters' and the steps.
        projector: name in ``ctvlm_lib.vlm.projector.PROJECTORS``, or "merged", see
            :mod:`ctvlm_lib.vlm.projector_merged`. projector_options: its arguments.
        projector_steps, projector_lr: of the first stage, in which the decoder is fixed: the projector learns and,
            where there are any, slice attention and the head.
        lora_steps, lora_lr: of the second stage; the same and adapters.
        projector_pictures: of a step of the first stage; 0 takes ``pictures``. projector_yes_no: whether yes/no
            questions are learnt in it.
        pictures: of a step. words: room for the questions behind each, see :meth:`ctvlm_lib.vlm.lessons.Lessons.draw`.
        patients: of the training split, the first so many, which must be there; 0 takes all.
        regions: of each training patient that are learnt from, each with its own picture, or all where there are
            fewer; 0 takes all.
        kinds: of question; () takes all.
        report_weight: of the loss on reports, which have a mean of their own: they are ten times as long as answers.
        blind: every picture is blank: what the words alone teach.
        rank, alpha, dropout, targets, train_norms: of :func:`ctvlm_lib.vlm.lora.with_lora`.
        slice_attention: "", "SSA" or "MSSA", see :mod:`ctvlm_lib.vlm.slice_attention`; it learns in both stages.
            slice_form: "as meant" or "as printed". slice_blocks: k, in front of how many blocks. slice_by: whether
            MSSA's bias goes by the distance between slices, "slice", or between image vectors, "vector"; behind a
            projector that mixes tokens both are the latter, see :func:`ctvlm_lib.vlm.slice_attention.slices_of`.
        from_scratch: a decoder with random weights, of which all learn, in one stage of both stages' steps.
        focal_gamma: γ of the focal loss on closed answers, which then has a mean of its own beside that of the open
            ones; None takes one mean negative log-likelihood over all answers' tokens.
        class_balanced: the focal loss weighs each closed answer by how seldom it occurs in the lessons, see
            :func:`ctvlm_lib.vlm.losses.class_balanced_alpha`.
        closed_weight, open_weight: λ of the focal loss and of that on open answers' tokens.
        l2: λ of the penalty on LoRA's matrices.
        head_answers: the answers among which a head chooses for closed questions, see
            :mod:`ctvlm_lib.vlm.closed_head`; it learns in both stages. () has none, and closed answers are learnt as
            texts.
        teacher: name of the finetuned model, without its seed, that is distilled from behind the last stage; "" for
            none. That of the same seed is taken.
        distillation_weight: of the contrastive loss beside that on answers; 0 leaves the latter alone: what the epoch
            does without a teacher.
        distillation_loss: "SigLIP" or "InfoNCE". distillation_steps: 0 takes one epoch.
        warmup_share: of a stage's steps, 0…1, in which the rate rises.
        warmup_steps: so many in its place in the stage in which the decoder learns, all of it where it is shorter; 0
            takes the share.
        weight_decay, precision, checkpoint_every, accumulate: of :class:`ctvlm_lib.training.Training`.
        checkpointing: the decoder keeps each layer's input alone for the backward pass, and computes the rest again:
            less memory, more time, the same losses.
        look_every: steps of the last stage between two looks at the loss on validation patients, which the record keeps
            as a curve of its own; 0 never looks.
        patience: the last stage ends after so many looks in a row in which the loss wasn't lower than ever before, see
            :class:`ctvlm_lib.vlm.finetune_loss.Patience`; 0 takes all steps. What the last step left is kept.
        variant: of a released DCFormer; "" takes a shipped encoder.
        size_dhw_vox, scale: of the volumes, see :class:`ctvlm_lib.vlm.image.ImageInput`.
    """

    encoder: str = "B"
    condition: str = "contour"
    colour: str = ""
    decoder: str = "small"
    seed: int = 0
    projector: str = "mixer"
    projector_options: tuple[tuple[str, object], ...] = ()
    projector_steps: int = 200
    projector_lr: float = 3e-3
    lora_steps: int = 400
    lora_lr: float = 3e-3
    projector_pictures: int = 0
    projector_yes_no: bool = True
    pictures: int = 24
    words: int = 120
    patients: int = 0
    regions: int = 4
    kinds: tuple[str, ...] = ()
    report_weight: float = 0.3
    blind: bool = False
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: str = "attention + MLP"
    train_norms: bool = False
    slice_attention: str = ""
    slice_form: str = "as meant"
    slice_blocks: int = 2
    slice_by: str = "vector"
    from_scratch: bool = False
    focal_gamma: float | None = None
    class_balanced: bool = False
    closed_weight: float = 1.0
    open_weight: float = 1.0
    l2: float = 0.0
    head_answers: tuple[str, ...] = ()
    teacher: str = ""
    distillation_weight: float = 0.1
    distillation_loss: str = distillation.SIGLIP
    distillation_steps: int = 0
    warmup_share: float = 0.08
    warmup_steps: int = 0
    weight_decay: float = 0.02
    precision: str = "no"
    checkpoint_every: int = 100
    accumulate: int = 1
    checkpointing: bool = False
    look_every: int = 0
    patience: int = 0
    variant: str = ""
    size_dhw_vox: tuple[int, int, int] = SIZE_DHW_VOX
    scale: str = "cohort"

    def __post_init__(self) -> None:
        for name in ("pictures", "words", "accumulate"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be a whole number from 1, got {getattr(self, name)}")
        if min(self.patients, self.regions) < 0:
            raise BadInput(
                f"patients is {self.patients} and regions {self.regions}; give how many are learnt from, or 0 for all"
            )
        if min(self.projector_steps, self.lora_steps) < 0 or not self.projector_steps + self.lora_steps:
            raise BadInput("projector_steps and lora_steps count steps, and one of them must be 1 or more")
        if min(self.projector_pictures, self.warmup_steps) < 0 or not 0 <= self.warmup_share <= 1:
            raise BadInput(
                f"projector_pictures is {self.projector_pictures}, warmup_steps {self.warmup_steps} and warmup_share"
                f" {self.warmup_share:g}; give numbers of pictures and steps, or 0, and a share 0…1"
            )
        for pictures in (self.pictures, self.pictures_of(PROJECTOR)):
            if pictures % self.accumulate:
                raise BadInput(
                    f"{pictures} pictures can't be computed in {self.accumulate} equal parts; set pictures and"
                    " projector_pictures to multiples of accumulate"
                )
        if self.patience < 0 or self.look_every < 0:
            raise BadInput(
                f"patience is {self.patience} and look_every {self.look_every}; give numbers of looks and steps, or 0"
            )
        if self.patience and not self.look_every:
            raise BadInput("patience counts looks at validation patients, and there are none; set look_every, e.g. 100")
        self._check_objective()
        way_of(self.colour, 3)  # whether the encoder can read it is seen when it is there
        if self.from_scratch and self.l2:
            raise BadInput("l2 is a penalty on LoRA, and a decoder from scratch has none; set l2 to 0")
        if self.from_scratch and self.decoder == smollm2.ASSET:
            raise BadInput("smollm2 is there because it was pretrained; train a size of the ladder from scratch")
        if min(self.distillation_weight, self.distillation_steps) < 0:
            raise BadInput("distillation_weight and distillation_steps must not be negative")
        if self.distillation_loss not in distillation.STARTS:
            known = ", ".join(map(repr, distillation.STARTS))
            raise BadInput(f"distillation_loss is {self.distillation_loss!r}; choose one of {known}")
        if self.learns_from_teacher and (self.pictures < 2 or self.accumulate > 1):
            raise BadInput(
                "a step of distillation tells its questions apart, all at once; set pictures to 2 or more and"
                " accumulate to 1"
            )

    def _check_objective(self) -> None:
        """Raise BadInput where closed answers are weighed without a loss of their own."""
        if min(self.weights) < 0:
            raise BadInput(f"closed_weight, open_weight and l2 must not be negative, got {tuple(self.weights)}")
        own = {"class_balanced": self.class_balanced, "closed_weight": self.closed_weight != 1,
               "open_weight": self.open_weight != 1, "head_answers": self.head_answers}  # fmt: skip
        if self.focal_gamma is None and any(own.values()):
            name = next(name for name, wanted in own.items() if wanted)
            raise BadInput(f"{name} needs a loss of closed answers' own; set focal_gamma, 0 for cross-entropy")

    @property
    def weights(self) -> LossWeights:
        """λ of the loss's parts."""
        return LossWeights(self.closed_weight, self.open_weight, self.l2)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether there is a teacher whose states count."""
        return bool(self.teacher) and self.distillation_weight > 0

    @property
    def drawn_as(self) -> str:
        """What is drawn and how, as a part of file names: "contour", "contour-out-of-window"."""
        return "-".join(filter(None, (self.condition, self.colour.replace(" ", "-"))))

    def pictures_of(self, stage: str) -> int:
        """Pictures of a stage's step."""
        return (self.projector_pictures if stage == PROJECTOR else 0) or self.pictures

    @classmethod
    def from_dict(cls, content: Mapping) -> "Finetuning":
        """Read what ``dataclasses.asdict`` gave, also after JSON made tuples into lists.

        Raises:
            BadInput: a setting that there isn't.
        """
        unknown = sorted(set(content) - {field.name for field in fields(cls)})
        if unknown:
            raise BadInput(f"there is no setting {unknown[0]!r} of finetuning; see ctvlm_lib.vlm.finetune.Finetuning")
        return cls(**{k: _tuples(v) if isinstance(v, list) else v for k, v in content.items()})

    def stages(self) -> tuple[tuple[str, Training], ...]:
        """Stages in their order: what learns, and how."""
        if self.from_scratch:
            steps = self.projector_steps + self.lora_steps
            return ((ALL, self._training(steps, self.lora_lr, self.seed, self.warmup_steps)),)
        planned = ((PROJECTOR, self.projector_steps, self.projector_lr), (LORA, self.lora_steps, self.lora_lr))
        # the second stage draws other questions than the first
        return tuple(
            (stage, self._training(steps, lr, 2 * self.seed + turn, self.warmup_steps if stage == LORA else 0))
            for turn, (stage, steps, lr) in enumerate(planned)
            if steps
        )

    def distillation(self, pictures: int) -> Training:
        """How the teacher's stage is trained, of so many pictures."""
        steps = self.distillation_steps or distillation.steps_of_an_epoch(pictures, self.pictures)
        return self._training(steps, self.lora_lr, self.seed)

    def _training(self, steps: int, lr: float, seed: int, warmup_steps: int = 0) -> Training:
        share = min(1.0, warmup_steps / steps) if warmup_steps else self.warmup_share
        return Training(
            steps, lr, warmup_share=share, weight_decay=self.weight_decay, precision=self.precision, seed=seed,
            checkpoint_every=self.checkpoint_every, accumulate=self.accumulate,
        )  # fmt: skip


def _tuples(value):
    """Lists of a JSON file as the tuples that they were."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
