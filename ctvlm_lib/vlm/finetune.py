"""Training of a vision–language model: first the projector, with what else isn't the decoder's, then LoRA as well.

Where a teacher is named, an epoch of distillation follows, see :mod:`ctvlm_lib.vlm.distillation`.

The encoder never learns; what it makes of each picture is read from a :class:`FeatureCache`. "From scratch" is another
thing, and isn't called LoRA: the decoder begins with random weights and all of it learns.

Source: med3dvlm.txt §3.3 and §3.4 (the two stages), contour.txt §3.2 and §4, dualbox.txt §3.2 and §4.2.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ctvlm_lib import checkpoints
from ctvlm_lib.checkpoints import HELD_OUT
from ctvlm_lib.encoder import frozen
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Curve, Step, train
from ctvlm_lib.vlm import distillation
from ctvlm_lib.vlm.colour import way_of
from ctvlm_lib.vlm.config import CtvlmConfig
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune_loss import Patience, loss_of_step, plain_decoder
from ctvlm_lib.vlm.finetune_recipe import ALL, LORA, PROJECTOR, Finetuning
from ctvlm_lib.vlm.lessons import Lessons
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.memory import recompute
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.parts import decoder_of, encoder_of
from ctvlm_lib.vlm.processor import PLACEHOLDER, CtvlmProcessor, with_placeholder
from ctvlm_lib.vlm.projector import factory_of
from ctvlm_lib.vlm.slice_attention import SLICES


def build(config: Finetuning, folder: str | Path = checkpoints.FOLDER) -> tuple[CtvlmModel, CtvlmProcessor]:
    """A model before its first step: trained encoder, random projector, and a decoder trained on text, or random.

    Args:
        config: which.
        folder: of checkpoints.

    Raises:
        BadInput: no such encoder, decoder or projector.
    """
    encoder = encoder_of(config, folder)
    decoder, tokenizer = decoder_of(config, folder)
    tokenizer = with_placeholder(tokenizer)
    options = dict(config.projector_options)
    slices = {"kind": config.slice_attention, "form": config.slice_form, "first": config.slice_blocks,
              "by": config.slice_by, "seed": config.seed}  # fmt: skip
    parts = CtvlmConfig(
        encoder.config, decoder.config, config.projector, options, size_dhw_vox=config.size_dhw_vox,
        image_token_id=tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        slice_attention=slices if config.slice_attention else None, head_answers=config.head_answers,
    )  # fmt: skip
    low, high = parts.streams()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projector = factory_of(config.projector)(low, high, hidden_size=parts.hidden_size, **options)
    parts.image_tokens = projector.tokens
    if config.slice_attention:  # a distance for each two vectors, or slices of the volume
        parts.slice_attention["slices"] = max(SLICES, projector.tokens, config.size_dhw_vox[0])
    model = CtvlmModel(parts, encoder, projector, decoder)
    model.freeze(encoder=True, projector=False, decoder=not config.from_scratch).eval()
    colour = way_of(config.colour, encoder.config.in_channels)
    return model, CtvlmProcessor.for_config(model.config, tokenizer, scale=config.scale, colour=colour)


def prepare(model: CtvlmModel, stage: str, config: Finetuning) -> CtvlmModel:
    """Let learn what learns in a stage, and nothing else; adapters are made where the stage needs them.

    Raises:
        BadInput: no such stage.
    """
    if stage == PROJECTOR:
        return model.freeze(encoder=True, projector=False, decoder=True)
    if stage == ALL:
        return model.freeze(encoder=True, projector=False, decoder=False)
    if stage != LORA:
        raise BadInput(f"no stage is called {stage!r}; choose one of {PROJECTOR}, {LORA}, {ALL}")
    model.freeze(encoder=True, projector=False, decoder=None)
    frozen.unfreeze(model.decoder)  # else its dropout would sleep; peft freezes the weights again
    model.decoder = with_lora(
        model.decoder, config.rank, config.alpha, config.targets, config.dropout, config.train_norms, seed=config.seed
    )
    return model


def finetune(
    model: CtvlmModel,
    lessons: Lessons,
    features: FeatureCache,
    config: Finetuning,
    *,
    teacher: CtvlmModel | None = None,
    held_out: tuple[Lessons, FeatureCache] | None = None,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    stop: Callable[[CtvlmModel, dict[str, float]], bool] | None = None,
    progress: bool = True,
) -> dict[str, Curve]:
    """Train a model of :func:`build` through its stages.

    Args:
        model: trained in place; its decoder is peft's afterwards, unless it is from scratch.
        lessons: what is learnt, with the answers of the head if there is one. features: of all their pictures.
        config: the one that the model was built by.
        teacher: the one that it names, see :func:`ctvlm_lib.vlm.finetune_saving.load_teacher`.
        held_out: lessons of validation patients with their pictures' features, for ``config.look_every``.
        folder: for checkpoints on the way; a run that was killed goes on from there, with the same losses.
        on_step: called with each row of the curves.
        stop: (model, row of the last stage, a teacher's not counted) → whether to end it; None: as
            ``config.look_every`` and ``config.patience`` say.
        progress: print a line now and then, with an estimate of the time left.

    Returns:
        Stage → its curve, see :func:`ctvlm_lib.training.train`; and HELD_OUT → the loss on validation patients, where
        it was looked at.

    Raises:
        BadInput: as ``train``, a picture whose features aren't kept, a teacher that is named and not given, lessons
            with other answers than the head's, or nothing held out to look at.
    """
    if config.learns_from_teacher and teacher is None:
        raise BadInput(f"the teacher {config.teacher} wasn't given; load it with finetune_saving.load_teacher")
    if config.head_answers and lessons.answers != config.head_answers:
        raise BadInput("the lessons' closed answers aren't the head's; make them with Lessons(…, config.head_answers)")
    if config.look_every and stop is None:
        if held_out is None:
            raise BadInput("look_every looks at held-out patients, and none were given; give held_out, or set it to 0")
        at_once = config.pictures // config.accumulate
        stop = Patience(*held_out, config.look_every, config.patience, words=config.words, batch=at_once)
    lost = [row.key for row in lessons.rows if row.key not in features]
    if lost:
        raise BadInput(f"{lost[0]} isn't among the {len(features)} kept pictures; encode it, too")

    def loss_in(stage: str) -> Callable[[CtvlmModel, Step], dict[str, Tensor]]:
        shown = lessons if config.projector_yes_no or stage != PROJECTOR else lessons.without_yes_no()

        def loss(network: CtvlmModel, step: Step) -> dict[str, Tensor]:
            batch = shown.draw(step.rng("pictures"), config.pictures_of(stage), config.words)
            return loss_of_step(network, shown, features, batch, step, config)

        return loss

    curves: dict[str, Curve] = {}
    stages = config.stages()
    for stage, settings in stages:
        prepare(model, stage, config)
        ends = (lambda row: stop(model, row)) if stop and stage == stages[-1][0] else None
        with checkpointed(model, config.checkpointing):
            curves[stage] = train(
                model, loss_in(stage), settings, folder=Path(folder) / stage.replace(" ", "-") if folder else None,
                on_step=on_step, progress=progress, stop=ends,
            )  # fmt: skip
    if seen := [row for row in curves[stages[-1][0]] if HELD_OUT in row]:
        curves[HELD_OUT] = [{"step": row["step"], "loss": row[HELD_OUT], "seconds": 0.0} for row in seen]
    if config.teacher:
        with checkpointed(model, config.checkpointing):
            curves[distillation.DISTILLATION] = distillation.distill(
                model, teacher if config.learns_from_teacher else None, lessons, features, config,
                folder=Path(folder) / distillation.DISTILLATION if folder else None, on_step=on_step, progress=progress,
            )  # fmt: skip
    return curves


@contextmanager
def checkpointed(model: CtvlmModel, wanted: bool) -> Iterator[None]:
    """While the block runs, the decoder recomputes its layers in the backward pass, if it is wanted.

    Only then: peft would make a decoder's embeddings learn if it found it so.
    """
    decoder = plain_decoder(model)
    if wanted:
        recompute(decoder)
    try:
        yield
    finally:
        if wanted:
            recompute(decoder, wanted=False)
