"""The vision–language model as a reader: it is asked by the same code as the probes, and answers in its own words."""

from collections.abc import Sequence

import numpy as np
import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import YES_NO, parse
from ctvlm_lib.records.package import LETTERS
from ctvlm_lib.records.record import Record
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

    Answers are written greedily. The confidence of a closed answer is the probability of its first token among the
    first tokens of all that were offered, "A" to "D" or "Yes" and "No": the model learns to begin with it, and it
    settles the rest. It is NaN for open questions, and where the text commits itself to no choice or begins otherwise.

    Args:
        model: its encoder is frozen.
        processor: its.
        at_once: questions in a batch.
        chosen: closed answers aren't written but chosen: the offered one with the likeliest first token. Small decoders
            write a letter and another choice's words, which is an answer that can't be read.
    """

    def __init__(self, model: CtvlmModel, processor: CtvlmProcessor, at_once: int = 192, chosen: bool = False):
        processor.check(model.config)
        self.model, self.processor, self.at_once, self.chosen = model, processor, at_once, chosen
        self.channels = processor.channels
        self._first: dict[str, int] = {}

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
            places = torch.tensor([asked[i][0] for i in those], device=device)
            some = Features(features.low[places], features.high[places], features.source)
            for i, pair in zip(those, self._written([asked[i][1] for i in those], some, room), strict=True):
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

    def _written(self, records: list[Record], features: Features, room: int) -> list[tuple[str, float]]:
        """Answer and confidence of each question."""
        batch = self.processor.of_records(records, None, answers=False, room=room)
        batch = {name: tensor.to(features.low.device) for name, tensor in batch.items()}
        found = self.model.generate(
            **batch, features=features, max_new_tokens=room, output_logits=True, return_dict_in_generate=True
        )
        texts, firsts = self.processor.decode(found.sequences), found.logits[0].float().cpu()
        return [self._said(*row) for row in zip(records, texts, firsts, strict=True)]

    def _said(self, record: Record, text: str, logits: torch.Tensor) -> tuple[str, float]:
        """Answer and confidence, of the text that was written and the logits ``(vocabulary,)`` of its first token."""
        begins = LETTERS[: len(record.choices)] if record.choices else YES_NO
        tokens = [self._token(begin) for begin in begins]
        if record.form != "closed" or len(set(tokens)) < len(tokens):
            return text, float("nan")
        chance, offered = logits[tokens].softmax(0), record.choices or YES_NO
        if self.chosen:
            best = int(chance.argmax())
            text = f"{begins[best]}. {offered[best]}" if record.choices else offered[best]
        choice = parse(text, record.choices).choice
        return text, float("nan") if choice is None else float(chance[offered.index(choice)])

    def _token(self, text: str) -> int:
        """First token of an answer, which stands behind a blank."""
        if text not in self._first:
            self._first[text] = self.processor.tokenizer(f" {text}", add_special_tokens=False)["input_ids"][0]
        return self._first[text]
