"""The arms of the cross-attention read-out: what is in the tokens, told apart from what a language model has learnt.

``readout-B-contour`` reads encoder B's tokens of pictures with blue contours, ``readout-A-contour-out-of-window`` those
that encoder A, which knows no colours, makes of contours whose values no tissue has. It learns the same closed
questions about the same pictures as the vision–language models do, and is asked by the same code. Where it answers as
well without a prompt as with one, the prompt gives a vision–language model nothing that the tokens lack; it only saves
it learning where to look.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ctvlm_lib import assets, checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments import answers, vlm_arms, vlm_lessons
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.controls import ask, controls_for
from ctvlm_lib.experiments.pointing import ANSWERS
from ctvlm_lib.experiments.probes import ON_EVERYBODY
from ctvlm_lib.experiments.read_out_model import Coded, Questions, ReadOut
from ctvlm_lib.experiments.read_out_reader import Reader, Seen
from ctvlm_lib.records.committed import recorded
from ctvlm_lib.records.protocol import check_budget
from ctvlm_lib.training import Curve, Training, train
from ctvlm_lib.training_processes import alone
from ctvlm_lib.vlm import finetune
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.model import CtvlmModel

ENCODERS = ("A", "B")
_SCALE = 200  # pictures whose tokens tell mean and spread of each channel


@dataclass(frozen=True)
class Recipe:
    """How a read-out is made.

    Attributes:
        encoder: name of a shipped encoder. condition: what is drawn before it sees a volume. colour: how lines get in,
            as of :class:`ctvlm_lib.vlm.finetune.Finetuning`.
        seed: of weights and steps.
        patients: the first so many of the training split; 0 takes all.
        steps, lr, weight_decay: of :class:`ctvlm_lib.training.Training`, in float32.
        pictures: of a step, different ones; all that was learnt from about them is asked. Without a prompt a patient's
            regions share a picture, so that a step holds more questions.
        width, heads, hidden, dropout, hide: of :class:`ctvlm_lib.experiments.read_out_model.ReadOut`.
    """

    encoder: str = "B"
    condition: str = "contour"
    seed: int = 0
    patients: int = 0
    steps: int = 800
    lr: float = 5e-3
    weight_decay: float = 0.02
    pictures: int = 24
    width: int = 96
    heads: int = 8
    hidden: int = 192
    dropout: float = 0.2
    hide: float = 0.3
    colour: str = ""

    def training(self) -> Training:
        """The recipe as the training loop takes it."""
        return Training(self.steps, self.lr, weight_decay=self.weight_decay, seed=self.seed)


VARIANTS = {"": "", "out-of-window": "out of window"}  # what a name says behind the condition → colour
ARMS = {
    "-".join(filter(None, ("readout", encoder, condition, variant))): Recipe(encoder, condition, colour=colour)
    for encoder, condition, (variant, colour) in product(ENCODERS, CONDITIONS, VARIANTS.items())
    if not colour or condition != "none"
}


def run(
    name: str,
    profile: str = "full",
    seed: int = 0,
    *,
    cohort: Cohort | None = None,
    splits: Sequence[str] = ("validation", "test"),
    results: str | Path = RESULTS,
    patients: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    changes: Mapping | None = None,
    store: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Train a read-out, ask it, and store its answers.

    Args:
        name: one of ARMS.
        profile: how many patients.
        seed: of weights and steps; any but 0 is added to the folder's name.
        cohort: None draws the profile's.
        splits: that are asked; the test split needs a committed protocol.
        results: gets ``<name>/`` with a file of answers for each split, and the record.
        patients: learn from the first so many only, which is added to the folder's name; 0 takes all.
        folder: for checkpoints on the way.
        progress: print how far it is.
        changes: fields of :class:`Recipe` with other values.
        store: folder for what the encoder makes of pictures, which all seeds and sizes share; None takes the
            workbook's cache.

    Returns:
        Split → table of answers: the closed questions on presence, abnormality and organ as asked, with the prompt
        removed, and with it moved.

    Raises:
        BadInput: no such arm, more patients than there are, or a protocol that isn't committed.
    """
    alone(name)
    recipe = recipe_of(name, seed, patients, changes or {})
    record, said = recorded(splits), {}
    cohort, began = cohort or Cohort.of(profile, ("train", *splits)), time.monotonic()
    model = finetune.build(vlm_config(recipe))[0]  # only its encoder is used
    taught, features = lessons_of(cohort, recipe, model, store)
    minutes = {"features": (time.monotonic() - began) / 60}
    began, place = time.monotonic(), Path(store or assets.cache_dir() / "features")
    network, curve = fit(taught, features, recipe, folder=folder, progress=progress)
    minutes["training"] = (time.monotonic() - began) / 60
    for split in splits:
        began = time.monotonic()
        seen = Seen(model, place / f"{model.encoder_id()}-{vlm_config(recipe).drawn_as}-asked-{split}.safetensors")
        reader = Reader(network, seen, recipe.condition, recipe.colour)
        said[split] = ask_all(reader, cohort, split, seed, print if progress else None)
        seen.save()
        minutes[split] = (time.monotonic() - began) / 60
    record |= {"profile": cohort.profile, "seed": seed, "config": asdict(recipe)}
    record |= {"learnt": {"pictures": len(taught), "questions": sum(map(len, taught.values()))}}
    record |= {"minutes": {part: round(value, 2) for part, value in minutes.items()}}
    _save(said, cohort, record | checkpoints.circumstances({"read-out": curve}), Path(results) / label_of(recipe))
    return said


def recipe_of(name: str, seed: int = 0, patients: int = 0, changes: Mapping | None = None) -> Recipe:
    """What an arm trains, with a seed and changes.

    Raises:
        BadInput: no such arm or setting.
    """
    if name not in ARMS:
        raise BadInput(f"no read-out is called {name!r}; choose one of {', '.join(ARMS)}")
    unknown = sorted(set(changes or {}) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise BadInput(f"a read-out has no setting {unknown[0]!r}; see ctvlm_lib.experiments.read_out.Recipe")
    return replace(ARMS[name], **{"seed": seed, "patients": patients} | dict(changes or {}))


def label_of(recipe: Recipe) -> str:
    """Name of a recipe's folder: ``readout-B-none-patients200-seed1``."""
    few = f"-patients{recipe.patients}" if recipe.patients else ""
    return of_seed(f"readout-{recipe.encoder}-{vlm_config(recipe).drawn_as}{few}", recipe.seed)


def vlm_config(recipe: Recipe) -> finetune.Finetuning:
    """The vision–language arm that learns from the same pictures."""
    return replace(vlm_arms.recipe_of(f"vlm-{recipe.encoder}-{recipe.condition}-small"), colour=recipe.colour)


def lessons_of(
    cohort: Cohort, recipe: Recipe, model: CtvlmModel, store: str | Path | None = None
) -> tuple[dict[str, list[Coded]], FeatureCache]:
    """What is learnt from: picture → its closed questions; and the features of the pictures.

    Features are computed of all that the vision–language arm of the same encoder and condition learns from, whatever
    the number of patients, so that they are computed once.

    Raises:
        BadInput: more patients than there are.
    """
    names, config = cohort.scans["train"].names, vlm_config(recipe)
    check_budget(recipe.patients, len(names))
    lessons, some = vlm_lessons.lessons_of(cohort, config), set(names[: recipe.patients or None])
    taught: dict[str, list[Coded]] = {}
    for lesson in lessons:
        coded = [one for one in map(Coded.of, lesson.records) if one and lesson.records[0].patient in some]
        if coded:
            taught.setdefault(lesson.key, []).extend(coded)
    return taught, vlm_lessons.features_of(model, cohort.scans["train"], lessons, config, store=store)


def fit(
    taught: Mapping[str, Sequence[Coded]], features: FeatureCache, recipe: Recipe, **options
) -> tuple[ReadOut, Curve]:
    """Train a read-out.

    Args:
        taught: picture → questions. features: of these pictures.
        recipe: how.
        options: ``folder``, ``on_step``, ``progress`` of :func:`ctvlm_lib.training.train`.

    Returns:
        The network in evaluation mode, and its curve.

    Raises:
        BadInput: nothing to learn from, or a picture whose features aren't kept.
    """
    if not taught:
        raise BadInput("there is nothing to learn from; give at least one picture with a closed question")
    keys = list(taught)
    sizes = [tuple(stream.shape[1:]) for stream in (features.low, features.high)]
    network = ReadOut(
        *sizes, recipe.width, recipe.heads, recipe.hidden, recipe.dropout, recipe.hide, seed=recipe.seed
    )
    network.fit_scale(features.take(keys[:: max(1, len(keys) // _SCALE)]))

    def loss(module: ReadOut, step) -> torch.Tensor:
        drawn = step.rng("pictures").choice(len(keys), recipe.pictures, replace=recipe.pictures > len(keys))
        asked = [keys[k] for k in drawn]
        some, weight = step.mine(asked), step.weight(asked, lambda key: len(taught[key]))
        device = module.marker.device
        questions = Questions.of([taught[key] for key in some])
        loss = module.loss(features.take(some, device), Questions(*(tensor.to(device) for tensor in questions)))
        return loss * weight

    return network, train(network, loss, recipe.training(), **options)


def ask_all(
    reader: Reader, cohort: Cohort, split: str, seed: int = 0, progress: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Ask a read-out what the probes are asked: as it is, with the prompt removed, and with it moved.

    Args:
        reader: who answers.
        cohort: whose split is asked about. split: "validation" or "test".
        seed: of the read-out, kept in the table.
        progress: called with a line after each control.
    """
    asked, tables = cohort.questions(split, kinds=ANSWERS, form="closed"), []
    for control in controls_for(reader.condition, {}):
        if control.name in ON_EVERYBODY:
            tables.append(ask(reader, asked, cohort.scans[split], reader.condition, control, seed=seed))
            if progress:
                progress(f"{split}, {reader.condition}, {control}: {len(asked):,} answers")
    return pd.concat(tables, ignore_index=True)


def _save(said: Mapping[str, pd.DataFrame], cohort: Cohort, record: dict, home: Path) -> None:
    record |= {"rows": {split: len(table) for split, table in said.items()}, "controls_of": list(ANSWERS)}
    with atomic_path(home) as partial:
        partial.mkdir()
        for split, table in said.items():
            # calibration asks about the unchanged prompt only; without the other confidences the file is half as large
            kept = table.assign(confidence=table["confidence"].where(table["control"] == answers.AS_ASKED))
            answers.save(kept, cohort.records[split], partial / f"{split}.npz")
        checkpoints.write_record(record, partial)
