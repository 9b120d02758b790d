"""The arms of the vision–language model, by name: encoder × condition × decoder, each with any seed.

``vlm-B-contour-small`` is encoder B, blue contours, the smallest decoder with LoRA. Behind the decoder's size may stand
what else is different: ``-scratch``, a decoder that began with random weights and learnt whole; ``-blind``, a model
that is shown blank pictures only; a projector of Med3DVLM's ablation; slice attention, ``-SSA`` or ``-MSSA``, or
``-MSSA-by-slice``, whose bias goes by slices instead of image vectors; ``-longer``, three times as many steps;
``-patients200``, fewer patients to learn from; ``-focal``, the contour paper's class-balanced focal loss on closed
answers and its penalty on LoRA; ``-focal-head``, the same with a head for closed questions; ``-out-of-window``, lines
whose values no tissue has; ``-distilled``, an epoch more beside the large decoder's arm of the same encoder, condition
and seed as teacher, which is trained first if it isn't there; ``-undistilled``, the same epoch without it. Arms that
differ in the condition alone are trained on the same questions in the same order.
"""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib import assets, checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS, PAPERS_COLOURS
from ctvlm_lib.experiments.controls import (
    MOVED,
    NEIGHBOUR,
    RECOLOURED,
    REMOVED,
    Control,
    ask,
    controls_for,
    picture_for,
)
from ctvlm_lib.experiments.pointing import ANSWERS
from ctvlm_lib.experiments.read_out_model import VOCABULARY
from ctvlm_lib.experiments.vlm_reader import BLANK, ROOM, VlmReader, worded
from ctvlm_lib.records import protocol
from ctvlm_lib.records.balance import drawn
from ctvlm_lib.records.committed import check_committed
from ctvlm_lib.records.questions import LUNG_SIZES_MM, ORGAN_SIZES_MM, PARTS, PHASES, size_class
from ctvlm_lib.records.record import Record
from ctvlm_lib.training_processes import alone
from ctvlm_lib.vlm import finetune, finetune_saving, ladder, smollm2
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune import Finetuning
from ctvlm_lib.vlm.lessons import Lesson, Lessons
from ctvlm_lib.vlm.losses import LossWeights
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.projector import IN_THE_PAPER
from ctvlm_lib.vlm.slice_attention import KINDS

ENCODERS = ("A", "A-continued", "B")
NO_REGION, BLANK_KEY = "the whole scan", "blank"
TEACHER, TAUGHT = "vlm-{encoder}-{condition}-large", ("small", "middle")  # who teaches, which decoders are taught
# for a CPU: 64 + 32 image vectors instead of 256 + 128, and no dropout in the adapters, which is a fifth of a step
ON_A_CPU = Finetuning(projector="merged", dropout=0.0, projector_steps=60, lora_steps=340, pictures=16)
_SIZES = [name for limits in (LUNG_SIZES_MM, ORGAN_SIZES_MM) for name in size_class(0, limits)[1]]
CLOSED_ANSWERS = tuple(dict.fromkeys((*VOCABULARY, *PHASES, *PARTS, *_SIZES)))  # all that the cohort's questions have
FOCAL = {"focal_gamma": 2.0, "class_balanced": True, "l2": LossWeights().reg}  # contour.txt §4
VARIANTS: dict[str, dict] = {
    "": {},
    "scratch": {"from_scratch": True},
    "blind": {"blind": True},
    "longer": {"projector_steps": 3 * ON_A_CPU.projector_steps, "lora_steps": 3 * ON_A_CPU.lora_steps,
               "look_every": 60},  # fmt: skip; the loss on validation patients by step
    **{f"patients{n}": {"patients": n} for n in (100, 200, 400)},
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
_OF_DECODER = {smollm2.ASSET: {"pictures": 4}}  # a step takes 20 times as long as the ladder's largest


def _arms() -> dict[str, Finetuning]:
    made = {}
    for encoder, condition, decoder, (variant, changes) in product(ENCODERS, CONDITIONS, DECODERS, VARIANTS.items()):
        if decoder == smollm2.ASSET and changes.get("from_scratch") or "teacher" in changes and decoder not in TAUGHT:
            continue
        if "colour" in changes and condition == "none":  # there is no line
            continue
        config = replace(ON_A_CPU, encoder=encoder, condition=condition, decoder=decoder,
                         **_OF_DECODER.get(decoder, {}), **changes)  # fmt: skip
        teacher = config.teacher.format(encoder=encoder, condition=condition)
        made["-".join(filter(None, ("vlm", encoder, condition, decoder, variant)))] = replace(config, teacher=teacher)
    return made


ARMS = _arms()
AS_IS = Control(answers.AS_ASKED)
FEW = (MOVED, REMOVED, RECOLOURED, NEIGHBOUR)  # controls of every size; the smallest is asked under all


def run(
    name: str,
    profile: str = "full",
    seed: int = 0,
    *,
    cohort: Cohort | None = None,
    splits: Sequence[str] = ("validation", "test"),
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    changes: Mapping | None = None,
    label: str = "",
    controls: bool | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Train an arm, store what was trained, ask it everything, and store its answers.

    Its teacher, if it has one, is trained first if it isn't there, and not asked.

    Args:
        name: one of ARMS.
        profile: how many patients.
        seed: of projector, adapters and steps; any but 0 is added to the names of the two folders.
        cohort: None draws the profile's.
        splits: that are asked; the test split needs a committed protocol.
        folder: for checkpoints on the way.
        checkpoint_folder: gets ``<name>/`` with projector and adapters in float16 and the record.
        results: gets ``<name>/`` with a file of answers for each split, and the record.
        changes: fields of :class:`ctvlm_lib.vlm.finetune.Finetuning` with other values.
        label: name of the two folders, instead of that of arm and seed.
        controls: whether the test split is asked under the controls too; None: if the seed is 0.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        Split → table of answers.

    Raises:
        BadInput: no such arm or setting, or a protocol that isn't committed.
    """
    alone(name)
    config, label = recipe_of(name, seed, changes or {}), label or of_seed(name, seed)
    record = _protocol(splits)
    cohort = cohort or Cohort.of(profile, ("train", *splits))
    target = Path(checkpoint_folder) / label
    if config.learns_from_teacher and not finetune_saving.find_teacher(config, target.parent, checkpoints.FOLDER):
        _train_teacher(config, cohort, target.parent, record, folder, progress)
    reader, record = trained(config, cohort, lessons_of(cohort, config), target, record,
                             held_out=held_out_of(cohort, config), folder=folder, on_step=on_step,
                             progress=progress)  # fmt: skip
    said, tell = {}, print if progress else None
    for split in splits:
        began = time.monotonic()
        said[split] = ask_all(reader, cohort, split, config, controls, tell)
        record["minutes"][split] = round((time.monotonic() - began) / 60, 2)
    store(said, cohort, record | {"controls_of": list(ANSWERS)}, Path(results) / label)
    return said


def trained(
    config: Finetuning,
    cohort: Cohort,
    taught: Sequence[Lesson],
    target: Path,
    record: Mapping,
    *,
    held_out: Sequence[Lesson] = (),
    most: int = ROOM,
    folder: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> tuple[VlmReader, dict]:
    """Train a model and store it; what answers is read back from there, float16's rounding included.

    Args:
        config: of the model.
        cohort: with the training patients' scans.
        taught: what is learnt.
        target: folder of the checkpoint; a teacher lies beside it or among those that ship.
        record: what else its record shall say.
        held_out: lessons of validation patients, where the recipe looks at them.
        most: tokens of the reader's open answers.
        folder, on_step, progress: as for :func:`run`.

    Returns:
        The reader, and the record for its answers, with recipe, weights and minutes.
    """
    started = time.monotonic()
    model, processor = finetune.build(config)
    record, teacher = dict(record), None
    if config.learns_from_teacher:
        teacher, told = finetune_saving.load_teacher(config, model, processor, target.parent, checkpoints.FOLDER)
        record |= {"teacher": told}
    features = features_of(model, cohort.scans["train"], taught, config)
    looked_at = None
    if held_out:
        kept = features_of(model, cohort.scans["validation"], held_out, config)
        looked_at = Lessons(processor, held_out, config.head_answers), kept
    ready = time.monotonic()
    curves = finetune.finetune(
        model, Lessons(processor, taught, config.head_answers), features, config, teacher=teacher, held_out=looked_at,
        folder=folder, on_step=on_step, progress=progress,
    )  # fmt: skip
    minutes = {"features": (ready - started) / 60, "training": (time.monotonic() - ready) / 60}
    record |= {"profile": cohort.profile, "seed": config.seed} | checkpoints.circumstances(curves)
    finetune_saving.save(target, model, config, record)
    model, processor, shipped = finetune_saving.load(target)
    reader = VlmReader(model, processor, config.blind, store=assets.cache_dir() / "features", most=most)
    minutes = {part: round(value, 2) for part, value in minutes.items()}
    return reader, record | {"finetuning": asdict(config), "minutes": minutes, "weights": shipped["weights"]}


def _train_teacher(
    config: Finetuning, cohort: Cohort, home: Path, record: Mapping, folder: str | Path | None, progress: bool
) -> None:
    """Train the teacher that a recipe names by the teacher's own recipe; of a folder for the student, one beside it."""
    its, label = recipe_of(config.teacher, config.seed), of_seed(config.teacher, config.seed)
    if progress:
        print(f"{label}, the teacher, has no checkpoint here; it is trained first, and isn't asked anything")
    way = Path(folder).parent / label if folder else None
    trained(its, cohort, lessons_of(cohort, its), home / label, record, held_out=held_out_of(cohort, its), folder=way,
            progress=progress)  # fmt: skip


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


def lessons_of(cohort: Cohort, config: Finetuning, split: str = "train") -> list[Lesson]:
    """What a split teaches: for each patient some regions, and everything that is asked about each.

    Which regions depends on the patient alone, so that all conditions and seeds learn from the same questions. What is
    asked about no region counts as one more, beside the budget.

    Args:
        cohort: with the split's scans.
        config: which kinds of question, how many patients and regions, and which condition.
        split: of the cohort.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in cohort.questions(split, kinds=config.kinds, patients=config.patients):
        groups.setdefault((record.patient, record.region or NO_REGION), []).append(record)
    regions: dict[str, list[str]] = {}
    for patient, region in groups:
        regions.setdefault(patient, []).append(region)
    made = []
    for patient, there in regions.items():
        ranked = sorted((r for r in there if r != NO_REGION), key=lambda region: drawn(patient, region, "learnt from"))
        for region in (*ranked[: config.regions or None], *(r for r in there if r == NO_REGION)):
            asked = tuple(worded(record, config.condition) for record in groups[patient, region])
            made.append(Lesson(key_of(asked[0], config), asked))
    return made


def held_out_of(cohort: Cohort, config: Finetuning) -> list[Lesson]:
    """What a recipe looks at while it trains: lessons of the validation patients that are asked; else nothing.

    Raises:
        BadInput: it looks, and the cohort has no validation patients.
    """
    if not config.look_every:
        return []
    if "validation" not in cohort.scans:
        raise BadInput("look_every looks at validation patients, and the cohort has none; ask that split, too")
    patients = protocol.load().content["vlm"]["patients"]["validation"]
    return lessons_of(cohort, replace(config, patients=patients), "validation")


def key_of(record: Record, config: Finetuning) -> str:
    """Name of the picture that a question is asked about; without a prompt a patient has one."""
    if config.blind:
        return BLANK_KEY
    plain = config.condition == "none" or record.region is None
    return f"{record.patient}/{NO_REGION if plain else record.region}"


def features_of(
    model: CtvlmModel,
    scans: Scans,
    lessons: Sequence[Lesson],
    config: Finetuning,
    *,
    store: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Features of all pictures of some lessons, computed once: other decoders and seeds read them from the disk.

    Args:
        model: with the frozen encoder.
        scans: of the lessons' patients.
        lessons: whose pictures are drawn as a reader is shown them, see :func:`ctvlm_lib.experiments.controls.ask`.
        config: says what is drawn, and how.
        store: folder; None takes the workbook's cache.
        progress: called with (pictures, of how many).
    """
    first = {lesson.key: lesson.records[0] for lesson in lessons}
    place = {name: k for k, name in enumerate(scans.names)}
    content = 0
    for part in ("\n".join(first).encode(), repr(PAPERS_COLOURS).encode(), scans.hu, scans.region, scans.found):
        content = zlib.crc32(part, content)
    name = f"{model.encoder_id()}-{config.drawn_as}-{len(first)}-{content:08x}.safetensors"
    path = Path(store or assets.cache_dir() / "features") / name
    if path.is_file():
        return FeatureCache.load(path)

    def picture(key: str):
        record, channels = first[key], model.config.encoder.in_channels
        if key == BLANK_KEY:
            return np.full((channels, *scans.hu.shape[1:]), BLANK, np.float32)
        k = place[record.patient]
        return picture_for(record, scans, k, config.condition, AS_IS, channels, config.colour)[0]

    found = FeatureCache.of(model, tuple(first), picture, progress=progress)
    found.save(path)
    return found


def ask_all(
    reader: VlmReader,
    cohort: Cohort,
    split: str,
    config: Finetuning,
    controls: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Ask everything that was learnt; on the test split what the probes are asked under the controls, too.

    Args:
        reader: of the trained model.
        cohort: whose split is asked about. split: "validation" or "test".
        config: names the condition, the decoder, the seed and the kinds that were learnt.
        controls: None: if the seed is 0.
        progress: called with a line after each control.
    """
    content, tables = protocol.load().content, []
    fixed, scans = content["vlm"], cohort.scans[split]
    wanted = split == "test" and (not config.seed if controls is None else controls)
    for control in controls_for(config.condition, content["controls"]):
        if control == AS_IS:
            asked = cohort.questions(split, kinds=config.kinds, patients=fixed["patients"][split])
            tables += as_asked(reader, asked, scans, config)
        elif wanted and (control.name in FEW or config.decoder == "small"):
            asked = cohort.questions(split, kinds=ANSWERS, form="closed", patients=fixed["controls_patients"])
            tables.append(ask(reader, asked, scans, config.condition, control, seed=config.seed))
        else:
            continue
        if progress:
            progress(f"{split}, {config.condition}, {control}: {len(asked):,} answers")
    return pd.concat(tables, ignore_index=True)


def as_asked(reader: VlmReader, asked: Sequence[Record], scans: Scans, config: Finetuning) -> list[pd.DataFrame]:
    """Answers with the prompt as it is: reports in a table of their own, if there are any, then all else."""
    reports = [record for record in asked if record.kind == "report"]
    others = [record for record in asked if record.kind != "report"]
    tables = []
    if reports:  # by themselves, as they are long: those of one batch are written side by side
        tables.append(ask(reader, reports, scans, config.condition, seed=config.seed, batch=100))
    return [*tables, ask(reader, others, scans, config.condition, AS_IS, seed=config.seed)]


def _protocol(splits: Sequence[str]) -> dict:
    """What a record says of the protocol, which has to be committed before the test split is asked."""
    if "test" not in splits:
        return {}
    under = check_committed()
    return {"protocol": {"version": under.version, "sha256": under.sha256}}


def store(said: Mapping[str, pd.DataFrame], cohort: Cohort, record: Mapping, home: Path) -> None:
    """Write answers and their record as a folder, whole or not at all.

    Args:
        said: split → answers to the cohort's records.
        cohort: that was asked.
        record: how they were made; the number of answers is added.
        home: the folder.
    """
    record = dict(record) | {"rows": {split: len(table) for split, table in said.items()}}
    with atomic_path(home) as partial:
        partial.mkdir()
        for split, table in said.items():
            answers.save(table, cohort.records[split], partial / f"{split}.npz")
        checkpoints.write_record(record, partial)
