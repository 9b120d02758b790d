"""The vision–language model as a reader: it is asked by the same code as the probes, and answers in its own words."""

from collections.abc import Sequence

import numpy as np
import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import YES_NO, parse
from ctvlm_lib.records.package import LETTERS
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import CtvlmProcessor

STYLES = {"none": "plain", "contour": "blue-suffix", "box": "box", "dual": "dual"}  # condition → wording
ROOM, REPORT_ROOM = 16, 400  # most tokens of an answer, of a report


def worded(record: Record, condition: str) -> Record:
    """A question in the words of a condition; one about no region speaks of no prompt, as there is none.

    Raises:
        BadInput: no such condition.
    """
    if condition not in STYLES:
        raise BadInput(f"no condition is called {condition!r}; choose one of {', '.join(STYLES)}")
    return record if record.region is None else record.worded(STYLES[condition])


class VlmReader:
    """A :class:`ctvlm_lib.experiments.controls.Reader` of a vision–language model.

    Answers are written greedily. The confidence of a closed answer is its probability among all that were offered, by
    the likelihood of the whole answers, see :func:`ctvlm_lib.vlm.choices.log_likelihoods`; it is NaN for open
    questions, and where the text commits itself to no choice.

    Args:
        model: its encoder is frozen.
        processor: its.
        at_once: questions in a batch.
        chosen: closed answers aren't written but chosen: the likeliest of those offered. Small decoders write a letter
            and another choice's words, which is an answer that can't be read.
    """

    def __init__(self, model: CtvlmModel, processor: CtvlmProcessor, at_once: int = 192, chosen: bool = False):
        processor.check(model.config)
        self.model, self.processor, self.at_once, self.chosen = model, processor, at_once, chosen
        self.channels = processor.channels

    def answer(
        self, pictures: np.ndarray, questions: Sequence[Sequence[Record]], condition: str
    ) -> list[list[tuple[str, float]]]:
        """Answer questions; see :class:`ctvlm_lib.experiments.controls.Reader`."""
        device = next(self.model.encoder.parameters()).device
        with torch.no_grad():
            features = self.model.image_features(torch.from_numpy(pictures).to(device))
        asked = [(k, worded(record, condition)) for k, group in enumerate(questions) for record in group]
        said: list[tuple[str, float]] = [("", float("nan"))] * len(asked)
        for those, room in self._batches([record for _, record in asked]):
            some = _rows(features, [asked[i][0] for i in those])
            for i, pair in zip(those, self._answers([asked[i][1] for i in those], some, room), strict=True):
                said[i] = pair
        rest = iter(said)
        return [[next(rest) for _ in group] for group in questions]

    def _batches(self, records: list[Record]) -> list[tuple[list[int], int]]:
        """Places of questions that are answered together, and room for their answers: those of like length."""
        batches = []
        for room in (ROOM, REPORT_ROOM):
            those = [k for k, record in enumerate(records) if (record.kind == "report") == (room == REPORT_ROOM)]
            those.sort(key=lambda k: len(records[k].question) + sum(map(len, records[k].choices)))
            batches += [(those[k : k + self.at_once], room) for k in range(0, len(those), self.at_once)]
        return batches

    def _answers(self, records: list[Record], features: Features, room: int) -> list[tuple[str, float]]:
        """Answer and confidence of each question."""
        texts = [""] * len(records)
        written = [k for k, record in enumerate(records) if not (self.chosen and record.form == "closed")]
        closed = [k for k, record in enumerate(records) if record.form == "closed"]
        if written:
            some = [records[k] for k in written]
            batch = self.processor.of_records(some, None, answers=False, room=room)
            batch = {name: tensor.to(features.low.device) for name, tensor in batch.items()}
            tokens = self.model.generate(**batch, features=_rows(features, written), max_new_tokens=room)
            for k, text in zip(written, self.processor.decode(tokens), strict=True):
                texts[k] = text
        confidence = [float("nan")] * len(records)
        if closed:
            likely = log_likelihoods(self.model, self.processor, [records[k] for k in closed], _rows(features, closed))
            for k, row in zip(closed, likely, strict=True):
                texts[k], confidence[k] = self._said(records[k], texts[k], row.softmax(0))
        return list(zip(texts, confidence, strict=True))

    def _said(self, record: Record, text: str, chance: torch.Tensor) -> tuple[str, float]:
        """A closed answer and its confidence, of what was written and the probability of each choice."""
        offered = record.choices or YES_NO
        if self.chosen:
            best = int(chance.argmax())
            return (f"{LETTERS[best]}. {offered[best]}" if record.choices else offered[best]), float(chance[best])
        choice = parse(text, record.choices).choice
        return text, float("nan") if choice is None else float(chance[offered.index(choice)])


def _rows(features: Features, places: Sequence[int]) -> Features:
    return Features(features.low[places], features.high[places], features.source)
