"""What profile ``paper`` trains of U-VLM: an arm by its name, those that it begins with, and the options of each stage.

Stage 1 learns as printed, by SGD at 0.01, and where the paper leaves it to nnU-Net as that does: momentum .99,
Nesterov's, no warm-up, a polynomial rate, the weights of the scales, Dice of each patch, a Gaussian over windows.
Otherwise than there: shifts and noise stand for nnU-Net's augmentation, two thirds of the patches are drawn around the
foreground, nothing is mirrored when it is asked, and biases and norms don't decay. The paper doesn't say how many steps
it takes: stage 1 takes nnU-Net's 250,000, stages 2 and 3 see a volume ten times on average. Airways and pulmonary
vessels of other data sets (ATM22, HiPaS) aren't among the chest's masks. Stage 3 asks for nothing, where the released
code puts a chat prompt in front of the report, see :mod:`ctvlm_lib.vlm.report_writer`.

Source: uvlm.txt §3.1; U-VLM's released code (5d7fde9) for decay and clipping; nnU-Net's trainer.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from transformers import PretrainedConfig

from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import uvlm_arms
from ctvlm_lib.experiments.uvlm_arms import CLS, REP, SEG, STAGES, Arm
from ctvlm_lib.experiments.uvlm_real_data import ABDOMEN, CHEST
from ctvlm_lib.experiments.uvlm_real_scores import WORDS
from ctvlm_lib.sources import QWEN3, Sources
from ctvlm_lib.training import ADAMW, COSINE, POLYNOMIAL, SGD, Training
from ctvlm_lib.vlm.uvlm_config import HYBRID

ENDING = f"-{ABDOMEN}"  # of an arm that is trained on AbdomenAtlas
UNSAID = ("workers", "checkpoint_every")  # options that change no result
ONLY = dict.fromkeys(("patch_dhw_vox", "incomplete"), SEG) | dict.fromkeys(("decoder", "attention", "longest"), REP)
RANK, ALPHA = 64, 128  # of LoRA
_QWEN3_4B = {"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "vocab_size": 151_936}
SWITCHES = ("variant", "channels", "blocks", "stage_strides_dhw")  # of the encoder
PAPER = {  # of each stage, where it isn't OnReal's default
    SEG: {"steps": 250_000, "lr": 0.01, "weight_decay": 3e-5, "optimizer": SGD, "schedule": POLYNOMIAL,
          "warmup_share": 0.0},
    CLS: {"lr": 2e-5, "weight_decay": 0.01},
    REP: {"lr": 2e-5, "weight_decay": 0.01},
}  # fmt: skip
PUBLISHED = {CHEST: {SEG: 2_628, CLS: 24_128, REP: 24_128}, ABDOMEN: dict.fromkeys(STAGES, 9_262)}  # scans


@dataclass(frozen=True)
class OnReal:
    """What a stage trains; the defaults are the paper's, or decided here where it says nothing.

    Attributes:
        steps: of the optimiser; 0 goes by epochs. epochs: how often a volume is seen, on average.
        lr: largest rate, the decoder's or head's; the encoder's is an arm's share of it.
        batch: volumes, or patches, a step, over all processes.
        size_dhw_vox, patch_dhw_vox: of volumes, and of what stage 1 cuts out of them.
        encoder: some of SWITCHES. decoder: arguments of :func:`ctvlm_lib.vlm.uvlm_config.paper_decoder`, where there
            is no LoRA.
        attention: see :class:`ctvlm_lib.vlm.uvlm_config.UvlmConfig`.
        report: AbdomenAtlas's column. longest: tokens of a written report.
        incomplete: stage 1 also takes scans that lack masks of some structures.
        held_out: share of training's patients that thresholds are chosen on.
        weight_decay, clip, precision, checkpoint_every, optimizer, schedule, warmup_share: see
            :class:`ctvlm_lib.training.Training`.
        patients: the first so many scans of each split; 0 takes all. workers: threads that make volumes ready.

    Raises:
        BadInput: numbers that can't be.
    """

    steps: int = 0
    epochs: int = 10
    lr: float = 2e-5
    weight_decay: float = 0.01
    batch: int = 2
    size_dhw_vox: tuple[int, int, int] = (192, 256, 256)
    patch_dhw_vox: tuple[int, int, int] = (96, 128, 128)
    encoder: Mapping = field(default_factory=dict)
    decoder: Mapping = field(default_factory=dict)
    attention: str = HYBRID
    report: str = "structured report"
    longest: int = 512
    incomplete: bool = False
    held_out: float = 0.02
    clip: float = 12.0
    precision: str = "bf16"
    checkpoint_every: int = 500
    patients: int = 0
    workers: int = 8
    optimizer: str = ADAMW
    schedule: str = COSINE
    warmup_share: float = 0.08

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.workers, self.longest) < 1 or min(self.steps, self.patients) < 0:
            raise BadInput(
                "epochs, batch, workers and longest are at least 1, steps and patients not negative; got"
                f" {self.epochs}, {self.batch}, {self.workers}, {self.longest}, {self.steps} and {self.patients}"
            )
        if not 0 < self.held_out < 1:
            raise BadInput(f"held_out is a share of the patients between 0 and 1, got {self.held_out:g}")
        if any(p > n for p, n in zip(self.patch_dhw_vox, self.size_dhw_vox, strict=True)):
            raise BadInput(f"a patch of {self.patch_dhw_vox} is larger than volumes of {self.size_dhw_vox}; lower it")
        if unknown := sorted(set(self.encoder) - set(SWITCHES)):
            raise BadInput(f"the encoder has no option {unknown[0]!r}; it has {', '.join(SWITCHES)}")
        if not isinstance(self.decoder, Mapping):
            raise BadInput(f"decoder is {self.decoder!r}; give a table of options, such as {{num_hidden_layers = 12}}")

    @property
    def switches(self) -> dict:
        """Arguments of the encoder or the U-Net."""
        return {"variant": "uvlm"} | dict(self.encoder)

    def training(self, volumes: int, seed: int = 0) -> Training:
        """How long and how fast, with so many volumes.

        Raises:
            BadInput: fewer volumes than a batch.
        """
        if volumes < self.batch:
            raise BadInput(f"a batch of {self.batch} is larger than the {volumes} training volumes; lower it")
        return Training(
            self.steps or self.epochs * (volumes // self.batch), self.lr, self.warmup_share, self.weight_decay,
            betas=(0.9, 0.999), clip=self.clip, precision=self.precision, checkpoint_every=self.checkpoint_every,
            seed=seed, optimizer=self.optimizer, schedule=self.schedule,
        )  # fmt: skip


def arm_of(name: str) -> tuple[Arm, str]:
    """An arm by its name, and whether it is of the chest or the abdomen.

    Raises:
        BadInput: no such arm.
    """
    scope = ABDOMEN if name.endswith(ENDING) else CHEST
    arm = uvlm_arms.arm_of(name.removesuffix(ENDING))
    start = arm.start + ENDING if arm.start and scope == ABDOMEN else arm.start
    return replace(arm, start=start, lora=arm.lora and QWEN3), scope


def config_of(stage: str, given: Sources, changes: Mapping | None = None) -> OnReal:
    """What a stage trains on a user's data.

    Args:
        stage: one of STAGES. given: ``uvlm`` holds options, and tables of options for one stage.
        changes: further options, which count most.

    Raises:
        BadInput: no such option, or a value that doesn't fit.
    """
    own = options_of(stage, given, changes)
    known = {one.name for one in fields(OnReal)}
    if unknown := sorted(set(own) - known):
        raise BadInput(f"uvlm has no option {unknown[0]!r}; there are: {', '.join(sorted({*known, *STAGES}))}")
    paper = PAPER[stage] | ({"steps": 0} if "epochs" in own else {})
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    try:
        return OnReal(**paper | own)
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(f"an option of uvlm has a value of the wrong kind: {error}") from None


def options_of(stage: str, given: Sources, changes: Mapping | None = None) -> dict:
    """Options of a stage that are otherwise than the paper says, by name."""
    general = {name: value for name, value in given.uvlm.items() if name not in STAGES}
    patients = {"patients": given.patients} if given.patients else {}
    return patients | general | dict(given.uvlm.get(stage, {})) | dict(changes or {})


def otherwise(arm: Arm, scope: str, config: OnReal, given: Sources, changes: Mapping | None = None) -> list[str]:
    """What a stage is run with otherwise than the paper says: its numbers stand in the ledger with this remark."""
    always = {
        SEG: ["stage 1: shifts and noise in place of nnU-Net's augmentation, more patches around the foreground"],
        CLS: ["stage 2: thresholds from held-out training patients"],
        REP: ["stage 3: reports written greedily",
              *([] if scope == CHEST and given.radbert else [f"labels of reports by {WORDS}"])],
    }[arm.stage]  # fmt: skip
    if arm.stage == SEG and scope == CHEST:
        always.append("stage 1: no masks of ATM22 and HiPaS")
    if arm.lora:
        always.append("stage 3: LoRA on attention and MLP, which the paper leaves open")
    options = set(options_of(arm.stage, given, changes)) - set(UNSAID) - ({"decoder"} if arm.lora else set())
    return [*always, *sorted(name for name in options if ONLY.get(name, arm.stage) == arm.stage)]


@dataclass(frozen=True)
class Task:
    """An arm that shall be there, as part of a chain: its label, how it is trained, its pretrained decoder's shape."""

    name: str
    label: str
    arm: Arm
    scope: str
    config: OnReal
    otherwise: tuple[str, ...]
    language: PretrainedConfig | None = field(default=None, compare=False)

    def reading(self, language: PretrainedConfig) -> "Task":
        """The same with the shape of its pretrained decoder; one that isn't Qwen3-4B's is otherwise than the paper."""
        found = {name: getattr(language, name, None) for name in _QWEN3_4B}
        other = f"decoder: {found['model_type']}, {found['hidden_size']} wide, in place of {QWEN3}"
        return replace(self, language=language, otherwise=(*self.otherwise, *([other] if found != _QWEN3_4B else [])))


def chain(name: str, label: str, given: Sources, seed: int, changes: Mapping | None) -> list[Task]:
    """The arms that have to be there, in the order in which they begin with each other."""
    made, remarks = [], []
    arm, scope = arm_of(name)
    names = [name]
    while arm.start:
        names.insert(0, arm.start)
        arm = arm_of(arm.start)[0]
    for one in names:
        arm, own = arm_of(one)[0], changes if one == name else None
        config = config_of(arm.stage, given, own)
        remarks += otherwise(arm, scope, config, given, own)
        where = label if one == name else of_seed(one, seed)
        made.append(Task(one, where, arm, scope, config, tuple(dict.fromkeys(remarks))))
    return made


def plain(config: OnReal) -> dict:
    """A configuration as JSON has it."""
    return json.loads(json.dumps(asdict(config)))
