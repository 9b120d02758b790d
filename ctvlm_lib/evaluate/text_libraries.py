"""Thin adaptors to the libraries that the papers score texts with: pairs in, one row of numbers a pair out.

A row holds what a pair adds to its scores: a value to be averaged, or counts to be summed. Scores are in 0…100, CIDEr
in 0…10. The libraries are imported when first used, so that light code can import the names of the metrics.
"""

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ctvlm_lib import assets
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text_tokens import meteor_words, uvlm_text

Refs = tuple[str, ...]
ORDERS = (1, 2, 3, 4)
COUNTS = 2 + 2 * len(ORDERS)  # length, reference length, matches of each order, n-grams of each order
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's guards against a division by zero


def sacrebleu_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """Counts for BLEU, then BLEU-1…4 of the pair by itself (effective order): ``(pairs, 14)``."""
    longest = max(map(len, references))
    streams = [[refs[place] if place < len(refs) else None for refs in references] for place in range(longest)]
    # the library gives counts of all pairs by this method only; what it sums afterwards is what is needed pair by pair
    counts = np.array(_sacrebleu()._extract_corpus_statistics(predictions, streams), dtype=float)
    return np.concatenate([counts, sacrebleu_scores(counts, effective=True)], axis=1)


@lru_cache(maxsize=1)
def _sacrebleu():
    """The library's metric, kept because its tokenizer takes each text apart once."""
    from sacrebleu.metrics import BLEU

    return BLEU(force=True)  # no word on texts that end in " ."


def sacrebleu_scores(counts: np.ndarray, effective: bool = False) -> np.ndarray:
    """sacrebleu's BLEU-1…4 from counts, smoothing "exp" as is its default, for many corpora or sentences at once.

    Each order without a match halves the precision that it is given in place of 0. An order for which the text is too
    short makes the score 0, or with ``effective`` counts neither in the sum of logarithms nor in their number. Without
    a common word the score is 0.

    Args:
        counts: ``(…, 10)``: length, reference length, matches of the four orders, n-grams of the four orders.
        effective: as for single sentences.

    Returns:
        ``(…, 4)``.
    """
    length, true = np.maximum(counts[..., :1], 1), counts[..., 1:2]
    matches, totals = np.split(counts[..., 2:], 2, axis=-1)
    there = totals > 0
    none = there & (matches == 0)
    precision = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches) / np.maximum(totals, 1)
    logs = np.log(precision, out=np.zeros_like(precision), where=there)
    mean = np.cumsum(logs, axis=-1) / np.maximum(np.cumsum(there, axis=-1), 1)
    brevity = np.exp(np.minimum(1 - true / length, 0))
    defined = (matches[..., :1] > 0) & (there | effective)
    return np.where(defined, 100 * brevity * np.exp(mean), 0.0)


def coco_bleu_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """pycocoevalcap's counts for BLEU on words between white space: ``(pairs, 10)``."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for text, refs in zip(predictions, references, strict=True):
        found = cook_test(text, cook_refs(refs))
        length = found["testlen"]
        closest = min(found["reflen"], key=lambda n, length=length: (abs(n - length), n))
        rows.append([length, closest, *found["correct"], *found["guess"]])
    return np.array(rows, dtype=float).reshape(len(predictions), COUNTS)


def uvlm_bleu_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """The same counts on texts rewritten as U-VLM's evaluation does."""
    rewritten = [tuple(uvlm_text(ref) for ref in refs) for refs in references]
    return coco_bleu_rows([uvlm_text(text) for text in predictions], rewritten)


def coco_bleu_scores(counts: np.ndarray) -> np.ndarray:
    """pycocoevalcap's BLEU-1…4 from counts: ``(…, 10)`` → ``(…, 4)``; no smoothing but its tiny constants."""
    matches, totals = np.split(counts[..., 2:], 2, axis=-1)
    bleu = np.cumprod((matches + _TINY) / (totals + _SMALL), axis=-1) ** (1 / np.array(ORDERS))
    ratio = (counts[..., :1] + _TINY) / (counts[..., 1:2] + _SMALL)
    return 100 * bleu * np.exp(np.minimum(1 - 1 / ratio, 0))


def coco_rouge_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """pycocoevalcap's ROUGE-L (β = 1.2) on words between single spaces: ``(pairs, 1)``; a blank text scores 0."""
    from pycocoevalcap.rouge.rouge import Rouge

    metric = Rouge()
    return _column(
        100 * metric.calc_score([text], refs) if text.strip() else 0.0
        for text, refs in zip(predictions, references, strict=True)
    )


def rouge_1_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """rouge-score's F1 of ROUGE-1, no stemmer, the best reference: ``(pairs, 1)``."""
    return _rouge("rouge1", predictions, references)


def rouge_l_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """rouge-score's F1 of ROUGE-L over the whole text, no stemmer, the best reference: ``(pairs, 1)``."""
    return _rouge("rougeL", predictions, references)


def _rouge(kind: str, predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    from rouge_score.rouge_scorer import RougeScorer

    metric = RougeScorer([kind], tokenizer=_rouge_words())
    return _column(
        100 * max(metric.score(ref, text)[kind].fmeasure for ref in refs)
        for text, refs in zip(predictions, references, strict=True)
    )


def meteor_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """NLTK's METEOR with WordNet 3.0, α 0.9, β 3, γ 0.5, the best reference: ``(pairs, 1)``."""
    from nltk.translate.meteor_score import meteor_score

    words, stems = _wordnet(), _stems()
    return _column(
        100 * meteor_score(map(meteor_words, refs), meteor_words(text), stemmer=stems, wordnet=words)
        for text, refs in zip(predictions, references, strict=True)
    )


def cider_rows(predictions: Sequence[str], references: Sequence[Refs]) -> np.ndarray:
    """pycocoevalcap's CIDEr on words between white space: ``(pairs, 1)``, 0…10.

    A word weighs the more, the fewer of these pairs' references hold it, so that a row depends on all pairs.
    """
    from pycocoevalcap.cider.cider import Cider

    truth = {number: list(refs) for number, refs in enumerate(references)}
    said = {number: [text] for number, text in enumerate(predictions)}
    return np.asarray(Cider().compute_score(truth, said)[1], dtype=float)[:, None]


def _column(values) -> np.ndarray:
    return np.array(list(values), dtype=float)[:, None]


class _RougeWords:
    """rouge-score's own tokenizer, each text taken apart once."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer

        self.tokenize = lru_cache(maxsize=2**13)(DefaultTokenizer().tokenize)


@lru_cache(maxsize=1)
def _rouge_words() -> _RougeWords:
    return _RougeWords()


class _Stems:
    """Porter's stems, each computed once."""

    def __init__(self):
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=2**15)(PorterStemmer().stem)


class _WordNet:
    """NLTK's WordNet reader, each word looked up once."""

    def __init__(self, reader):
        self.synsets = lru_cache(maxsize=2**15)(reader.synsets)


@lru_cache(maxsize=1)
def _stems() -> _Stems:
    return _Stems()


@lru_cache(maxsize=1)
def _wordnet() -> _WordNet:
    """WordNet 3.0 of the asset ``wordnet``; NLTK reads only below ``nltk.data.path``, and only private files."""
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class EnglishOnly(WordNetCorpusReader):
        """Without the map from other languages' senses, which takes as long as all the rest."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    folder = os.fspath(assets.path("wordnet/nltk_data"))
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    try:
        with warnings.catch_warnings(action="ignore"):  # that other languages are missing
            wordnet = EnglishOnly(nltk.data.find("corpora/wordnet", [folder]), None)
    except (LookupError, OSError) as error:
        raise BadInput(
            f"NLTK refuses the WordNet files in {folder}: it reads only what you own and nobody else can write; make"
            " them so, or delete the folder wordnet and fetch it again with: ctvlm assets wordnet"
        ) from error
    return _WordNet(wordnet)
