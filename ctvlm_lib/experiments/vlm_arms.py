"""The arms of the vision–language model, by name: encoder × condition × decoder, each with any seed.

``vlm-B-contour-small`` is encoder B, blue contours, the smallest decoder with LoRA. Behind the decoder's size may stand
what else is different: ``-scratch``, a decoder that began with random weights and learnt whole; ``-blind``, a model
that is shown blank pictures only; a projector of Med3DVLM's ablation; slice attention, ``-SSA`` or ``-MSSA``, or
``-MSSA-by-slice``, whose bias goes by slices instead of image vectors; ``-longer``, three times as many steps;
``-patients200``, fewer patients to learn from; ``-pictures4``, steps of as few pictures as SmolLM2's; ``-focal``, the
contour paper's class-balanced focal loss on closed answers and its penalty on LoRA; ``-focal-head``, the same with a
head for closed questions; ``-out-of-window``, lines whose values no tissue has; ``-distilled``, an epoch more beside
the large decoder's arm of the same encoder, condition and seed as teacher, which is trained first if it isn't there;
``-undistilled``, the same epoch without it. Arms that differ in the condition alone are trained on the same questions
in the same order.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.read_out_model import VOCABULARY
from ctvlm_lib.records.questions import LUNG_SIZES_MM, ORGAN_SIZES_MM, PARTS, PHASES, size_class
from ctvlm_lib.vlm import ladder, smollm2
from ctvlm_lib.vlm.finetune_recipe import Finetuning
from ctvlm_lib.vlm.losses import LossWeights
from ctvlm_lib.vlm.projector import IN_THE_PAPER
from ctvlm_lib.vlm.slice_attention import KINDS

ENCODERS = ("A", "A-continued", "B")
TEACHER, TAUGHT = "vlm-{encoder}-{condition}-large", ("small", "middle")  # who teaches, which decoders are taught
# for a CPU: 64 + 32 image vectors instead of 256 + 128, and no dropout in the adapters, which is a fifth of a step
ON_A_CPU = Finetuning(projector="merged", dropout=0.0, projector_steps=60, lora_steps=340, pictures=16)
_SIZES = [name for limits in (LUNG_SIZES_MM, ORGAN_SIZES_MM) for name in size_class(0, limits)[1]]
CLOSED_ANSWERS = tuple(dict.fromkeys((*VOCABULARY, *PHASES, *PARTS, *_SIZES)))  # all that the cohort's questions have
FOCAL = {"focal_gamma": 2.0, "class_balanced": True, "l2": LossWeights().reg}  # contour.txt §4
_FEW_PICTURES = {"pictures": 4}
VARIANTS: dict[str, dict] = {
    "": {},
    "scratch": {"from_scratch": True},
    "blind": {"blind": True},
    "longer": {"projector_steps": 3 * ON_A_CPU.projector_steps, "lora_steps": 3 * ON_A_CPU.lora_steps,
               "look_every": 60},  # fmt: skip; the loss on validation patients by step
    **{f"patients{n}": {"patients": n} for n in (100, 200, 400)},
    "pictures4": _FEW_PICTURES,
    **{label: {"projector": name} for name, label in IN_THE_PAPER.items()},
    **{kind: {"slice_attention": kind} for kind in KINDS},
    "MSSA-by-slice": {"slice_attention": "MSSA", "slice_by": "slice"},
    "SSA-as-printed": {"slice_attention": "SSA", "slice_form": "as printed"},
    "focal": FOCAL,
    "focal-head": FOCAL | {"head_answers": CLOSED_ANSWERS},
    "out-of-window": {"colour": "out of window"},
    "distilled": {"teacher": TEACHER},
    "undistilled": {"teacher": TEACHER, "distillation_weight": 0.0},
}
DECODERS = (*ladder.SIZES, smollm2.ASSET)
_OF_DECODER = {smollm2.ASSET: _FEW_PICTURES}  # a step takes 20 times as long as the ladder's largest


def _arms() -> dict[str, Finetuning]:
    made = {}
    for encoder, condition, decoder, (variant, changes) in product(ENCODERS, CONDITIONS, DECODERS, VARIANTS.items()):
        if decoder == smollm2.ASSET and changes.get("from_scratch") or "teacher" in changes and decoder not in TAUGHT:
            continue
        if decoder == smollm2.ASSET and changes == _FEW_PICTURES:  # it has no more anyway
            continue
        if "colour" in changes and condition == "none":  # there is no line
            continue
        config = replace(ON_A_CPU, encoder=encoder, condition=condition, decoder=decoder,
                         **_OF_DECODER.get(decoder, {}), **changes)  # fmt: skip
        teacher = config.teacher.format(encoder=encoder, condition=condition)
        made["-".join(filter(None, ("vlm", encoder, condition, decoder, variant)))] = replace(config, teacher=teacher)
    return made


ARMS = _arms()


def recipe_of(name: str, seed: int = 0, changes: Mapping | None = None) -> Finetuning:
    """What an arm trains, with a seed and changes.

    Raises:
        BadInput: no such arm or setting.
    """
    if name not in ARMS:
        raise BadInput(
            f"no arm is called {name!r}; arms are vlm-ENCODER-CONDITION-DECODER, such as vlm-B-contour-small"
        )
    return Finetuning.from_dict(asdict(replace(ARMS[name], seed=seed)) | dict(changes or {}))


def variant_of(name: str) -> str:
    """What an arm's name says behind the decoder, "" for nothing: one of VARIANTS."""
    config = ARMS[name]
    return name.removeprefix(f"vlm-{config.encoder}-{config.condition}-{config.decoder}").removeprefix("-")
