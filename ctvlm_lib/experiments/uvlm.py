"""U-VLM's arms: three stages that hand on one encoder, trained on the cohort, asked, and stored.

Which there are says :mod:`ctvlm_lib.experiments.uvlm_arms`. An arm begins with the encoder of another of the same seed,
which is trained first if it isn't there.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import classification
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.alignment.checkpoints import check_tensors
from ctvlm_lib.alignment.classification import QueryClassifier
from ctvlm_lib.alignment.enrichment import report_statement
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.encoder.unet import UNet, UNetEncoder, unet, unet_encoder
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments.stored_arms import Splits
from ctvlm_lib.experiments.uvlm_arms import CLS, PREFIX, REP, SEG, TRUTH, Arm, arm_of, injection_of, settings_of
from ctvlm_lib.experiments.uvlm_protocol import FILES, load
from ctvlm_lib.experiments.uvlm_said import ORGANS, write_said
from ctvlm_lib.records.committed import recorded
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.records.report import LABELS, abnormality_labels
from ctvlm_lib.segment import unet_training
from ctvlm_lib.segment.class_maps import ClassMap, phantom_target
from ctvlm_lib.segment.unet_training import Segmented
from ctvlm_lib.training import Training
from ctvlm_lib.training_processes import alone
from ctvlm_lib.vlm import report_writer
from ctvlm_lib.vlm.report_writer import ReportWriter

VARIANT = "phantom"
HEAD = "head"  # of stage 2, which learns first, alone
SPLITS, FORMS = ("validation", "test"), ("report", "structured")
SHOWN = ("Dice of anatomy", "Dice of lesions", "labels F1", "lesions F1", "BLEU-mean")  # of an arm, first of all


@dataclass(frozen=True, eq=False)
class Split:
    """A split as an arm is trained or asked on it.

    Attributes:
        patients: with their masks.
        scans: volumes and reports, in the form that the protocol names.
        labels: bool ``(n, 18)``, in the order of ``LABELS``.
    """

    patients: Sequence[Patient]
    scans: Scans
    labels: np.ndarray

    def segmented(self, granularity: str, n: int = 0) -> Segmented:
        """Targets of the first ``n`` patients; 0 takes all."""
        some = self.patients[: n or None]
        target = np.stack([phantom_target(patient, granularity) for patient in some])
        names = ClassMap.of("phantom", granularity).names
        return Segmented(self.scans.names[: len(some)], self.scans.hu[: len(some)], target, names)


class World(Splits[Split]):
    """What all arms of a profile share."""

    def _made(self, patients: Iterable[Patient]) -> Split:
        those = list(patients)
        labels = np.array([[abnormality_labels(patient)[label] for label in LABELS] for patient in those])
        return Split(those, written(Scans.of(those), load()["report"]["text"]), labels)


def written(scans: Scans, form: str) -> Scans:
    """Scans with their reports as stage 3 writes them.

    Args:
        scans: with reports as they are.
        form: "report", or "structured": what is found, region by region, and what isn't, in plain sentences, see
            :func:`ctvlm_lib.alignment.enrichment.report_statement`.

    Raises:
        BadInput: no such form.
    """
    if form not in FORMS:
        raise BadInput(f"a report is written as {form!r}; choose one of {', '.join(map(repr, FORMS))}")
    return scans if form == FORMS[0] else replace(scans, reports=tuple(map(report_statement, scans.reports)))


def run(
    name: str,
    seed: int = 0,
    world: World | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    changes: Mapping | None = None,
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    label: str = "",
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> dict[str, dict]:
    """Train an arm, and before it those that it begins with; store what was trained; ask it; store what it said.

    Args:
        name: one of :data:`ctvlm_lib.experiments.uvlm_arms.ARMS`.
        seed: of everything random; any but 0 is added to the names of the folders.
        world: the cohort; None takes profile full.
        splits: that are asked; "test" needs a committed protocol. Reports are written for "test" only.
        changes: of the stage's section of the protocol, e.g. ``{"steps": 20}``.
        folder: gets checkpoints on the way, in ``<arm>/``.
        checkpoint_folder, results: each gets a folder for the arm.
        label: name of the two folders, instead of that of arm and seed.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        Split → what was said of it, see :func:`ask`.

    Raises:
        BadInput: no such arm or setting, or a protocol that isn't committed.
    """
    alone(name)
    arm, world = arm_of(name), world or World()
    record = recorded(splits, "uvlm_protocol", FILES, load()["version"])
    label, places = label or of_seed(name, seed), {"checkpoint_folder": checkpoint_folder, "results": results}
    if arm.start and of_seed(arm.start, seed) not in checkpoints.names(checkpoint_folder):
        run(arm.start, seed, world, splits=splits, folder=folder, progress=progress, **places)
    begun = time.monotonic()
    settings = settings_of(arm, seed, changes)
    model = build(arm, seed, checkpoint_folder)
    way = Path(folder) / label if folder else None
    curves = _fit(model, arm, world.split("train"), settings, way, on_step=on_step, progress=progress)
    # of a training that was taken up again the clock saw the end alone, and its curve counts all of it
    trained = max(time.monotonic() - begun, sum(curve[-1]["seconds"] for curve in curves.values()))
    begun = time.monotonic()
    record |= {"profile": world.profile, "seed": seed} | checkpoints.circumstances(curves)
    record |= {"arm": asdict(arm), "settings": settings}
    save(Path(checkpoint_folder) / label, model, arm, record)
    model = read(label, checkpoint_folder)  # what is asked is what is stored, float16's rounding included
    asked = [split for split in splits if split == "test" or arm.stage != REP]
    said = {split: ask(model, world.split(split), arm, load()[SEG]["asked"].get(split, 0)) for split in asked}
    record["minutes"] = round((trained + time.monotonic() - begun) / 60, 2)
    _store(said, record, Path(results) / label)
    return said


def build(arm: Arm, seed: int = 0, folder: str | Path = checkpoints.FOLDER) -> nn.Module:
    """An arm's model before its first step: a U-Net, a classifier or a writer around the encoder that it begins with.

    Raises:
        BadInput: the arm that it begins with isn't there.
    """
    if arm.stage == SEG:
        return unet(ClassMap.of("phantom", arm.granularity).names, VARIANT, seed=seed)
    encoder = begun(unet_encoder(VARIANT, seed=seed), arm, seed, folder)
    if arm.stage == CLS:
        return QueryClassifier(encoder, LABELS, seed=seed)
    how, fixed = injection_of(arm), load()["report"]
    if arm.lora:
        return report_writer.with_pretrained(
            encoder, arm.lora, how, fixed["attention"], fixed["lora_rank"], fixed["lora_alpha"], seed
        )
    return report_writer.from_scratch(encoder, fixed["decoder"], how, fixed["attention"], seed)


def begun(encoder: UNetEncoder, arm: Arm, seed: int, folder: str | Path) -> UNetEncoder:
    """An encoder with the weights that an arm begins with; as it is where it begins with none.

    Raises:
        BadInput: the arm that it begins with isn't there, or has another encoder.
    """
    if arm.start:
        label, part = of_seed(arm.start, seed), "encoder."
        tensors, _ = checkpoints.load(label, folder)
        tensors = {name.removeprefix(part): one for name, one in tensors.items() if name.startswith(part)}
        check_tensors(tensors, encoder.state_dict(), label)
        encoder.load_state_dict(tensors)
    return encoder


def _fit(model: nn.Module, arm: Arm, known: Split, settings: Mapping, folder: Path | None = None, **how) -> dict:
    """Train a stage; its curves by name. Stage 2 has two, that of the head alone and that of both."""
    training = Training(
        settings["steps"], settings["lr"], weight_decay=settings["weight_decay"], seed=settings["seed"],
        checkpoint_every=settings["checkpoint_every"],
    )  # fmt: skip
    curves, how_long = {}, (training, settings["batch"], arm.encoder_rate)
    if arm.stage == SEG:
        some, patch = known.segmented(arm.granularity, settings["patients"]), tuple(settings["patch"])
        curves[SEG] = unet_training.fit(model, some, training, settings["batch"], patch, folder=folder, **how)
    elif arm.stage == CLS:
        first = replace(training, steps=settings["head_steps"], lr=settings["head_lr"])
        curves[HEAD] = classification.fit_head(
            model, known.scans, known.labels, first, settings["head_batch"], settings["views"],
            folder=folder and folder / HEAD, **how,
        )  # fmt: skip
        curves[CLS] = classification.fit(model, known.scans, known.labels, *how_long, folder=folder, **how)
    else:
        curves[REP] = report_writer.fit(model, known.scans, *how_long, folder=folder, **how)
    return curves


def save(folder: Path, model: nn.Module, arm: Arm, record: dict) -> Path:
    """Write a trained model; of a pretrained decoder what learnt alone."""
    return checkpoints.save(folder.name, stored(model, arm), record, folder.parent)


def stored(model: nn.Module, arm: Arm) -> dict[str, Tensor]:
    """The tensors of a model that are stored: all, or the encoder's and what learns beside a pretrained decoder."""
    tensors = model.state_dict()
    if not arm.lora:
        return tensors
    learns = {name for name, one in model.named_parameters() if one.requires_grad}
    return {name: one for name, one in tensors.items() if name in learns or name.startswith("encoder.")}


def read(name: str, folder: str | Path = checkpoints.FOLDER) -> UNet | QueryClassifier | ReportWriter:
    """A trained model, frozen and in evaluation mode.

    Args:
        name: of an arm and seed, such as "uvlm-cls-CL-seed1".
        folder: of checkpoints.

    Raises:
        BadInput: no such checkpoint, or one of another kind.
    """
    tensors, record = checkpoints.load(name, folder)
    if "arm" not in record or "settings" not in record:
        raise BadInput(f"the checkpoint {name} isn't of an arm of U-VLM; give one of `ctvlm arm {PREFIX}…`")
    arm = Arm(**record["arm"])
    model = build(replace(arm, start=""), record["seed"], folder)
    check_tensors(tensors, stored(model, arm), name)
    model.load_state_dict(tensors, strict=not arm.lora)
    return model.eval().requires_grad_(False)


def ask(model: nn.Module, split: Split, arm: Arm, masks: int = 0) -> dict[str, np.ndarray]:
    """What a trained model says of a split.

    Args:
        model, split, arm: who is asked about whom.
        masks: the first so many patients are segmented, in windows of the size of a training patch; 0: all.

    Returns:
        stage 1: ``dice`` float ``(n, classes − 1)``, NaN where a class isn't there, and, if it knows lesions,
        ``lesion`` int ``(n, 3)``: voxels of lesions that it found in each of ORGANS. Stage 2: ``logits`` ``(n, 18)``.
        Stage 3: ``report``, n texts.
    """
    if arm.stage == CLS:
        return {"logits": np.round(classification.logits_of(model, split.scans), 3)}
    if arm.stage == REP:
        return {"report": np.array(report_writer.reports_of(model, split.scans))}
    known, classes = split.segmented(arm.granularity, masks), ClassMap.of("phantom", arm.granularity)
    found = unet_training.segment(model, known.hu, tuple(load()[SEG]["patch"]))
    said = {"dice": np.round(unet_training.dice_of(found, known), 3)}
    if classes.lesions:
        said["lesion"] = np.stack([unet_training.lesion_voxels(one, classes, ORGANS) for one in found])
    return said


def _store(said: Mapping[str, Mapping[str, np.ndarray]], record: dict, home: Path) -> None:
    with atomic_path(home) as partial:
        partial.mkdir()
        for split, one in said.items():
            write_said(one, partial / f"{split}.npz")
        checkpoints.write_record(record, partial)


def store_truth(world: World, results: str | Path = RESULTS) -> Path:
    """Write what is true of the scored splits, which tables need beside what was said: labels and reports."""
    with atomic_path(Path(results) / TRUTH) as partial:
        partial.mkdir()
        for name in SPLITS:
            split = world.split(name)
            write_said({"labels": split.labels.astype(int), "report": np.array(split.scans.reports)},
                       partial / f"{name}.npz")  # fmt: skip
    return Path(results) / TRUTH
