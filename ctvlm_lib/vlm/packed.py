"""Rows that hold one image and many questions about it, so that the image is read once for all of them.

    row     image   question 1   "A. spleen" EOS   "B. heart" EOS   question 2   "Yes" EOS   …
    sees    image   image,       image, question 1,                 image,       image, question 2,
                    itself       itself                             itself       itself

Each question has the positions that it has alone, so that nothing but the price changes. Used where a model is asked;
:mod:`ctvlm_lib.vlm.lessons` packs what it learns from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ctvlm_lib.evaluate.answers import YES_NO
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.lessons import PADDING, prefix_length
from ctvlm_lib.vlm.processor import CtvlmProcessor

ROOM = 320  # tokens of a row behind the image: as long as is still cheap, since attention grows with its square


def offered(record: Record) -> tuple[str, ...]:
    """The answers that a closed question offers."""
    return record.choices or YES_NO


@dataclass
class Row:
    """One picture and some of the questions about it.

    Attributes:
        picture: its place among the pictures.
        ids: tokens. positions: theirs.
        segments: 0 for the image, 1 … for the questions. parts: 0 for a question's words, 1 … for its answers.
        questions: place of each segment's question among all.
        ends: where each question's words end: its last token's place.
        foretold: (source, token, question, choice): which answer's token is foretold where.
    """

    picture: int
    ids: list[int]
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    foretold: list[tuple[int, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.ids)
        self.segments, self.parts, self.positions = [0] * count, [0] * count, list(range(count))
        self.image = count

    def add(self, question: int, asked: list[int], answers: Sequence[list[int]]) -> None:
        """Append a question, and its answers if it has any."""
        self.questions.append(question)
        after = self.image + len(asked)
        self._append(asked, 0, range(self.image, after))
        self.ends.append(len(self.ids) - 1)
        for choice, tokens in enumerate(answers):
            here = len(self.ids)
            self._append(tokens, choice + 1, range(after, after + len(tokens)))
            sources = [self.ends[-1], *range(here, here + len(tokens) - 1)]
            self.foretold += [(s, t, question, choice) for s, t in zip(sources, tokens, strict=True)]

    def _append(self, tokens: list[int], part: int, positions: range) -> None:
        self.ids += tokens
        self.segments += [len(self.questions)] * len(tokens)
        self.parts += [part] * len(tokens)
        self.positions += positions


def rows(
    processor: CtvlmProcessor, asked: Sequence[Sequence[Record]], room: int = ROOM, answers: bool = True
) -> Iterator[Row]:
    """Fill rows with questions about one picture each.

    Args:
        processor: of the model that is asked.
        asked: questions about each picture, worded as the model reads them.
        room: tokens of a row behind the image; one question fits always.
        answers: the offered ones stand behind each question.
    """
    image = processor.sequence("?")[0][: prefix_length(processor)]
    question, known = 0, {}
    for picture, group in enumerate(asked):
        row = None
        for record in group:
            words, said = _tokens(processor, record, len(image), answers, known)
            needed = len(words) + sum(map(len, said))
            if row is None or (row.questions and len(row.ids) - len(image) + needed > room):
                if row is not None:
                    yield row
                row = Row(picture, list(image))
            row.add(question, words, said)
            question += 1
        if row is not None:
            yield row


def table(values: Sequence[Sequence[int]], filled: int, device: torch.device | str = "cpu") -> Tensor:
    """Lists of whole numbers as ``(B, longest)``, filled up on the right."""
    made = np.full((len(values), max(map(len, values))), filled)
    for k, one in enumerate(values):
        made[k, : len(one)] = one
    return torch.from_numpy(made).to(device)


def segments_of(some: Sequence[Row], device: torch.device | str = "cpu") -> Tensor:
    """Segments of rows ``(B, length)``, with :data:`ctvlm_lib.vlm.lessons.PADDING`."""
    return table([row.segments for row in some], PADDING, device)


def _tokens(processor, record: Record, image: int, answers: bool, known: dict) -> tuple[list[int], list[list[int]]]:
    """Tokens of a question behind the image, and of each offered answer with EOS."""
    text = (record.question, record.choices)
    if text not in known:
        if answers:
            said = [processor.sequence(record.question, answer, record.choices) for answer in offered(record)]
            start = said[0][1]
            known[text] = list(said[0][0][image:start]), [list(ids[start:]) for ids, _ in said]
        else:
            known[text] = list(processor.sequence(record.question, None, record.choices)[0][image:]), []
    return known[text]
