"""Retrieval: does an image find its report among others, and a report its image?

Equal texts count as right: an image whose report says the same as another's can't be told apart by text. The released
code counts only the diagonal, although M3D-Cap has 2.8 images a text, and swaps the usual names of the directions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ctvlm_lib.errors import BadInput

DIRECTIONS = ("image→text", "text→image")


@dataclass(frozen=True)
class Recall:
    """Share of queries that find a right answer among the first k of a gallery.

    Attributes:
        direction: "image→text" (an image is the query) or "text→image".
        gallery: number of patients in it.
        k: of the first.
        recall: mean over the queries, and over the galleries that the patients are dealt into.
        low, high: 95 % interval over queries' patients drawn with replacement; the galleries stay as they are.
        chance: recall of a reader who guesses.
        queries: how many.
        distinct: different texts among all of them.
    """

    direction: str
    gallery: int
    k: int
    recall: float
    low: float
    high: float
    chance: float
    queries: int
    distinct: int


def recalls(
    similarity: np.ndarray,
    texts: Sequence[str],
    galleries: Sequence[int] = (50, 100, 200, 300),
    ks: Sequence[int] = (1, 5, 10),
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Recall]:
    """Score a similarity matrix.

    Args:
        similarity: ``(n, n)``: image i (row) with the text of patient j (column).
        texts: of the n patients.
        galleries: sizes; the patients are dealt at random into as many galleries of a size as there are, and those
            left over are not used.
        ks: how many of the first count.
        confidence, resamples: of the intervals.
        seed: of dealing and of the intervals.

    Returns:
        One row for each direction, gallery that fits, and k smaller than the gallery.

    Raises:
        BadInput: a matrix that isn't square, isn't finite or doesn't fit the texts.
    """
    n = len(texts)
    if similarity.shape != (n, n) or not n:
        raise BadInput(f"{n} patients need a similarity matrix ({n}, {n}), got {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise BadInput("the similarities hold values that aren't finite; look at the features")
    _, identity = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    rows = []
    for size in sorted({g for g in galleries if g <= n}):
        dealt = np.random.default_rng([seed, size]).permutation(n)[: n // size * size].reshape(-1, size)
        for direction, table in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
            found = [ranks(table[np.ix_(members, members)], identity[members]) for members in dealt]
            place = np.concatenate([rank for rank, _ in found])
            same = np.concatenate([right for _, right in found])
            for k in (k for k in ks if k < size):
                hits = np.clip(k - place, 0, 1)  # a tie across the k-th place counts as the share that gets in
                low, high = _interval(hits, confidence, resamples, seed)
                rows.append(
                    Recall(direction, size, k, float(hits.mean()), low, high, _chance(same, size, k), hits.size,
                           len(set(identity.tolist())))
                )  # fmt: skip
    return rows


def ranks(similarity: np.ndarray, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected place, from 0, of each query's best right answer; and how many right answers there are.

    Args:
        similarity: ``(g, g)``, queries in rows.
        identity: ``(g,)``: equal numbers are equal texts.
    """
    right = identity[:, None] == identity[None]
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    above = (similarity > best).sum(axis=1)
    # an answer that is wrong and as similar stands before the right one half of the time
    tied = ((similarity == best) & ~right).sum(axis=1)
    return above + tied / 2, right.sum(axis=1)


def as_table(rows: Sequence[Recall], **columns):
    """A pandas table of recalls, with further columns in front."""
    import pandas as pd

    return pd.DataFrame([columns | asdict(row) for row in rows]).round(4)


def _interval(hits: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentiles over patients drawn with replacement; every query is a patient's."""
    draws = np.random.default_rng(seed).integers(0, hits.size, (resamples, hits.size))
    low, high = np.quantile(hits[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _chance(same: np.ndarray, size: int, k: int) -> float:
    """One minus the chance that k draws without replacement miss all right answers."""
    miss = np.ones(same.shape)
    for draw in range(k):
        miss *= np.clip(size - same - draw, 0, None) / (size - draw)
    return float((1 - miss).mean())
