"""The families of text metrics, and how their rows are computed over many pairs, alone or by several processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from numbers import Integral

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate import text_libraries as library
from ctvlm_lib.evaluate.text_registry import MINILM, ROBERTA

Pair = tuple[str, tuple[str, ...]]
Progress = Callable[[int, int], None]
CHUNK = 50  # pairs between two calls of progress, and in one task of a process
_BLEU = tuple(f"BLEU-{order}" for order in library.ORDERS)


def _minilm(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> np.ndarray:
    from ctvlm_lib.evaluate.bert_score import bert_scores

    return bert_scores(predictions, references, "minilm")[:, 2:]


def _roberta(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> np.ndarray:
    from ctvlm_lib.evaluate.bert_score import bert_scores

    return bert_scores(predictions, references, "roberta-large", profile="paper")[:, 2:]


@dataclass(frozen=True)
class Family:
    """Metrics that one library computes in one go.

    Attributes:
        rows: predictions and references → ``(pairs, columns)``.
        means: metric → the column whose mean it is; such a metric has a value for each pair.
        summed: metric → what it is of the first COUNTS columns' sums, ``(…, COUNTS)`` → ``(…)``.
        alone: a pair's row depends on no other pair, so equal pairs are computed once and chunks in any order.
    """

    rows: Callable[[Sequence[str], Sequence[tuple[str, ...]]], np.ndarray]
    means: dict[str, int] = field(default_factory=dict)
    summed: dict[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    alone: bool = True


def _each(names: Sequence[str], scores: Callable[[np.ndarray], np.ndarray]) -> dict[str, Callable]:
    """Each name with its place in the last axis of ``scores``."""
    return {name: lambda sums, place=place: scores(sums)[..., place] for place, name in enumerate(names)}


FAMILIES = {
    "sacrebleu": Family(
        library.sacrebleu_rows,
        {f"{name} (sentence mean)": library.COUNTS + place for place, name in enumerate(_BLEU)},
        _each(_BLEU, library.sacrebleu_scores),
    ),
    "coco bleu": Family(
        library.coco_bleu_rows, summed=_each([f"{name} (pycocoevalcap)" for name in _BLEU], library.coco_bleu_scores)
    ),
    "uvlm bleu": Family(
        library.uvlm_bleu_rows, summed={"BLEU-mean": lambda sums: library.coco_bleu_scores(sums).mean(axis=-1)}
    ),
    "rouge 1": Family(library.rouge_1_rows, {"ROUGE-1": 0}),
    "rouge l": Family(library.rouge_l_rows, {"ROUGE-L": 0}),
    "coco rouge": Family(library.coco_rouge_rows, {"ROUGE-L (pycocoevalcap)": 0}),
    "meteor": Family(library.meteor_rows, {"METEOR": 0}),
    "cider": Family(library.cider_rows, {"CIDEr": 0}, alone=False),
    "minilm": Family(_minilm, {MINILM: 0}, alone=False),
    "roberta-large": Family(_roberta, {ROBERTA: 0}, alone=False),
}


def measured(
    pairs: Sequence[Pair], families: Sequence[str], workers: int = 1, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Rows of each family.

    Equal pairs are computed once. The rows are the same for any number of workers.

    Args:
        pairs: (prediction, references).
        families: of FAMILIES.
        workers: processes; each first imports the libraries and, for METEOR, reads WordNet, which takes seconds.
        progress: called with (pairs done, of how many different ones).

    Returns:
        Family → float64 ``(pairs, columns)``.

    Raises:
        BadInput: ``workers`` isn't a positive whole number.
    """
    if not isinstance(workers, Integral) or isinstance(workers, bool) or workers < 1:
        raise BadInput(f"workers must be a whole number of processes, at least 1, got {workers!r}")
    alone = [name for name in families if FAMILIES[name].alone]
    rows = _alone(pairs, alone, workers, progress) if alone else {}
    for name in families:
        if name not in rows:
            rows[name] = FAMILIES[name].rows(*_columns(pairs))
    return rows


def _alone(pairs: Sequence[Pair], families: Sequence[str], workers: int, progress: Progress | None) -> dict:
    """Rows of families that take each pair by itself."""
    different = list(dict.fromkeys(pairs))
    place = {pair: k for k, pair in enumerate(different)}
    chunks = [different[start : start + CHUNK] for start in range(0, len(different), CHUNK)]
    found, done = [], 0
    for rows, chunk in zip(_chunked(chunks, families, min(workers, len(chunks))), chunks, strict=True):
        found.append(rows)
        done += len(chunk)
        if progress is not None:
            progress(done, len(different))
    order = [place[pair] for pair in pairs]
    return {name: np.concatenate([rows[name] for rows in found])[order] for name in families}


def _chunked(chunks: Sequence[Sequence[Pair]], families: Sequence[str], workers: int):
    """Rows of each chunk in order."""
    tasks = [(chunk, tuple(families)) for chunk in chunks]
    if workers == 1:
        yield from map(_rows, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_rows, tasks)


def _rows(task: tuple[Sequence[Pair], tuple[str, ...]]) -> dict[str, np.ndarray]:
    pairs, families = task
    return {name: FAMILIES[name].rows(*_columns(pairs)) for name in families}


def _columns(pairs: Sequence[Pair]) -> tuple[list[str], list[tuple[str, ...]]]:
    return [text for text, _ in pairs], [refs for _, refs in pairs]
