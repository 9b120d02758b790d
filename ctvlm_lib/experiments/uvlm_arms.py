"""Which arms U-VLM has, by name, and what each trains.

    seg-C, seg-CL, seg-FL      stage 1, at three granularities, on the first patients of the training split
    cls-none, cls-C, …         stage 2, from random weights or from a stage 1; the encoder at a tenth of the rate
    cls-none-full-rate         ours: the encoder with random weights at the whole rate
    rep-none, rep-cls, rep-CL, rep-FL       stage 3 on what is named, the encoder frozen
    rep-C-cls, rep-CL-cls, rep-FL-cls       stage 3 on stage 2 on stage 1
    …-skip                     and every layer of the decoder reads a stage of the encoder (equation 5)
    …-tokens                   twice as many image tokens, those of the last stage but one; in the paper eight times
    …-tuned                    the encoder learns, too, at a tenth of the rate
    …-lora                     a decoder pretrained on the training split's text, with LoRA, instead of one from scratch
                               (in profile paper Qwen3-4B)

An arm begins with the encoder of another of the same seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.uvlm_protocol import load
from ctvlm_lib.vlm.stage_tokens import INPUT_ONLY, SPREAD

PREFIX = "uvlm-"
TRUTH = f"{PREFIX}truth"  # the folder of what is true of those who are asked about
SEG, CLS, REP = STAGES = ("segmentation", "classification", "report")
GRANULARITY = {"C": "C", "CL": "C+L", "FL": "F+L"}  # in a name → in the paper


@dataclass(frozen=True)
class Arm:
    """What an arm trains.

    Attributes:
        stage: one of STAGES.
        start: the arm whose encoder it begins with; "" for random weights.
        granularity: of stage 1.
        encoder_rate: the encoder's share of the learning rate in stages 2 and 3; 0 freezes it.
        injected: every layer of the decoder reads a stage; else its input alone reads one.
        reference: the stage whose places are the image's tokens, −1 the last.
        lora: a pretrained decoder with adapters, the ladder's size or a sources file's name; "" for one from scratch.
    """

    stage: str
    start: str = ""
    granularity: str = ""
    encoder_rate: float = 0.0
    injected: bool = False
    reference: int = -1
    lora: str = ""


def _arms() -> dict[str, Arm]:
    made = {f"seg-{name}": Arm(SEG, granularity=paper) for name, paper in GRANULARITY.items()}
    rate = load()["classification"]["encoder_rate"]
    made |= {"cls-none": Arm(CLS, encoder_rate=rate), "cls-none-full-rate": Arm(CLS, encoder_rate=1.0)}
    made |= {f"cls-{name}": Arm(CLS, f"seg-{name}", encoder_rate=rate) for name in GRANULARITY}
    made |= {"rep-none": Arm(REP), "rep-cls": Arm(REP, "cls-none")}
    made |= {f"rep-{name}": Arm(REP, f"seg-{name}") for name in ("CL", "FL")}
    made |= {f"rep-{name}-cls": Arm(REP, f"cls-{name}") for name in GRANULARITY}
    for name in ("CL", "FL"):
        whole = made[f"rep-{name}-cls"]
        changes = {"skip": {"injected": True}, "tokens": {"reference": -2}, "tuned": {"encoder_rate": rate},
                   "lora": {"lora": load()["report"]["pretrained"]}}  # fmt: skip
        made |= {f"rep-{name}-cls-{word}": replace(whole, **change) for word, change in changes.items()}
    return {PREFIX + name: replace(arm, start=PREFIX + arm.start if arm.start else "") for name, arm in made.items()}


ARMS = _arms()


def described(arm: Arm) -> str:
    """An arm in words: its stage, and what isn't the plain way."""
    told = {
        "granularity": f"granularity {arm.granularity}",
        "start": f"on {arm.start.removeprefix(PREFIX)}",
        "encoder_rate": f"encoder at {arm.encoder_rate:g} of the rate",
        "injected": "a stage in every layer",
        "reference": f"tokens of stage {arm.reference}",
        "lora": f"{arm.lora} decoder with LoRA",
    }
    plain = Arm(arm.stage)
    return "; ".join([arm.stage, *(text for name, text in told.items() if getattr(arm, name) != getattr(plain, name))])


def arm_of(name: str) -> Arm:
    """An arm by its name.

    Raises:
        BadInput: no such arm.
    """
    if name not in ARMS:
        raise BadInput(f"no arm is called {name!r}; choose one of {', '.join(ARMS)}")
    return ARMS[name]


def settings_of(arm: Arm, seed: int = 0, changes: Mapping | None = None) -> dict:
    """The stage's settings by the protocol, with a seed and changes.

    Raises:
        BadInput: no such setting.
    """
    fixed = load()[arm.stage]
    if unknown := sorted(set(changes or {}) - set(fixed)):
        raise BadInput(f"{arm.stage} has no setting {unknown[0]!r}; it has {', '.join(fixed)}")
    return fixed | dict(changes or {}) | {"seed": seed}


def injection_of(arm: Arm) -> dict:
    """How stage 3 reads the encoder, see :func:`ctvlm_lib.vlm.injection.inject`."""
    mapping = SPREAD if arm.injected else INPUT_ONLY
    return {"reference": arm.reference, "mapping": mapping, "at_input": not arm.injected}
