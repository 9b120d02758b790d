"""The network of the cross-attention read-out: a question looks over the frozen tokens once, and an MLP answers.

    asked      region's name + what is asked for + kind of question → query ┐
    marker     one learned query, the same for every question ──────────────┤ attention over low and high tokens
    answer     MLP(asked, what either query found) → a logit for every answer that there is; only the offered ones count

There is no language model in it, so nothing has to be learnt about words: a name is a row of a table. What it reads off
was in the tokens; what a language model doesn't say although this says it, was not missing but not learnt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import YES_NO
from ctvlm_lib.experiments.pointing import ANSWERS, NAMES
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import LUNG_KINDS
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.features import Features

VOCABULARY = (*NAMES, *YES_NO, *REGIONS)  # every answer that there is
MARKED = len(REGIONS)  # a region's code where the words say "the marked region"
ANY = 0  # code of "a focal finding"; others are places in NAMES
IGNORED = -100  # the answer of a place without a question
_LONGEST_FIRST = sorted(LUNG_KINDS, key=len, reverse=True)


class Coded(NamedTuple):
    """A closed question as numbers.

    Attributes:
        region: place in REGIONS of the named region, or MARKED.
        finding: place in NAMES of the finding that is asked for, or ANY.
        kind: place in ANSWERS.
        offered: places in VOCABULARY, in the order of the choices.
        answer: the right one among them.
    """

    region: int
    finding: int
    kind: int
    offered: tuple[int, ...]
    answer: int

    @classmethod
    def of(cls, record: Record) -> "Coded | None":
        """Code a question; None where it isn't a closed one on presence, abnormality or organ.

        Raises:
            BadInput: a region or a choice that the cohort doesn't have.
        """
        if record.form != "closed" or record.kind not in ANSWERS:
            return None
        offered = record.choices or YES_NO
        strange = [name for name in offered if name not in VOCABULARY]
        strange += [record.region] if record.region not in REGIONS else []
        if strange:
            raise BadInput(f"{record.id} is about {strange[0]!r}, which the cohort doesn't have; leave the record out")
        asked = next((name for name in _LONGEST_FIRST if name in record.question), None)
        finding = NAMES.index(asked) if asked and record.kind == "presence" else ANY
        region = REGIONS.index(record.region) if record.names_region else MARKED
        places = tuple(VOCABULARY.index(name) for name in offered)
        return cls(region, finding, ANSWERS.index(record.kind), places, VOCABULARY.index(record.answer))


class Questions(NamedTuple):
    """Questions about a batch of pictures, as many places for each as the most asked about one.

    Attributes:
        region, finding, kind, answer: int64 ``(B, Q)``; an answer is IGNORED where there is no question.
        offered: bool ``(B, Q, answers)``.
    """

    region: Tensor
    finding: Tensor
    kind: Tensor
    answer: Tensor
    offered: Tensor

    @classmethod
    def of(cls, groups: Sequence[Sequence[Coded]]) -> "Questions":
        """Put those about each picture in a row."""
        shape = (len(groups), max(map(len, groups)))
        region, finding, kind = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        answer, offered = torch.full(shape, IGNORED), torch.ones(*shape, len(VOCABULARY), dtype=torch.bool)
        for k, group in enumerate(groups):
            for q, one in enumerate(group):
                region[k, q], finding[k, q], kind[k, q], answer[k, q] = one.region, one.finding, one.kind, one.answer
                offered[k, q] = False
                offered[k, q, list(one.offered)] = True
        return cls(region, finding, kind, answer, offered)


class ReadOut(nn.Module):
    """See the module.

    Args:
        low, high: (tokens, channels) of the encoder's two streams.
        width: of queries, keys and values. heads: of the attention; they divide the width.
        hidden: of the MLP that answers.
        dropout: of the MLP. hide: share of a picture's tokens that a training step doesn't see, 0…1.
        seed: of the weights.

    Raises:
        BadInput: heads that don't divide the width, or all tokens hidden.
    """

    def __init__(
        self, low: tuple[int, int], high: tuple[int, int], width: int = 96, heads: int = 8, hidden: int = 192,
        dropout: float = 0.2, hide: float = 0.3, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if width % heads:
            raise BadInput(f"{heads} heads don't divide a width of {width}; choose a divisor")
        if not 0 <= hide < 1:
            raise BadInput(f"hide is a share from 0 to below 1, got {hide:g}; 0 hides no token")
        self.heads, self.hide = heads, hide
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.streams = nn.ModuleList(_Stream(*size, width) for size in (low, high))
            self.region = nn.Embedding(len(REGIONS) + 1, width)
            self.finding = nn.Embedding(len(NAMES), width)
            self.kind = nn.Embedding(len(ANSWERS), width)
            self.marker = nn.Parameter(torch.randn(width) / 2)
            self.norm = nn.LayerNorm(width)
            self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
            self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
            self.answers = nn.Sequential(
                nn.LayerNorm(3 * width), nn.Linear(3 * width, hidden), nn.GELU(), nn.Dropout(dropout),
                nn.Linear(hidden, len(VOCABULARY)),
            )  # fmt: skip

    def fit_scale(self, features: Features) -> "ReadOut":
        """Standardise each channel by its mean and spread over some training pictures' tokens."""
        for stream, tokens in zip(self.streams, features[:2], strict=True):
            stream.mean.copy_(tokens.mean(dim=(0, 1)))
            stream.spread.copy_(tokens.std(dim=(0, 1)).clamp(min=1e-6))
        return self

    def forward(self, features: Features, questions: Questions) -> Tensor:
        """Logits ``(B, Q, answers)``, −∞ at what isn't offered."""
        return self.look(features, questions)[0]

    def look(self, features: Features, questions: Questions) -> tuple[Tensor, Tensor]:
        """Answer, and tell where it looked.

        Returns:
            Logits as of :meth:`forward`, and weights ``(B, heads, Q + 1, tokens)`` that add up to 1 over the tokens,
            low ones first; the last row is the marker's.
        """
        pairs = zip(self.streams, features[:2], strict=True)
        tokens = self.norm(torch.cat([stream(tokens) for stream, tokens in pairs], dim=1))  # (B, tokens, width)
        hidden = torch.rand(tokens.shape[:2], device=tokens.device) < self.hide if self.training else None
        asked = self.region(questions.region) + self.finding(questions.finding) + self.kind(questions.kind)
        marker = self.marker.expand(len(asked), 1, -1)
        query = self.query(torch.cat([asked, marker], dim=1))
        found, weights = attend(query, self.key(tokens), self.value(tokens), self.heads, hidden)
        of_name, of_marker = found[:, :-1], found[:, -1:].expand(-1, asked.shape[1], -1)
        logits = self.answers(torch.cat([asked, of_name, of_marker], dim=-1))
        return logits.masked_fill(~questions.offered, float("-inf")), weights

    def loss(self, features: Features, questions: Questions) -> Tensor:
        """Mean negative log-likelihood of the right answers among those offered."""
        logits = self(features, questions)
        return functional.cross_entropy(logits.flatten(0, 1), questions.answer.flatten(), ignore_index=IGNORED)


class _Stream(nn.Module):
    """One stream's tokens, standardised, brought to the width, each with a learned vector of its place."""

    def __init__(self, tokens: int, channels: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.project = nn.Linear(channels, width)
        self.place = nn.Parameter(torch.randn(tokens, width) / 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, tokens, channels)`` → ``(B, tokens, width)``."""
        return self.project((tokens - self.mean) / self.spread) + self.place


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √width of a head) v, by head.

    Args:
        query: ``(B, Q, width)``. key, value: ``(B, tokens, width)``.
        heads: that share the width.
        hidden: bool ``(B, tokens)``, True where nothing may be looked at; None hides nothing.

    Returns:
        ``(B, Q, width)`` and the weights ``(B, heads, Q, tokens)``.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, heads, n, width/heads)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], torch.finfo(scores.dtype).min)  # −∞ in all would give NaN
    weights = scores.softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights
