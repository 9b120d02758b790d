"""The same questions under every control: the prompt elsewhere, in other colours, on a wrong mask, or gone.

A reader is anything that answers questions about pictures. Who asks decides what is drawn; so the vision–language
models, the probes and a person's own model are all asked by the same code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.prompted import distractor_of
from ctvlm_lib.alignment.scans import Scans, as_input
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import perturb
from ctvlm_lib.experiments.answers import AS_ASKED, answer_table
from ctvlm_lib.experiments.conditions import PAPERS_COLOURS, SWAPPED_COLOURS, Drawing, draw
from ctvlm_lib.experiments.kept_answers import KeptAnswers, Said
from ctvlm_lib.records.balance import drawn
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.phantom.canvas import FIELD_MM
from ctvlm_lib.records.record import Record

MOVED, RECOLOURED, REMOVED, NEIGHBOUR = "moved", "colours swapped", "removed", "wrong neighbour"
_CHANGES = {"dilated": perturb.dilate, "eroded": perturb.erode, "shifted": perturb.shift}


class Reader(Protocol):
    """Answers questions about pictures.

    Attributes:
        channels: of the pictures that it is shown, 1 or 3.
        colour: how lines get in, see :func:`ctvlm_lib.experiments.conditions.draw`; a reader without it is shown them
            as its channels allow, which "" says, too.
    """

    channels: int
    colour: str

    def answer(
        self, pictures: np.ndarray, questions: Sequence[Sequence[Record]], condition: str
    ) -> list[list[tuple[str, float]]]:
        """Answer questions.

        Args:
            pictures: float32 ``(B, channels, D, H, W)`` in −1…1.
            questions: those about each picture.
            condition: the one that the reader was made for; under a control the picture may show something else.

        Returns:
            (answer, confidence 0…1 or NaN) of each question.
        """


@dataclass(frozen=True)
class Control:
    """What is changed about a prompt. ``name`` is a word of this module, for a mask with its millimetres."""

    name: str
    mm: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.mm:g} mm" if self.name in _CHANGES else self.name


def controls_for(condition: str, distances_mm: dict[str, Sequence[float]]) -> tuple[Control, ...]:
    """The controls that mean something under a condition, the unchanged prompt first.

    Args:
        condition: of :data:`ctvlm_lib.experiments.conditions.CONDITIONS`.
        distances_mm: "dilated", "eroded", "shifted" → by how much.
    """
    if condition == "none":
        return (Control(AS_ASKED),)
    changed = [Control(name, mm) for name in _CHANGES for mm in distances_mm.get(name, ())]
    return tuple(Control(name) for name in (AS_ASKED, REMOVED, MOVED, RECOLOURED, NEIGHBOUR)) + tuple(changed)


def ask(
    reader: Reader,
    records: Iterable[Record],
    scans: Scans,
    condition: str,
    control: Control | None = None,
    *,
    seed: int = 0,
    batch: int = 24,
    progress: Callable[[int, int], None] | None = None,
    kept: KeptAnswers | None = None,
) -> pd.DataFrame:
    """Ask a reader about a cohort under one condition and one control.

    Args:
        reader: who answers.
        records: about patients of the cohort; those about no region are asked without a prompt.
        scans: the cohort.
        condition: what is drawn.
        control: what is changed about it; None: nothing.
        seed: of the reader's training, kept in the table. Where a prompt is moved to depends on the question alone.
        batch: pictures at a time.
        progress: called with (pictures, of how many).
        kept: gets each batch's answers, and gives them back where a killed run got them already. Its folder is for one
            reader, condition and control.

    Returns:
        A table of answers, see :func:`ctvlm_lib.experiments.answers.answer_table`.

    Raises:
        BadInput: no records, or one about a patient who isn't in the cohort.
    """
    records, control = list(records), control or Control(AS_ASKED)
    if not records:
        raise BadInput("there are no questions to ask; give records of the cohort")
    place = {name: k for k, name in enumerate(scans.names)}
    lost = [r.id for r in records if r.patient not in place]
    if lost:
        raise BadInput(f"{lost[0]} is about a patient who isn't among the {len(scans)} scans; give the whole cohort")
    records.sort(key=lambda r: (place[r.patient], r.region or ""))
    groups = [list(same) for _, same in groupby(records, key=lambda r: (r.patient, r.region))]
    said = []
    for start in range(0, len(groups), batch):
        some = groups[start : start + batch]
        asked = [record for group in some for record in group]
        found = kept and kept.read(asked)
        if not found:
            found = _answered(reader, some, scans, place, condition, control)
            if kept:
                kept.write(asked, found)
        said += found
        if progress:
            progress(min(start + batch, len(groups)), len(groups))
    answers, confidence, marked = zip(*said, strict=True)
    return answer_table(records, answers, confidence, condition=condition, control=str(control), seed=seed,
                        marked=marked)  # fmt: skip


def _answered(
    reader: Reader,
    groups: Sequence[Sequence[Record]],
    scans: Scans,
    place: Mapping[str, int],
    condition: str,
    control: Control,
) -> list[Said]:
    """Ask about some pictures; ``place`` says where each patient's scan is."""
    shown = [
        picture_for(group[0], scans, place[group[0].patient], condition, control, reader.channels,
                    getattr(reader, "colour", ""))
        for group in groups
    ]  # fmt: skip
    answered = reader.answer(np.stack([picture for picture, _ in shown]), groups, condition)
    return [Said(*pair, on) for pairs, (_, on) in zip(answered, shown, strict=True) for pair in pairs]


def picture_for(
    record: Record, scans: Scans, k: int, condition: str, control: Control, channels: int, colour: str = ""
) -> tuple[np.ndarray, str]:
    """The picture that a question is asked about.

    Args:
        record: the question; its region is what is marked.
        scans: the cohort. k: the patient's place in it.
        condition, control: what is drawn, and what is changed about it.
        channels, colour: of the reader.

    Returns:
        float32 ``(channels, D, H, W)``, and the structure that the prompt is on, "" without a prompt.
    """
    drawing, on = drawing_for(record, scans, k, condition, control)
    return draw(as_input(scans.hu[k]), drawing, channels, colour=colour), on


def drawing_for(record: Record, scans: Scans, k: int, condition: str, control: Control) -> tuple[Drawing, str]:
    """What is drawn for a question, and the structure that it is on; arguments as of :func:`picture_for`."""
    if condition == "none" or control.name == REMOVED or record.region is None:
        return Drawing("none"), ""
    region, spacing = scans.region[k], tuple(FIELD_MM / n for n in scans.region.shape[1:])
    there = np.bincount(region.ravel(), minlength=len(REGIONS) + 1)[1:] > 0
    masks = {name: region == r + 1 for r, name in enumerate(REGIONS) if there[r]}
    if record.region not in masks:
        raise BadInput(f"{record.id} asks about the {record.region}, which isn't in the volume; leave the record out")
    target = _target(record, masks, spacing, control)
    mask = masks[target]
    if control.name in _CHANGES:
        # which way a mask is off depends on the question alone, so that every reader meets the same error
        way = {"direction": _pick(tuple(perturb.DIRECTIONS), record, "way")} if control.name == "shifted" else {}
        mask = _CHANGES[control.name](mask, control.mm, spacing, **way)
    other = None
    if condition == "dual":
        nearest = distractor_of(region, scans.found[k], REGIONS.index(target))
        other = None if nearest is None else masks[REGIONS[nearest]]
    colours = SWAPPED_COLOURS if control.name == RECOLOURED else PAPERS_COLOURS
    return Drawing(condition, mask, other, tuple(colours.items())), target


def _target(record: Record, masks: dict, spacing, control: Control) -> str:
    """The structure that is marked: the asked one, unless the prompt is moved."""
    if control.name == NEIGHBOUR:
        return perturb.neighbour(masks, record.region, spacing) or record.region
    if control.name == MOVED:
        others = tuple(name for name in masks if name != record.region)
        return _pick(others, record, "moved") if others else record.region
    return record.region


def _pick(options: tuple[str, ...], record: Record, what: str) -> str:
    return options[drawn(record.patient, record.region, what) % len(options)]
