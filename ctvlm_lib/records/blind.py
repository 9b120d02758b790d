"""Blind readers: what can be answered from the question's words alone, without the image.

Two of them, trained on the records of one split and scored on another: the most frequent answer to the very same words,
and a bag of words with a linear classifier. Where both stay at chance, what a model scores above it comes from the
image. Kinds, forms and strata are never pooled.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.balance import wording_key
from ctvlm_lib.records.oracle import OracleScore, oracle
from ctvlm_lib.records.record import Record

__all__ = ["BlindScore", "OracleScore", "blind", "blind_answers", "oracle"]


@dataclass(frozen=True)
class BlindScore:
    """What blind readers reach on one kind of question; accuracies are shares of exactly right answers, 0…1.

    Attributes:
        kind, form, names_region: which questions.
        records, patients: how many were scored.
        chance: one over the number of choices; of open questions, of the answers that the same words have.
        majority: accuracy of the most frequent training answer to the same words and choices.
        bag_of_words: accuracy of the classifier.
        low, high: interval of ``bag_of_words`` over patients drawn with replacement.
    """

    kind: str
    form: str
    names_region: bool
    records: int
    patients: int
    chance: float
    majority: float
    bag_of_words: float
    low: float
    high: float

    @property
    def at_chance(self) -> bool:
        """Whether the interval holds chance."""
        return self.low - 1e-9 <= self.chance <= self.high + 1e-9


def blind(
    records: Iterable[Record], train: str = "train", test: str = "test", *, confidence: float = 0.95, seed: int = 0,
    resamples: int = 2000,
) -> list[BlindScore]:  # fmt: skip
    """Train and score the blind readers, per kind, form and stratum; reports are left out.

    There are 18 groups, so that of intervals at 95 % about one misses chance even if all readers guess.

    Args:
        records: with their splits, balanced or not.
        train, test: names of the two splits.
        confidence: of the intervals, between 0 and 1.
        seed: of the resampling.
        resamples: number of times that the test patients are drawn anew.

    Returns:
        One score for each group that has records in both splits.

    Raises:
        BadInput: no group has records in both splits, or an impossible confidence.
    """
    if not 0 < confidence < 1:
        raise BadInput(f"confidence lies between 0 and 1, e.g. 0.95, got {confidence:g}")
    return [_score(*group, (confidence, seed, resamples)) for group in _groups(records, train, test)]


READERS = ("majority", "bag of words")


def blind_answers(
    records: Iterable[Record], reader: str = "bag of words", train: str = "train", test: str = "test"
) -> dict[str, str]:
    """Record id → a blind reader's answer, for the test records of every group that has training records.

    Args:
        records: with their splits; reports are left out.
        reader: of READERS.
        train, test: names of the two splits.

    Raises:
        BadInput: an unknown reader, or no group with records in both splits.
    """
    if reader not in READERS:
        raise BadInput(f"no blind reader is called {reader!r}; choose one of {', '.join(READERS)}")
    answers = {}
    for _, learnt, asked in _groups(records, train, test):
        if reader == "majority":
            majority = _Majority(learnt)
            answers |= {record.id: majority.answer(record) for record in asked}
        else:
            answers |= {record.id: said for record, said in zip(asked, _bag_of_words(learnt, asked), strict=True)}
    return answers


def _groups(records: Iterable[Record], train: str, test: str) -> list[tuple[tuple, list[Record], list[Record]]]:
    """(kind, form and stratum; training records; test records), of the groups that have both."""
    groups = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.kind != "report":
            groups[record.kind, record.form, record.names_region][record.split].append(record)
    both = [(g, splits[train], splits[test]) for g, splits in sorted(groups.items()) if splits[train] and splits[test]]
    if not both:
        raise BadInput(f"no kind of question has records in both {train!r} and {test!r}; give both splits")
    return both


def _score(group: tuple, train: list[Record], test: list[Record], bootstrap: tuple[float, int, int]) -> BlindScore:
    majority = _Majority(train)
    said = _bag_of_words(train, test)
    hits = np.array([answer == record.answer for answer, record in zip(said, test, strict=True)], dtype=float)
    low, high = _interval(hits, [record.patient for record in test], *bootstrap)
    return BlindScore(
        *group,
        records=len(test),
        patients=len({record.patient for record in test}),
        chance=_chance(test),
        majority=float(np.mean([majority.answer(record) == record.answer for record in test])),
        bag_of_words=float(hits.mean()),
        low=low,
        high=high,
    )


class _Majority:
    """The most frequent answer to the same words; to words never seen, the most frequent that is possible."""

    def __init__(self, train: list[Record]):
        self._by_words = defaultdict(Counter)
        for record in train:
            self._by_words[wording_key(record)][record.answer] += 1
        self._overall = Counter(record.answer for record in train)

    def answer(self, record: Record) -> str:
        counts = self._by_words.get(wording_key(record), self._overall)
        possible = [answer for answer in counts if answer in (record.choices or counts)] or list(record.choices)
        return max(sorted(possible), key=lambda answer: counts[answer])


def _chance(records: list[Record]) -> float:
    """Mean over the records of one over the number of possible answers."""
    answers = defaultdict(set)
    for record in records:
        answers[wording_key(record)].add(record.answer)
    yes_or_no = 2
    possible = [
        len(record.choices) or (yes_or_no if record.form == "closed" else len(answers[wording_key(record)]))
        for record in records
    ]
    return float(np.mean([1 / count for count in possible]))


def _bag_of_words(train: list[Record], test: list[Record]) -> list[str]:
    """What a linear classifier on counts of words, pairs of words and lettered choices answers, per test record."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    if len({record.answer for record in train}) == 1:
        return [train[0].answer] * len(test)
    vectorizer = CountVectorizer(token_pattern=r"[^\s]+", ngram_range=(1, 2))
    model = LogisticRegression(max_iter=300).fit(
        vectorizer.fit_transform(map(_text, train)), [record.answer for record in train]
    )
    # probabilities rank the answers, so that one that isn't among the choices is never given
    chances = model.predict_proba(vectorizer.transform(map(_text, test)))
    rank = [dict(zip(model.classes_, row, strict=True)) for row in chances]
    return [
        max(record.choices or row, key=lambda answer, row=row: row.get(answer, -1.0))
        for record, row in zip(test, rank, strict=True)
    ]


def _text(record: Record) -> str:
    """The question, and each choice as one word with its letter: what is said and where it stands."""
    lettered = (f"{chr(ord('A') + place)}:{choice.replace(' ', '_')}" for place, choice in enumerate(record.choices))
    return " ".join((record.question, *lettered))


def _interval(
    hits: np.ndarray, patients: list[str], confidence: float, seed: int, resamples: int
) -> tuple[float, float]:
    """Interval of the mean: whole patients are drawn, as the answers of one aren't independent."""
    _, of = np.unique(patients, return_inverse=True)
    right, count = np.bincount(of, hits), np.bincount(of)
    draws = np.random.default_rng(seed).integers(0, count.size, (resamples, count.size))
    means = right[draws].sum(axis=1) / count[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
