"""The vision–language model as a reader: it is asked by the same code as the probes, and answers in its own words."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import parse
from ctvlm_lib.records.package import LETTERS
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.packed import ROOM as ROW_ROOM
from ctvlm_lib.vlm.packed import offered
from ctvlm_lib.vlm.processor import CtvlmProcessor
from ctvlm_lib.vlm.short_answers import short_answers

BLANK = -1.0  # value of a picture without anything: air
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

    Open answers are written greedily. Closed ones are chosen: the likeliest of those offered, by the likelihood of the
    whole answer, see :func:`ctvlm_lib.vlm.choices.log_likelihoods`, or by the head for closed questions where the model
    has one; their confidence is its probability among them. An open answer has none (NaN).

    Args:
        model: its encoder is frozen.
        processor: its.
        blind: every picture is blank to it.
        written: closed answers are written, too, which a model with a head for them never learnt. Small decoders write
            a letter and another choice's words, which is an answer that can't be read; it has no confidence.
        store: folder that keeps what the encoder makes of pictures, for other models with the same encoder.
        most: tokens of an open answer that isn't a report.
    """

    def __init__(
        self,
        model: CtvlmModel,
        processor: CtvlmProcessor,
        blind: bool = False,
        written: bool = False,
        store: str | Path | None = None,
        most: int = ROOM,
    ):
        processor.check(model.config)
        self.model, self.processor, self.blind, self.written = model, processor, blind, written
        self.most = most
        self.channels = processor.channels
        # colours are what "" means for three channels; a processor of one may say them and never get a line
        self.colour = "" if processor.colour == "rgb" else processor.colour
        # the released splice overwrites the first token behind the image: each question then has a row of its own
        self.room = 1 if model.config.splice == "as released" else ROW_ROOM
        self.store = store and Path(store) / model.encoder_id()

    def answer(
        self, pictures: np.ndarray, questions: Sequence[Sequence[Record]], condition: str
    ) -> list[list[tuple[str, float]]]:
        """Answer questions; see :class:`ctvlm_lib.experiments.controls.Reader`."""
        features = self._seen(np.full_like(pictures, BLANK) if self.blind else pictures)
        asked = [[worded(record, condition) for record in group] for group in questions]
        said = [[("", float("nan"))] * len(group) for group in asked]
        self._write(asked, features, said)
        self._choose(asked, features, said)
        return said

    def _seen(self, pictures: np.ndarray) -> Features:
        """Features of pictures, read back where the same pictures were seen before."""
        device = next(self.model.encoder.parameters()).device
        if self.store is None:
            with torch.no_grad():
                return self.model.image_features(torch.from_numpy(pictures).to(device))
        path = self.store / f"{hashlib.blake2b(pictures.tobytes(), digest_size=16).hexdigest()}.safetensors"
        keys = [str(k) for k in range(len(pictures))]
        if path.is_file():
            kept = FeatureCache.load(path)
        else:
            kept = FeatureCache.of(self.model, keys, lambda key: pictures[int(key)])
            kept.save(path)
        return kept.take(keys, device)

    def _write(self, asked: list[list[Record]], features: Features, said: list[list[tuple[str, float]]]) -> None:
        """Open answers, and closed ones if they are to be written; reports one by one, as they are long."""
        places = [
            (k, i)
            for k, group in enumerate(asked)
            for i, record in enumerate(group)
            if self.written or record.form != "closed"
        ]
        reports = [(k, i) for k, i in places if asked[k][i].kind == "report"]
        short = [[i for j, i in places if j == k and (k, i) not in reports] for k in range(len(asked))]
        texts = short_answers(
            self.model, self.processor, [[asked[k][i] for i in those] for k, those in enumerate(short)], features,
            most=self.most, room=self.room,
        )  # fmt: skip
        for k, those in enumerate(short):
            for i, text in zip(those, texts[k], strict=True):
                said[k][i] = text, float("nan")
        if reports:
            some = [asked[k][i] for k, i in reports]
            batch = self.processor.of_records(some, None, answers=False, room=REPORT_ROOM)
            batch = {name: tensor.to(features.low.device) for name, tensor in batch.items()}
            kept = features.rows([k for k, _ in reports])
            tokens = self.model.generate(**batch, features=kept, max_new_tokens=REPORT_ROOM)
            for (k, i), text in zip(reports, self.processor.decode(tokens), strict=True):
                said[k][i] = text, float("nan")

    def _choose(self, asked: list[list[Record]], features: Features, said: list[list[tuple[str, float]]]) -> None:
        """Closed answers with their confidence, or the confidence of those that were written."""
        places = [[i for i, record in enumerate(group) if record.form == "closed"] for group in asked]
        closed = [[group[i] for i in those] for group, those in zip(asked, places, strict=True)]
        likely = log_likelihoods(self.model, self.processor, closed, features, room=self.room)
        for k, those in enumerate(places):
            for i, row in zip(those, likely[k], strict=True):
                said[k][i] = self._said(asked[k][i], said[k][i][0], row.softmax(0))

    def _said(self, record: Record, text: str, chance: torch.Tensor) -> tuple[str, float]:
        """A closed answer and its confidence, of what was written and the probability of each choice."""
        choices = offered(record)
        if not self.written:
            best = int(chance.argmax())
            return (f"{LETTERS[best]}. {choices[best]}" if record.choices else choices[best]), float(chance[best])
        choice = parse(text, record.choices).choice
        return text, float("nan") if choice is None else float(chance[choices.index(choice)])
