"""What the arms of the vision–language model learn from: questions about some regions of each patient, and pictures."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctvlm_lib import assets
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import PAPERS_COLOURS
from ctvlm_lib.experiments.controls import Control, picture_for
from ctvlm_lib.experiments.vlm_reader import BLANK, worded
from ctvlm_lib.records import protocol
from ctvlm_lib.records.balance import drawn
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune_recipe import Finetuning
from ctvlm_lib.vlm.lessons import Lesson
from ctvlm_lib.vlm.model import CtvlmModel

NO_REGION, BLANK_KEY = "the whole scan", "blank"
AS_IS = Control(answers.AS_ASKED)


def lessons_of(cohort: Cohort, config: Finetuning, split: str = "train") -> list[Lesson]:
    """What a split teaches: for each patient some regions, and everything that is asked about each.

    Which regions depends on the patient alone, so that all conditions and seeds learn from the same questions. What is
    asked about no region counts as one more, beside the budget.

    Args:
        cohort: with the split's scans.
        config: which kinds of question, how many patients and regions, and which condition.
        split: of the cohort.

    Raises:
        BadInput: more training patients than there are.
    """
    if split == "train":
        protocol.check_budget(config.patients, len(cohort.scans[split]))
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
