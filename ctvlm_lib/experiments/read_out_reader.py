"""The cross-attention read-out as a reader, and a memory of the pictures that it was shown."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.read_out_model import VOCABULARY, Coded, Questions, ReadOut
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.model import CtvlmModel


class Seen:
    """What a frozen encoder makes of pictures, each encoded once, whichever question or control shows it again.

    A moved prompt shows what another question of the same patient shows as asked; a removed one shows the same for all
    of a patient's regions. So three controls cost little more than one.

    Args:
        model: with the frozen encoder.
        path: of a file that keeps the features for other read-outs; None keeps them in memory only.
    """

    def __init__(self, model: CtvlmModel, path: str | Path | None = None):
        self.model, self.path = model, path and Path(path)
        self._parts: list[FeatureCache] = []
        self._where: dict[str, FeatureCache] = {}
        self._stored = 0
        if self.path and self.path.is_file():
            self._add(FeatureCache.load(self.path))
            self._stored = len(self)

    def __len__(self) -> int:
        return len(self._where)

    def features(self, pictures: np.ndarray) -> Features:
        """Features of pictures ``(B, channels, D, H, W)``, computed where they aren't known."""
        names = [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in pictures]
        new = {name: picture for name, picture in zip(names, pictures, strict=True) if name not in self._where}
        if new:
            self._add(FeatureCache.of(self.model, tuple(new), new.__getitem__))
        found = [self._where[name].take([name]) for name in names]
        low, high = (torch.cat(parts) for parts in zip(*(one[:2] for one in found), strict=True))
        return Features(low, high, found[0].source)

    def save(self) -> None:
        """Write what is new to the file, if there is one."""
        if self.path is None or len(self) == self._stored:
            return
        names = ("low", "low_scale", "high", "high_scale")
        tensors = [torch.cat([getattr(part, name) for part in self._parts]) for name in names]
        keys = tuple(key for part in self._parts for key in part.keys)
        FeatureCache(keys, *tensors, self._parts[0].source).save(self.path)
        self._stored = len(self)

    def _add(self, part: FeatureCache) -> None:
        self._parts.append(part)
        self._where |= dict.fromkeys(part.keys, part)


class Reader:
    """A :class:`ctvlm_lib.experiments.controls.Reader` of a trained read-out.

    It answers with the likeliest of the offered answers, in their own words; its confidence is that one's probability
    among them. Open questions and those of other kinds it leaves: "" and NaN.

    Args:
        network: trained on pictures of the condition.
        seen: of the encoder whose tokens it reads.
        condition, colour: what is drawn and how, see :mod:`ctvlm_lib.experiments.conditions`.
    """

    def __init__(self, network: ReadOut, seen: Seen, condition: str, colour: str = ""):
        self.network, self.seen, self.condition, self.colour = network.eval(), seen, condition, colour
        self.channels = seen.model.config.encoder.in_channels

    def answer(
        self, pictures: np.ndarray, questions: Sequence[Sequence[Record]], condition: str
    ) -> list[list[tuple[str, float]]]:
        """Answer questions; see :class:`ctvlm_lib.experiments.controls.Reader`.

        Raises:
            BadInput: asked about pictures of another condition than it was trained for.
        """
        if condition != self.condition:
            raise BadInput(
                f"this read-out learnt from pictures with {self.condition!r} and is asked about {condition!r}; train"
                " one for that"
            )
        coded = [[Coded.of(record) for record in group] for group in questions]
        asked = Questions.of([[one for one in group if one] for group in coded])
        device = self.network.marker.device
        features = Features(*(stream.to(device) for stream in self.seen.features(pictures)[:2]))
        with torch.inference_mode():
            logits = self.network(features, Questions(*(tensor.to(device) for tensor in asked)))
        confidence, best = (tensor.tolist() for tensor in logits.softmax(dim=-1).max(dim=-1))
        said = []
        for group, *rows in zip(coded, confidence, best, strict=True):
            answers = iter(zip(*rows, strict=True))
            said.append([_said(*next(answers)) if one else ("", float("nan")) for one in group])
        return said


def _said(confidence: float, place: int) -> tuple[str, float]:
    return VOCABULARY[place], min(confidence, 1.0)  # float32 may round a sum up
