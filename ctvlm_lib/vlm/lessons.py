"""What one step learns from: pictures, and several questions packed behind each.

    row        image 1 … image N   question 1 answer 1 EOS   question 2 answer 2 EOS   padding
    position   0 … N−1             N …                       N …
    sees       the image           image, itself             image, itself

No question sees another, and each has the positions that it has alone; so the loss is that of the questions one by one
(a test compares), at about a third of the price, as the image is read once.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.losses import class_balanced_alpha
from ctvlm_lib.vlm.processor import CtvlmProcessor
from ctvlm_lib.vlm.splice import IGNORED

PADDING = -1  # a row's segments: 0 the image, 1 … its questions


@dataclass(frozen=True)
class Lesson:
    """A picture and all that may be asked about it.

    Attributes:
        key: the picture's name in a :class:`ctvlm_lib.vlm.feature_cache.FeatureCache`.
        records: worded as the decoder shall read them.
    """

    key: str
    records: tuple[Record, ...]


class Words(NamedTuple):
    """One question as tokens, without the image.

    Attributes:
        ids: question, answer and EOS.
        start: where the answer begins.
        closed: whether the question is.
        cost: tokens of its plain wording, by which steps are filled: every condition then has the same questions.
        report: whether the answer is a report.
        answer: place of a closed answer among :attr:`Lessons.answers`; −1 of an open one.
        yes_no: whether the question is a closed one without choices.
    """

    ids: tuple[int, ...]
    start: int
    closed: bool
    cost: int
    report: bool = False
    answer: int = -1
    yes_no: bool = False


class Drawn(NamedTuple):
    """One picture of a step, and the questions that are asked about it."""

    key: str
    words: tuple[Words, ...]


class Packed(NamedTuple):
    """A batch of rows.

    Attributes:
        input_ids: ``(B, length)``.
        attention_mask: float32 ``(B, 1, length, length)``, 0 where a position sees another and −∞ elsewhere.
        position_ids: ``(B, length)``.
        labels: ``(B, length)``, −100 but on answers.
        closed: bool ``(B, length)``, whether a label belongs to a closed answer.
        answers: ``(B, length)``, there which one, a place among :attr:`Lessons.answers`; −1 elsewhere.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    closed: Tensor
    answers: Tensor

    def to(self, device) -> "Packed":
        """The same on another device."""
        return Packed(*(tensor.to(device) for tensor in self))


class Lessons:
    """Lessons as tokens, from which steps are drawn.

    Args:
        processor: of the model that learns.
        lessons: at least one, each with a question.
        answers: of a closed-ended head, see :mod:`ctvlm_lib.vlm.closed_head`; () takes those that there are.

    Attributes:
        answers: the answers of closed questions, by their words alone.

    Raises:
        BadInput: nothing to learn from, a question that is too long for the decoder, or an answer that a head lacks.
    """

    def __init__(self, processor: CtvlmProcessor, lessons: Sequence[Lesson], answers: Sequence[str] = ()):
        if not lessons or not all(lesson.records for lesson in lessons):
            raise BadInput("there is nothing to learn from; give lessons, each with at least one question")
        there = Counter(record.answer for lesson in lessons for record in lesson.records if record.form == "closed")
        self.answers = tuple(answers) or tuple(sorted(there))
        if lost := sorted(set(there) - set(self.answers)):
            raise BadInput(f"a closed question's answer is {lost[0]!r}, and head_answers doesn't name it; add it")
        self._place = {answer: place for place, answer in enumerate(self.answers)}
        self.counts = [there[answer] for answer in self.answers]
        self._known: dict[tuple, Words] = {}  # a few hundred texts are asked thousands of times
        self.image = tuple(processor.sequence("?")[0][: prefix_length(processor)])
        self.pad = processor.pad_token_id
        self.rows = [
            Drawn(lesson.key, tuple(self._words(processor, record) for record in lesson.records)) for lesson in lessons
        ]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def alpha(self) -> Tensor:
        """``(answers,)``: weight of each closed answer, the larger the rarer it is, see ``class_balanced_alpha``."""
        return class_balanced_alpha(self.counts) if any(self.counts) else torch.zeros(len(self.answers))

    def without_yes_no(self) -> "Lessons":
        """The same without yes/no questions, and without pictures about which nothing else is asked.

        Raises:
            BadInput: nothing is left.
        """
        left = copy.copy(self)
        left.rows = [Drawn(key, tuple(one for one in asked if not one.yes_no)) for key, asked in self.rows]
        left.rows = [row for row in left.rows if row.words]
        if not left.rows:
            raise BadInput("without yes/no questions there is nothing to learn from; set projector_yes_no to true")
        return left

    def draw(self, rng: np.random.Generator, pictures: int, words: int) -> list[Drawn]:
        """Draw pictures, each with as many of its questions as there is room for, so that little is padded.

        The same for the same generator, whatever the prompt.

        Args:
            rng: of the step.
            pictures: how many, different ones while there are enough.
            words: room for a picture's questions and answers, plainly worded, tokens; one question fits always.
        """
        return self.asked(rng.choice(len(self.rows), pictures, replace=pictures > len(self.rows)), rng, words)

    def asked(self, chosen: Iterable[int], rng: np.random.Generator, words: int) -> list[Drawn]:
        """Chosen pictures, by their numbers, each with as many of its questions as there is room for, in random order.

        Args:
            chosen: numbers of rows; one may stand several times.
            rng, words: as for :meth:`draw`.
        """
        drawn = []
        for k in chosen:
            key, asked = self.rows[k]
            drawn.append(Drawn(key, _fitting([asked[i] for i in rng.permutation(len(asked))], words)))
        return drawn

    def pack(self, drawn: Sequence[Drawn]) -> Packed:
        """Rows of a batch, padded on the right to the longest."""
        lengths = [len(self.image) + sum(len(words.ids) for words in one.words) for one in drawn]
        shape = (len(drawn), max(lengths))
        ids, labels, segments = (np.full(shape, value) for value in (self.pad, IGNORED, PADDING))
        positions, closed, answers = np.zeros(shape, int), np.zeros(shape, bool), np.full(shape, -1)
        for k, one in enumerate(drawn):
            here = len(self.image)
            ids[k, :here], segments[k, :here], positions[k, :here] = self.image, 0, range(here)
            for segment, words in enumerate(one.words, start=1):
                place, answer = slice(here, here + len(words.ids)), slice(here + words.start, here + len(words.ids))
                ids[k, place], segments[k, place] = words.ids, segment
                positions[k, place] = len(self.image) + np.arange(len(words.ids))
                labels[k, answer], closed[k, answer] = words.ids[words.start :], words.closed
                answers[k, answer] = words.answer
                here = place.stop
        tensors = [torch.from_numpy(array) for array in (ids, positions, labels, closed, answers)]
        return Packed(tensors[0], visible(torch.from_numpy(segments)), *tensors[1:])

    def _words(self, processor: CtvlmProcessor, record: Record) -> Words:
        text = (record.question, record.answer, record.choices)
        if text not in self._known:
            image, plain = len(self.image), record.worded("plain")
            ids, start = processor.sequence(*text)
            cost = len(processor.sequence(plain.question, plain.answer, plain.choices)[0]) - image
            closed, report = record.form == "closed", record.kind == "report"
            place = self._place[record.answer] if closed else -1
            self._known[text] = Words(tuple(ids[image:]), start - image, closed, cost, report, place,
                                      closed and not record.choices)  # fmt: skip
        return self._known[text]


def prefix_length(processor: CtvlmProcessor) -> int:
    """Tokens in front of a question: those of the image, and BOS where the tokenizer has one."""
    ids = processor.sequence("?")[0]
    return max(k for k, token in enumerate(ids) if token == processor.image_token_id) + 1


def _fitting(asked: Sequence[Words], room: int) -> tuple[Words, ...]:
    """The first question, and of the others in turn those that still fit."""
    taken = [asked[0]]
    for words in asked[1:]:
        if sum(one.cost for one in taken) + words.cost <= room:
            taken.append(words)
    return tuple(taken)


def visible(segments: Tensor, parts: Tensor | None = None) -> Tensor:
    """What sees what, of segments ``(B, length)``: what lies before, in segment 0 or in the same one.

    Args:
        segments: 0 for the image, 1 … for questions, :data:`PADDING`.
        parts: ``(B, length)``: within a segment, part 0 is seen by all of it, any other by itself alone.

    Returns:
        float32 ``(B, 1, length, length)``, 0 or −∞; padding sees something too, as a softmax over nothing is NaN.
    """
    length = segments.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    if parts is not None:
        same &= (parts[:, :, None] == parts[:, None, :]) | (parts[:, None, :] == 0)
    seen = before & (same | (segments[:, None, :] == 0))
    return torch.zeros(len(segments), 1, length, length, device=segments.device).masked_fill(
        ~seen[:, None], float("-inf")
    )
