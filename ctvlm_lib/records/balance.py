"""Balance: drop surplus questions until their words alone don't tell the answer.

Every answer becomes equally frequent among the questions of exactly the same words and choices, in each split by
itself. Balanced over all splits together, what one has too much the other has too little, and a reader trained on the
one scores *below* chance on the other.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ctvlm_lib.records.record import Record

Cell = dict[str, dict[str, list[Record]]]  # split → answer → records, of one wording


def balance(records: Iterable[Record], seed: int = 0) -> list[Record]:
    """Drop surplus until, within a split, each answer to a question of the same words and choices is equally frequent.

    The order of the choices is drawn anew so that each letter is right equally often. An open question's rarest answers
    go altogether where the others would have to shrink to their number; a question of which one answer is all there is
    goes too. Reports stay.

    Args:
        records: with their final splits.
        seed: of which records are dropped, and of the order of the choices.

    Returns:
        The records kept, in the order given; the same for the same seed, whatever the order.
    """
    records = list(records)
    cells: dict[tuple[str, ...], Cell] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in records:
        cells[wording_key(record)][record.split][record.answer].append(record)
    kept: dict[str, Record] = {}
    for key, splits in cells.items():
        if key[0] == "report":
            chosen = [record for found in splits.values() for same in found.values() for record in same]
        else:
            chosen = _balanced(key, splits, seed)
        kept |= {record.id: record for record in chosen}
    return [kept[record.id] for record in records if record.id in kept]


def wording_key(record: Record) -> tuple[str, ...]:
    """What a reader of the text sees, but for the order of the choices: kind, form, stratum, question, choices."""
    stratum = "named" if record.names_region else "unnamed"
    return (record.kind, record.form, stratum, record.question, *sorted(record.choices))


def _balanced(key: tuple[str, ...], splits: Cell, seed: int) -> list[Record]:
    """The records to keep of one wording, their choices in order."""
    answers, chosen = _answers(key, splits), []
    for split, found in splits.items():
        count = min((len(found[answer]) for answer in answers), default=0)
        for place, answer in enumerate(sorted(answers, key=lambda answer: drawn(seed, split, *key, answer))):
            same = sorted(found[answer], key=lambda record: drawn(seed, record.id))[:count]
            # a Latin square: over one record of each answer, each letter is right once
            chosen += [_ordered(record, (place + turn) % len(answers), seed) for turn, record in enumerate(same)]
    return chosen


def _answers(key: tuple[str, ...], splits: Cell) -> tuple[str, ...]:
    """The answers to keep: all choices, or those of an open question with which most records stay."""
    form, choices = key[1], key[4:]
    if form == "closed":
        return choices or ("No", "Yes")
    seen = {answer for found in splits.values() for answer in found}
    counts = {answer: [len(found.get(answer, ())) for found in splits.values()] for answer in seen}
    ranked = sorted(counts, key=lambda answer: (-min(counts[answer]), answer))
    sizes = {
        k: k * sum(min(column) for column in zip(*(counts[answer] for answer in ranked[:k]), strict=True))
        for k in range(2, len(ranked) + 1)
    }
    best = max(sizes, key=lambda k: (sizes[k], k), default=0)
    return tuple(ranked[:best])


def _ordered(record: Record, place: int, seed: int) -> Record:
    """The record with its answer at a place, and the other choices in a drawn order."""
    if not record.choices:
        return record
    others = [choice for choice in record.choices if choice != record.answer]
    others.sort(key=lambda choice: drawn(seed, record.id, choice))
    return replace(record, choices=(*others[:place], record.answer, *others[place:]))


def pick(options: tuple, *what) -> object:
    """One of the options, drawn by a hash of what it is for."""
    return options[drawn(*what) % len(options)]


def drawn(*what) -> int:
    """A number of 64 bits from a hash: the same anywhere, and whatever was drawn before."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, what)).encode()).digest()[:8], "big")
