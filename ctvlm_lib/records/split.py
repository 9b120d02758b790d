"""Splits by patient: all records of a patient go to one side.

Within a stratum patients stand in the order of a hash of seed and name and are cut where the fractions say. So the
fractions hold to less than one patient in each stratum, and a patient who joins later moves at most one other at each
cut. (Comparing the hash with a threshold would move nobody, but leaves the sizes to chance.)

Sources: contour.txt §1, §4; dualbox.txt §4.1. The two papers call 70/10/20 the official split of RadGenome-ChestCT,
which is published as 24,128 training and 1,564 validation volumes; and contour.txt §1 splits both data sets 80/20.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.leaks import check_leaks, find_leaks, patient_of
from ctvlm_lib.records.record import SPLITS, Record

__all__ = ["FRACTIONS", "assign_splits", "check_leaks", "find_leaks"]

FRACTIONS: dict[str, dict[str, float]] = {
    "70/10/20": {"train": 0.7, "validation": 0.1, "test": 0.2},  # contour.txt §4, dualbox.txt §4.1, by patient
    "80/20": {"train": 0.8, "validation": 0.2},  # contour.txt §1, by patient
    "80/10/10": {"train": 0.8, "validation": 0.1, "test": 0.1},  # both papers for PMC-VQA, by article
}


def assign_splits(
    records: Iterable[Record],
    fractions: str | Mapping[str, float] = "70/10/20",
    key: Callable[[Record], Hashable] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Give each record its split, all of a patient's the same.

    Args:
        records: of any data sets; their present splits don't count.
        fractions: a key of ``FRACTIONS``, or split → fraction; they sum to 1.
        key: a record's stratum. A patient whose records have several belongs to the stratum of that combination.
        seed: of the order of the patients.

    Returns:
        The records in the order given, with their new splits.

    Raises:
        BadInput: fractions that can't be used, a split that gets no patient, or a scan that lies across patients.
    """
    records = list(records)
    shares = _shares(fractions)
    strata = defaultdict(set)
    for record in records:
        strata[patient_of(record)].add(repr(key(record)) if key else "")
    members = defaultdict(list)
    for patient, keys in strata.items():
        members[tuple(sorted(keys))].append(patient)
    split_of = {}
    for stratum, patients in members.items():
        patients.sort(key=lambda patient: _hash(seed, *patient))
        # Rounding every stratum the same way would starve the small splits where strata are small: each has its own.
        offset = Fraction(_hash(seed, *stratum), 2**64) if key else Fraction(1, 2)
        split_of |= zip(patients, _cut(len(patients), shares, offset), strict=True)
    empty = [name for name in shares if name not in split_of.values()]
    if empty:
        raise BadInput(
            f"{len(split_of)} patients leave the split {empty[0]} empty; give more patients, other fractions or strata,"
            " or another seed"
        )
    made = [replace(record, split=split_of[patient_of(record)]) for record in records]
    check_leaks(made, text_similarity=None)
    return made


def _shares(fractions: str | Mapping[str, float]) -> dict[str, Fraction]:
    if isinstance(fractions, str):
        if fractions not in FRACTIONS:
            raise BadInput(f"no split is called {fractions!r}; choose one of {', '.join(FRACTIONS)}, or give fractions")
        fractions = FRACTIONS[fractions]
    shares = {name: Fraction(str(share)) for name, share in fractions.items()}  # 0.1 is a tenth, not its binary value
    if set(shares) - set(SPLITS) or min(shares.values(), default=0) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise BadInput(f"fractions are {dict(fractions)}; expected positive ones of {', '.join(SPLITS)} that sum to 1")
    return shares


def _cut(count: int, shares: Mapping[str, Fraction], offset: Fraction) -> list[str]:
    """Names of the splits for ``count`` places, each split within one place of its share."""
    ends, total = [], Fraction(0)
    for share in shares.values():
        total += share
        ends.append(math.floor(total * count + offset))
    ends[-1] = count
    starts = [0, *ends[:-1]]
    return [name for name, start, end in zip(shares, starts, ends, strict=True) for _ in range(end - start)]


def _hash(seed: int, *words: str) -> int:
    digest = hashlib.sha256("\0".join([str(seed), *words]).encode()).digest()
    return int.from_bytes(digest[:8], "big")
