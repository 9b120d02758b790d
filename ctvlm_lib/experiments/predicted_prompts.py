"""Prompts where nobody drew a mask: U-VLM's first stage finds the regions, and the questions are asked again on those.

Both papers of prompts name it a limitation that masks have to be there: contours need "high-quality segmentation masks
from VISTA-3D", boxes "pre-computed segmentation masks". Here the same readers answer the same questions with prompts
from true masks, from predicted ones, and without any, so that what a mask's errors cost stands beside what a prompt is
worth.

A region that wasn't found can't be marked: its questions are asked without a prompt, and counted. Which neighbour gets
the red box of "dual" is still chosen by what is true of the neighbours (``found``); only its mask is predicted.

Sources: contour.txt §5, dualbox.txt §5 (the limitation); uvlm.txt §2.1 (the segmentation).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from ctvlm_lib import assets, checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, pointing, scores, uvlm, uvlm_protocol, uvlm_said
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.controls import REMOVED, Control, Reader, ask
from ctvlm_lib.experiments.predicted_masks import GRANULARITY, dice_table, overlap, with_predicted
from ctvlm_lib.experiments.vlm_reader import VlmReader
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import check_committed
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.record import Record
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.vlm import finetune_saving

NAME, MASKS_FILE, SPLIT = "prompts-predicted", "masks.npz", "test"
SOURCE = "uvlm-seg-FL"  # the arm of GRANULARITY
PREDICTED = "predicted mask"  # a control, beside "as asked" and "removed"
MASKS = {AS_ASKED: "true", PREDICTED: "predicted", REMOVED: "no prompt"}  # control → whose masks
PROMPTS = tuple(name for name in CONDITIONS if name != "none")


# answers


def ask_with(
    reader: Reader,
    records: Sequence[Record],
    true: Scans,
    predicted: Scans,
    condition: str,
    *,
    seed: int = 0,
    batch: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Ask the same questions with prompts from true masks, from predicted ones, and without prompts.

    Args:
        reader: who answers.
        records: about patients of the cohort.
        true: the cohort with its true masks. predicted: of :func:`with_predicted`.
        condition: what is drawn, one of PROMPTS.
        seed: kept in the table.
        batch, progress: as of :func:`ctvlm_lib.experiments.controls.ask`.

    Returns:
        A table of answers with the controls of MASKS, the questions in one order under each. ``marked`` is "" where
        nothing was drawn: under "predicted mask" the region wasn't found, and the answer is that without a prompt.

    Raises:
        BadInput: a condition that draws nothing, or what :func:`ctvlm_lib.experiments.controls.ask` refuses.
    """
    if condition not in PROMPTS:
        raise BadInput(f"the condition {condition!r} draws no prompt; choose one of {', '.join(PROMPTS)}")
    how = {"seed": seed, "batch": batch, "progress": progress}
    plain = ask(reader, records, true, condition, **how)
    removed = ask(reader, records, true, condition, Control(REMOVED), **how)
    found = [record for record in records if _is_found(record, predicted)]
    parts = [removed[~removed["id"].isin({record.id for record in found})]]
    parts += [ask(reader, found, predicted, condition, **how)] if found else []
    drawn = pd.concat(parts).assign(control=PREDICTED).set_index("id").loc[plain["id"]].reset_index()
    return pd.concat([plain, drawn[list(plain)], removed], ignore_index=True)


def _is_found(record: Record, scans: Scans) -> bool:
    if record.patient not in scans.names:
        raise BadInput(f"{record.id} is about a patient whose masks weren't predicted; give the whole cohort")
    region = scans.region[scans.names.index(record.patient)]
    return record.region is None or bool((region == REGIONS.index(record.region) + 1).any())


def loss_table(table: pd.DataFrame) -> pd.DataFrame:
    """Closed accuracy by whose masks the prompts were drawn from, and what is lost against true ones.

    Args:
        table: of :func:`ask_with`, of one or several conditions; one seed.

    Returns:
        One row for each condition, stratum and kind of mask: condition, stratum, masks, questions, patients, accuracy,
        low, high, chance; then accuracy less that under true masks on the same questions ("less than true", "from",
        "to", p; NaN in the row of true masks), the smallest such difference that could be found ("detectable"), and
        the share of prompts that couldn't be drawn ("not drawn"). Shares 0…1; intervals over patients.

    Raises:
        BadInput: a control that is missing, several seeds, or answers that can't be scored.
    """
    scored = score_closed(table[table["control"].isin(list(MASKS))])
    known, rows = scores.accuracies(scored).set_index(scores.ASKED).drop(columns="unparsed"), []
    for (condition, stratum), same in scored.groupby(["condition", "stratum"], sort=False):
        if lost := [control for control in MASKS if control not in set(same["control"])]:
            raise BadInput(f"there are no answers {lost[0]!r} under {condition!r}; ask the reader with ask_with")
        for control, masks in MASKS.items():
            row = {"condition": condition, "stratum": stratum, "masks": masks}
            row |= known.loc[(condition, control, stratum)].to_dict()
            rows.append(row | _less(same, condition, control, stratum) | {"not drawn": _not_drawn(same, control)})
    return pd.DataFrame(rows).astype({"questions": int, "patients": int})


def _less(same: pd.DataFrame, condition: str, control: str, stratum: str) -> dict[str, float]:
    """Accuracy less that under true masks, its interval and test, and the smallest difference that could be found."""
    names = ("less than true", "from", "to", "p", "detectable")
    if control == AS_ASKED:
        return dict.fromkeys(names, float("nan"))
    sides = [{"condition": condition, "control": one} for one in (control, AS_ASKED)]
    found = scores.difference(same, *sides, stratum)
    finest = scores.smallest_detectable_difference(found.differences, protocol.load().content["metrics"]["power"])
    return dict(zip(names, (found.value, found.low, found.high, found.p, finest), strict=True))


def _not_drawn(same: pd.DataFrame, control: str) -> float:
    """Share of the questions about a region that no prompt was drawn for."""
    wanted = same.loc[(same["control"] == control) & (same["region"] != ""), "marked"]
    return float((wanted == "").mean())


# the experiment


@dataclass(frozen=True, eq=False)
class Readers:
    """Who is asked.

    Attributes:
        readers: condition → reader.
        made_with: checkpoint → sha256 of its weights.
    """

    readers: Mapping[str, Reader]
    made_with: Mapping[str, str]


def language_models(folder: str | Path = checkpoints.FOLDER) -> Readers:
    """The shipped vision–language models, each under the prompt that it was trained with."""
    readers, made_with = {}, {}
    for condition in PROMPTS:
        name = f"vlm-B-{condition}-small"
        model, processor, record = finetune_saving.load(Path(folder) / name)
        readers[condition] = VlmReader(model, processor, store=assets.cache_dir() / "features")
        made_with[name] = record["weights"]["sha256"]
    return Readers(readers, made_with)


def run(
    seed: int = 0,
    profile: str = "full",
    *,
    cohort: Cohort | None = None,
    asked: Readers | None = None,
    patients: int | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Find regions with a trained stage 1, ask stored readers on the test split, and store what came of it.

    Args:
        seed: of the U-Net's training; in the table of answers, too.
        profile: how many patients.
        cohort: None draws the profile's.
        asked: None takes :func:`language_models`.
        patients: the first so many of the test split; None: the protocol's ``controls_patients``.
        checkpoint_folder: with the U-Net.
        results: gets ``prompts-predicted[-seedN]/`` with ``test.npz`` (answers), ``masks.npz`` (Dice and
            voxels of each patient and region) and the record.
        progress: called with a line after each condition.

    Returns:
        The table of answers.

    Raises:
        BadInput: no such U-Net, or a protocol that isn't committed.
    """
    under, of_unet, began = check_committed(), check_committed(uvlm_protocol.FILES), time.monotonic()
    source = of_seed(SOURCE, seed)
    model, weights = uvlm.read(source, checkpoint_folder), checkpoints.record(source, checkpoint_folder)["weights"]
    cohort, asked = cohort or Cohort.of(profile, (SPLIT,)), asked or language_models()
    some = patients or protocol.load().content["vlm"]["controls_patients"]
    true = _first(cohort.scans[SPLIT], some)
    patch = tuple(uvlm_protocol.load()["segmentation"]["patch"])  # as it was trained: whole volumes do worse
    predicted = with_predicted(true, model, ClassMap.of("phantom", GRANULARITY), patch)
    records, tables = cohort.questions(SPLIT, kinds=pointing.ANSWERS, form="closed", patients=some), []
    for condition, reader in asked.readers.items():
        tables.append(ask_with(reader, records, true, predicted, condition, seed=seed))
        if progress:
            progress(f"{condition}: {len(records):,} questions with true masks, predicted ones and none")
    said = pd.concat(tables, ignore_index=True)
    record = {
        "config": {"masks": source, "granularity": GRANULARITY, "readers": "vision-language models"},
        "protocol": {"version": under.version, "sha256": under.sha256},
        "uvlm_protocol": {"version": uvlm_protocol.load()["version"], "sha256": of_unet.sha256},
        "made_with": {source: weights["sha256"]} | dict(asked.made_with),
        "rows": {SPLIT: len(said)}, "patients": len(true), "profile": cohort.profile, "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 2),
    } | checkpoints.circumstances({})  # fmt: skip
    name = of_seed(NAME, seed)
    _store(said, cohort.records[SPLIT], predicted, true, record, Path(results) / name)
    return said


def read_masks(folder: str | Path, names: Sequence[str]) -> pd.DataFrame:
    """The Dice of a stored folder, see :func:`dice_table`.

    Args:
        folder: of :func:`run`.
        names: of the test split's patients, in their order.

    Raises:
        BadInput: no such file.
    """
    kept = uvlm_said.read_said(Path(folder) / MASKS_FILE)
    return dice_table(tuple(names)[: len(kept["dice"])], kept["dice"], kept["voxels"])


def _first(scans: Scans, patients: int) -> Scans:
    return replace(scans, **{field.name: getattr(scans, field.name)[:patients] for field in fields(Scans)})


def _store(said: pd.DataFrame, records: Sequence[Record], predicted: Scans, true: Scans, record: dict, home: Path):
    """Write answers, overlap and record as a folder, whole or not at all."""
    dice, voxels = overlap(predicted, true)
    # only accuracies follow from these answers; without confidences, which don't compress, the file is half as large
    kept = said.assign(confidence=said["confidence"].where(said["control"] == AS_ASKED))
    with atomic_path(home) as partial:
        partial.mkdir()
        answers.save(kept, records, partial / f"{SPLIT}.npz")
        uvlm_said.write_said({"dice": dice, "voxels": voxels}, partial / MASKS_FILE)
        checkpoints.write_record(record, partial)
