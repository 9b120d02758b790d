"""The pointing reader: frozen tokens, three linear read-outs, no language model.

It looks where the prompt is, where the words say, or both; pools the tokens there; and reads off the finding. It is a
probe and no paper's model: every step can be looked at, it takes seconds to fit, and it tells what an encoder's tokens
hold before a decoder has to learn to use them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ctvlm_lib.alignment.prompted import distractor_of
from ctvlm_lib.alignment.scans import Scans, as_input, kinds_of
from ctvlm_lib.alignment.tokens import Pooling, shares
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.conditions import CONDITIONS, Drawing, draw
from ctvlm_lib.experiments.linear import Linear
from ctvlm_lib.records.balance import drawn
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import LUNG_KINDS, NONE
from ctvlm_lib.records.record import Record

LISTENS = ("prompt", "words", "both")
ANSWERS = ("presence", "abnormality", "organ")  # kinds of closed question that it answers
NAMES = (NONE, *LUNG_KINDS)
_CLEAR_SHARE = 0.5  # a token belongs to what fills half of it
_TOKENS = 60  # learnt from in a picture, of those outside the marked region and of all regions


@dataclass(frozen=True, eq=False)
class ReadOuts:
    """Linear read-outs of one condition's tokens.

    Attributes:
        where: token → background or which region.
        marked: token → inside the prompt or not; None without a prompt.
        what: pooled tokens → finding.
    """

    where: Linear
    marked: Linear | None
    what: Linear


@dataclass(eq=False)
class Pointing:
    """See the module; made by :func:`fit`.

    Attributes:
        encoder: frozen, with ``encode`` and ``grids``.
        read_outs: condition → its read-outs: each is fitted on pictures of its own condition, as the papers train one
            model for each, and all on the same regions of the same patients.
        prior: share of each of NAMES among the training regions.
        listens: of LISTENS. "both" multiplies.
    """

    encoder: torch.nn.Module
    read_outs: dict[str, ReadOuts]
    prior: np.ndarray
    listens: str = "both"
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        if self.listens not in LISTENS:
            raise BadInput(f"a reader listens to {self.listens!r}; choose one of {', '.join(LISTENS)}")
        self.channels = self.encoder.config.in_channels

    def answer(
        self, pictures: np.ndarray, questions: Sequence[Sequence[Record]], condition: str
    ) -> list[list[tuple[str, float]]]:
        """Answer closed questions on presence, abnormality and organ; see :class:`~.controls.Reader`."""
        if condition not in self.read_outs:
            raise BadInput(
                f"the reader was fitted for {', '.join(self.read_outs)}, not {condition}; fit it for that too"
            )
        outs, low, said = self.read_outs[condition], look(self.encoder, pictures), []
        for tokens, asked in zip(low, questions, strict=True):
            of = outs.where(tokens)  # (tokens, background and regions)
            marked = None if outs.marked is None else outs.marked(tokens)[:, 1]
            said.append([self._about(tokens, of, record, self._weights(of, marked, record), outs) for record in asked])
        return said

    def weights(self, low: np.ndarray, record: Record, condition: str) -> np.ndarray:
        """Where it looks for a question: ``(tokens,)`` in 0…1.

        Args:
            low: ``(tokens, channels)``.
            record: whose words may name the region.
            condition: which prompt it was made for; none: only words can tell.
        """
        outs = self.read_outs[condition]
        return self._weights(outs.where(low), None if outs.marked is None else outs.marked(low)[:, 1], record)

    def _weights(self, of: np.ndarray, marked: np.ndarray | None, record: Record) -> np.ndarray:
        anywhere = 1 - of[:, 0]
        words = of[:, 1 + REGIONS.index(record.region)] if record.names_region else anywhere
        if marked is None or self.listens == "words":
            return words
        return marked * (words if self.listens == "both" else anywhere)

    def _about(self, low, of, record: Record, weights: np.ndarray, outs: ReadOuts) -> tuple[str, float]:
        """Answer and confidence from what is seen at ``weights``."""
        if record.form != "closed" or record.kind not in ANSWERS:
            return "", float("nan")
        if record.kind == "organ":
            there = weights @ of[:, 1:]
            return _best({name: there[REGIONS.index(name)] for name in record.choices})
        chance = _finding(outs.what, _pool(low, weights))
        if record.kind == "abnormality":  # every choice is right equally often, whatever is frequent in patients
            return _best({name: chance[name] / self.prior[NAMES.index(name)] for name in record.choices})
        asked = next((name for name in sorted(LUNG_KINDS, key=len, reverse=True) if name in record.question), None)
        yes = chance[asked] if asked else 1 - chance[NONE]
        prior = self.prior[NAMES.index(asked)] if asked else 1 - self.prior[0]
        return _best({"Yes": yes / prior, "No": (1 - yes) / (1 - prior)})


def fit(
    encoder: torch.nn.Module,
    train: Scans,
    conditions: Sequence[str] = CONDITIONS,
    *,
    regions: int = 4,
    listens: str = "both",
    seed: int = 0,
    batch: int = 24,
) -> Pointing:
    """Fit the read-outs on training patients; the encoder stays as it is.

    Args:
        encoder: of one or three channels.
        train: the patients.
        conditions: that will be asked under.
        regions: of each patient, at most: each is marked once, so that every condition sees ``regions`` pictures of a
            patient.
        listens: see :class:`Pointing`.
        seed: which regions, and which tokens are learnt from.
        batch: pictures at a time.

    Raises:
        BadInput: too few patients to have seen every region and the findings.
    """
    share = shares(train.region, len(REGIONS) + 1, encoder.grids(train.region.shape[1:])[-2])  # (n, 11, tokens)
    pairs = _pairs(train, share, regions, seed)
    codes = np.array([_code(k, region, train) for k, region in pairs])
    if len(np.unique(codes)) < 4 or len(np.unique(pairs[:, 1])) < len(REGIONS):
        raise BadInput(f"{len(train)} patients don't show every region and finding; give at least about 40")
    prior = np.bincount(codes % len(NAMES), minlength=len(NAMES)) / len(codes)
    outs = {style: _fitted(encoder, train, style, share, pairs, codes, seed, batch) for style in conditions}
    return Pointing(encoder, outs, np.maximum(prior, 1e-3), listens)


@torch.inference_mode()
def look(encoder: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    """``(B, channels, D, H, W)`` → low tokens ``(B, tokens, channels)``."""
    encoder.eval()
    return encoder.encode(torch.from_numpy(pictures))[0][-2].float().numpy()


def _pairs(train: Scans, share: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Which regions of which patients are learnt from: int ``(pairs, 2)``."""
    made = []
    for k, name in enumerate(train.names):
        there = np.flatnonzero((share[k, 1:].max(axis=1) >= _CLEAR_SHARE) & (train.found[k] >= 0))
        ranked = sorted(there, key=lambda region: drawn(seed, name, REGIONS[region], "learnt from"))
        made += [(k, region) for region in sorted(ranked[:regions])]
    return np.array(made).reshape(-1, 2)


def _fitted(encoder, train: Scans, style: str, share, pairs, codes, seed: int, batch: int) -> ReadOuts:
    """The read-outs of one condition; the pictures go by once, and only what is learnt from is kept."""
    rng = np.random.default_rng(seed)
    of_regions, inside, pooled = ([], []), ([], []), []
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        low = look(encoder, np.stack([_picture(train, k, region, style, encoder) for k, region in some]))
        for tokens, (k, region) in zip(low, some, strict=True):
            clear = rng.permutation(np.flatnonzero(share[k].max(axis=0) >= _CLEAR_SHARE))[:_TOKENS]
            of_regions[0].append(tokens[clear])
            of_regions[1].append(share[k].argmax(axis=0)[clear])
            there = share[k, region + 1]
            rows = np.r_[np.flatnonzero(there >= _CLEAR_SHARE), rng.permutation(np.flatnonzero(there == 0))[:_TOKENS]]
            inside[0].append(tokens[rows])
            inside[1].append(there[rows] > 0)
            pooled.append(_pool(tokens, there))
    where = Linear.fit(*map(np.concatenate, of_regions))
    marked = None if style == "none" else Linear.fit(*map(np.concatenate, inside))
    return ReadOuts(where, marked, Linear.fit(np.stack(pooled), codes))


def _picture(scans: Scans, k: int, region: int, style: str, encoder) -> np.ndarray:
    drawing = Drawing("none")
    if style != "none":
        other = distractor_of(scans.region[k], scans.found[k], region) if style == "dual" else None
        drawing = Drawing(style, scans.region[k] == region + 1, None if other is None else scans.region[k] == other + 1)
    return draw(as_input(scans.hu[k]), drawing, encoder.config.in_channels)


def _code(patient: int, region: int, scans: Scans) -> int:
    """Class of a region: its finding among NAMES, organs' after the lobes': a cyst is air there and fluid here."""
    kinds = kinds_of(REGIONS[region])
    return NAMES.index(kinds[scans.found[patient, region]]) + (0 if len(kinds) == len(NAMES) else len(NAMES))


def _pool(low: np.ndarray, weights: np.ndarray) -> np.ndarray:
    pooling = Pooling.of(np.maximum(weights, 1e-9).astype(np.float32)[None, None])
    return pooling(torch.from_numpy(low)[None])[0].numpy()


def _finding(what: Linear, pooled: np.ndarray) -> dict[str, float]:
    """Chance of each of NAMES at a place, whether of a lobe or of an organ."""
    chance = dict.fromkeys(NAMES, 0.0)
    for code, value in zip(what.classes, what(pooled), strict=True):
        chance[NAMES[code % len(NAMES)]] += float(value)
    return chance


def _best(scores: dict[str, float]) -> tuple[str, float]:
    """The highest score's name, and its share of all."""
    name = max(sorted(scores), key=scores.get)
    total = sum(scores.values())
    return name, float(scores[name] / total) if total > 0 else 1 / len(scores)
