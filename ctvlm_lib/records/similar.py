"""Near-duplicate texts: pairs whose runs of words overlap, found without comparing every pair."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

RUN = 5  # words in a shingle: long enough that a stock phrase alone makes no pair


def shingles(text: str, run: int = RUN) -> frozenset[str]:
    """The runs of ``run`` words of a text, without case and punctuation; a shorter text is one run.

    Args:
        text: any.
        run: words in a run, ≥ 1.
    """
    words = re.findall(r"\w+", text.casefold())
    if not words:
        return frozenset()
    return frozenset(" ".join(words[i : i + run]) for i in range(max(1, len(words) - run + 1)))


def near_duplicates(
    texts: Sequence[str], threshold: float, groups: Sequence[str], run: int = RUN
) -> Iterator[tuple[int, int, float]]:
    """Find the pairs of texts in different groups whose shingles have a Jaccard index of at least ``threshold``.

    Exact, and fast where most texts differ: two sets that are so alike must share one of the rarest few runs
    of each (prefix filtering), so only texts that meet in an index of those are compared. Equal texts are compared once
    for all, and stand for each other: of each group the first.

    Args:
        texts: e.g. reports.
        threshold: above 0, at most 1.
        groups: of each text, e.g. its split.
        run: words in a run.

    Yields:
        (i, j, Jaccard index) with i < j.

    Source: Chaudhuri, Ganti, Kaushik 2006, "A primitive operator for similarity joins in data cleaning".
    """
    first_of: dict[frozenset[str], dict[str, int]] = defaultdict(dict)  # runs → group → first text
    for i, (text, group) in enumerate(zip(texts, groups, strict=True)):
        if runs := shingles(text, run):
            first_of[runs].setdefault(group, i)
    often = Counter(one for runs in first_of for one in runs)
    # The rarest run is 0: sets of small numbers meet faster than sets of texts, and sort by rarity.
    number_of = {one: n for n, one in enumerate(sorted(often, key=lambda one: (often[one], one)))}
    seen: list[tuple[frozenset[int], dict[str, int]]] = []
    index: dict[int, list[int]] = defaultdict(list)  # run → places in ``seen``
    for runs, places in first_of.items():
        yield from _pairs(places, places, 1.0)
        mine = frozenset(number_of[one] for one in runs)
        rarest = sorted(mine)[: len(mine) - math.ceil(threshold * len(mine) - 1e-9) + 1]
        for candidate in {candidate for one in rarest for candidate in index[one]}:
            other, theirs = seen[candidate]
            if len(theirs.keys() | places.keys()) < 2:
                continue  # both in one group only
            if min(len(mine), len(other)) < threshold * max(len(mine), len(other)) - 1e-9:
                continue  # too different in size
            shared = len(mine & other)
            alike = shared / (len(mine) + len(other) - shared)
            if alike >= threshold - 1e-12:
                yield from _pairs(theirs, places, alike)
        for one in rarest:
            index[one].append(len(seen))
        seen.append((mine, places))


def _pairs(some: dict[str, int], others: dict[str, int], alike: float) -> Iterator[tuple[int, int, float]]:
    """Pairs across groups of two sets of places, each once."""
    for a, i in some.items():
        for b, j in others.items():
            if a != b and (some is not others or i < j):
                yield min(i, j), max(i, j), alike
