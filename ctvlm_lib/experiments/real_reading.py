"""A model of the cohort reads the two real CTs, and a language model that sees nothing is asked the same.

Far out of distribution: the models have seen phantoms only, and two patients are no sample. What comes out shows what
a model does with a real scan; it measures nothing about patients.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ctvlm_lib import view
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import same_words
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import perturb
from ctvlm_lib.experiments.answers import answer_table
from ctvlm_lib.experiments.conditions import Drawing, draw
from ctvlm_lib.experiments.controls import Reader
from ctvlm_lib.experiments.real_records import SeenCase, cases
from ctvlm_lib.records.package import LETTERS, user_text
from ctvlm_lib.records.record import Record

if TYPE_CHECKING:
    from ctvlm_lib.vlm.smollm2 import Chat

__all__ = ["SeenCase", "blind_answers", "cases", "drawing", "model_input", "picture", "read", "right", "summary"]

BLIND = "SmolLM2"


def drawing(case: SeenCase, condition: str, region: str | None) -> Drawing:
    """The prompt of a condition on a region; the red box is on the nearest other structure that the cohort knows.

    Raises:
        BadInput: no such condition, or a region that isn't in the field.
    """
    if condition == "none" or region is None:
        return Drawing("none")
    masks = case.field.masks
    if region not in masks:
        raise BadInput(f"{case.name} shows no {region} in the field; choose one of {', '.join(masks)}")
    other = perturb.neighbour(masks, region, case.field.volume.spacing_mm) if condition == "dual" else None
    return Drawing(condition, masks[region], None if other is None else masks[other])


def model_input(
    case: SeenCase, condition: str, region: str | None, channels: int = 3, colour: str = ""
) -> np.ndarray:
    """What an encoder gets: float32 ``(channels, D, H, W)`` in −1…1, the prompt drawn in as ``draw`` does."""
    return draw(as_input(case.field.volume.hu), drawing(case, condition, region), channels, colour=colour)


def read(reader: Reader, case: SeenCase, condition: str, blind: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Ask a reader everything about a case.

    Args:
        reader: such as :class:`ctvlm_lib.experiments.vlm_reader.VlmReader`.
        case: of :func:`cases`.
        condition: what is drawn, and how questions are worded; the phase is asked without a prompt.
        blind: :func:`blind_answers`, put beside.

    Returns:
        One row a question: ``case``, ``kind``, ``form``, ``region``, ``question`` (plain), ``choices``, ``truth``,
        ``condition``, ``answer``, ``confidence``, ``correct``; with ``blind`` also ``SmolLM2`` and
        ``SmolLM2 correct``. An open answer is right if it has the truth's words, a closed one by
        :func:`ctvlm_lib.evaluate.choice.score_closed`.

    Raises:
        BadInput: no such condition, or closed answers of which none can be read.
    """
    groups: dict[str | None, list[Record]] = {}
    for record in case.records:
        groups.setdefault(record.region, []).append(record)
    way = getattr(reader, "colour", "")
    pictures = np.stack([model_input(case, condition, region, reader.channels, way) for region in groups])
    said = [pair for pairs in reader.answer(pictures, list(groups.values()), condition) for pair in pairs]
    records = [record for group in groups.values() for record in group]
    answers, confidence = zip(*said, strict=True)
    table = answer_table(records, answers, confidence, condition=condition)
    table["case"], table["question"] = case.name, [record.question for record in records]
    table["correct"] = right(table)
    columns = ["case", "kind", "form", "region", "question", "choices", "truth", "condition", "answer", "confidence",
               "correct"]  # fmt: skip
    if blind is not None:
        table[BLIND] = [blind[record.id] for record in records]
        table[f"{BLIND} correct"] = right(table.assign(answer=table[BLIND], confidence=np.nan))
        columns += [BLIND, f"{BLIND} correct"]
    return table[columns]


def blind_answers(chat: "Chat", seen_cases: Sequence[SeenCase], max_new_tokens: int = 24) -> dict[str, str]:
    """What a language model says to the same questions without any image: record's id → its words."""
    records = [record for case in seen_cases for record in case.records]
    said = chat.ask_all([user_text(record) for record in records], max_new_tokens)
    return {record.id: text for record, text in zip(records, said, strict=True)}


def right(table: pd.DataFrame) -> pd.Series:
    """Whether each answer of a table of answers is right, bool, in its order."""
    open_right = [same_words(answer, truth) for answer, truth in zip(table["answer"], table["truth"], strict=True)]
    found = pd.Series(open_right, index=table.index)
    found.update(score_closed(table)["correct"])
    return found.astype(bool)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Right answers beside what costs nothing.

    Args:
        table: of :func:`read`, or several of them one below the other.

    Returns:
        For each condition, kind and form: ``n``; ``accuracy``; ``chance`` (closed: one over the number of choices);
        ``constant`` (the most that always the same letter or the same words reach); ``says`` (the model's most frequent
        words) and ``share`` (of its answers); with blind answers also theirs. Shares 0…1.
    """
    rows = []
    for key, group in table.groupby(["condition", "kind", "form"], sort=False):
        words = group["answer"].map(_words)
        closed = key[2] == "closed"
        row = dict(zip(("condition", "kind", "form"), key, strict=True)) | {
            "n": len(group),
            "accuracy": float(group["correct"].mean()),
            "chance": float((1 / group["choices"].map(len)).mean()) if closed else float("nan"),
            "constant": float(max(_largest_share(group["truth"]), _largest_share(_letters(group)) if closed else 0)),
            "says": words.mode()[0],
            "share": _largest_share(words),
        }
        if BLIND in group:
            row[BLIND] = float(group[f"{BLIND} correct"].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def picture(case: SeenCase, condition: str, region: str, window: str | tuple[float, float] = "soft tissue"):
    """The three planes through a region's middle on the model's grid, with the prompt's lines as the model gets them.

    The grey values are a window for the eye; the model's own scale shows bone and lung, too
    (:func:`ctvlm_lib.alignment.scans.as_input`).

    Args:
        case: of :func:`cases`.
        condition: what is drawn.
        region: one of ``case.field.masks``.
        window: preset's name or (level, width) in HU.

    Returns:
        A figure, radiological: the patient's right on the left of axial and coronal slices.
    """
    lines = drawing(case, condition, region).lines()
    if region not in case.field.masks:
        raise BadInput(f"{case.name} shows no {region} in the field; choose one of {', '.join(case.field.masks)}")
    at = np.rint(np.argwhere(case.field.masks[region]).mean(axis=0)).astype(int)
    names = ("contour",) if condition == "contour" else ("box", "distractor")
    labelled = [(line, colour, f"{colour} {name}") for (line, colour), name in zip(lines, names, strict=False)]
    title = f"{case.name}, {region}: {condition}"
    return view.orthogonal(case.field.volume, at, window, outlines=labelled, title=title, lines=False)


def _words(answer: str) -> str:
    """An answer without its letter: "A. liver" → "liver"."""
    return answer[3:] if answer[:1] in LETTERS and answer[1:3] == ". " else answer


def _letters(group: pd.DataFrame) -> pd.Series:
    """The right letter of each closed question."""
    pairs = zip(group["choices"], group["truth"], strict=True)
    return pd.Series([LETTERS[list(choices).index(truth)] for choices, truth in pairs], index=group.index)


def _largest_share(values: pd.Series) -> float:
    return float(values.value_counts(normalize=True).iloc[0])
