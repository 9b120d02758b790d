"""An arm of the vision–language model from its name to its stored answers: trained, asked everything, stored.

Which arms there are says :mod:`ctvlm_lib.experiments.vlm_arms`, what they learn from
:mod:`ctvlm_lib.experiments.vlm_lessons`.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ctvlm_lib import assets, checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import atomic_path
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.controls import MOVED, NEIGHBOUR, RECOLOURED, REMOVED, ask, controls_for
from ctvlm_lib.experiments.kept_answers import KeptAnswers
from ctvlm_lib.experiments.pointing import ANSWERS
from ctvlm_lib.experiments.vlm_arms import recipe_of
from ctvlm_lib.experiments.vlm_lessons import AS_IS, features_of, held_out_of, lessons_of
from ctvlm_lib.experiments.vlm_reader import ROOM, VlmReader
from ctvlm_lib.notebook_progress import duration
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import recorded
from ctvlm_lib.records.record import Record
from ctvlm_lib.training_processes import alone
from ctvlm_lib.vlm import finetune, finetune_saving
from ctvlm_lib.vlm.finetune_recipe import Finetuning
from ctvlm_lib.vlm.lessons import Lesson, Lessons

FEW = (MOVED, REMOVED, RECOLOURED, NEIGHBOUR)  # controls of every size; the smallest is asked under all
QUIET_S = 30.0  # between two lines that tell how far the asking is


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
        name: one of :data:`ctvlm_lib.experiments.vlm_arms.ARMS`.
        profile: how many patients.
        seed: of projector, adapters and steps; any but 0 is added to the names of the two folders.
        cohort: None draws the profile's.
        splits: that are asked; the test split needs a committed protocol.
        folder: for checkpoints and answers on the way.
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
    record = recorded(splits)
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
        said[split] = ask_all(reader, cohort, split, config, controls, tell,
                              on_the_way(folder, record, split))  # fmt: skip
        record["minutes"][split] = round((time.monotonic() - began) / 60, 2)
    store(said, cohort, record | {"controls_of": list(ANSWERS)}, Path(results) / label)
    forget(folder)
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


def ask_all(
    reader: VlmReader,
    cohort: Cohort,
    split: str,
    config: Finetuning,
    controls: bool | None = None,
    progress: Callable[[str], None] | None = None,
    kept: Path | None = None,
) -> pd.DataFrame:
    """Ask everything that was learnt; on the test split what the probes are asked under the controls, too.

    Args:
        reader: of the trained model.
        cohort: whose split is asked about. split: "validation" or "test".
        config: names the condition, the decoder, the seed and the kinds that were learnt.
        controls: None: if the seed is 0.
        progress: called with a line now and then, with an estimate, and after each control.
        kept: folder of answers that a killed run got from this very model.
    """
    content, tables = protocol.load().content, []
    fixed, scans = content["vlm"], cohort.scans[split]
    wanted = split == "test" and (not config.seed if controls is None else controls)
    for control in controls_for(config.condition, content["controls"]):
        if control == AS_IS:
            asked = cohort.questions(split, kinds=config.kinds, patients=fixed["patients"][split])
            tables += as_asked(reader, asked, scans, config, progress, kept)
        elif wanted and (control.name in FEW or config.decoder == "small"):
            asked = cohort.questions(split, kinds=ANSWERS, form="closed", patients=fixed["controls_patients"])
            tables.append(ask(reader, asked, scans, config.condition, control, seed=config.seed,
                              **_options(progress, str(control), kept)))  # fmt: skip
        else:
            continue
        if progress:
            progress(f"{split}, {config.condition}, {control}: {len(asked):,} answers")
    return pd.concat(tables, ignore_index=True)


def as_asked(
    reader: VlmReader,
    asked: Sequence[Record],
    scans: Scans,
    config: Finetuning,
    progress: Callable[[str], None] | None = None,
    kept: Path | None = None,
) -> list[pd.DataFrame]:
    """Answers with the prompt as it is: reports in a table of their own, if there are any, then all else.

    ``progress`` is called with a line now and then, ``kept`` a folder as of :func:`ask_all`.
    """
    reports = [record for record in asked if record.kind == "report"]
    others = [record for record in asked if record.kind != "report"]
    tables = []
    if reports:  # by themselves, as they are long: those of one batch are written side by side
        tables.append(ask(reader, reports, scans, config.condition, seed=config.seed, batch=100,
                          **_options(progress, "reports", kept)))  # fmt: skip
    return [*tables, ask(reader, others, scans, config.condition, AS_IS, seed=config.seed,
                         **_options(progress, str(AS_IS), kept))]  # fmt: skip


def on_the_way(folder: str | Path | None, record: Mapping, split: str) -> Path | None:
    """Where a model's answers lie until all are there: trained again, it is another model and is asked anew."""
    return Path(folder) / "asked" / record["weights"]["sha256"][:16] / split if folder else None


def forget(folder: str | Path | None) -> None:
    """Remove answers on the way, as all are stored: whoever runs the arm once more wants it asked once more."""
    if folder:
        shutil.rmtree(Path(folder) / "asked", ignore_errors=True)


def _options(tell: Callable[[str], None] | None, what: str, kept: Path | None) -> dict:
    """Of :func:`ask`: lines now and then, and a folder for what is asked here."""
    return {"progress": _paced(tell, what), "kept": kept and KeptAnswers(kept / what.replace(" ", "-"))}


def _paced(tell: Callable[[str], None] | None, what: str) -> Callable[[int, int], None] | None:
    """For ``ask``: how many pictures are done and about how long the others take, a line in QUIET_S seconds."""
    began = told = time.monotonic()

    def progress(done: int, count: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done < count and now - told >= QUIET_S:
            told, left = now, (now - began) / done * (count - done)
            tell(f"{what}: {done:,} of {count:,} pictures (about {duration(left)} left)")

    return tell and progress


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
