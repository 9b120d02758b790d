"""How long text scores take beside the libraries by themselves, in seconds of the processor, in turn.

A thousand different pairs of sentences and reports in the phantom cohort's words. Run by `make bench`, never as a timed
test. Promise: at most 1.1 times the libraries' own time, for each metric by itself and for the usual ones together.
"""

import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from ctvlm_lib.evaluate import text_libraries as library
from ctvlm_lib.evaluate.text import text_scores
from ctvlm_lib.evaluate.text_registry import USUAL
from ctvlm_lib.evaluate.text_tokens import meteor_words, uvlm_text

sys.path.append(str(Path(__file__).parents[1]))
from helpers_text import pairs  # noqa: E402

PAIRS, PROMISE = 1000, 1.1


@pytest.fixture(scope="module")
def thousand(asset):
    """Pairs of which no two are equal, shuffled by their place."""
    asset("wordnet")
    texts = list(dict.fromkeys(text for side in pairs() for text in side if text.strip()))
    order = np.random.default_rng(0).permutation(len(texts) * (len(texts) - 1))[:PAIRS]
    every = list(permutations(texts, 2))
    return [every[k][0] for k in order], [every[k][1] for k in order]


def coco(predictions, references):
    return {k: [text] for k, text in enumerate(references)}, {k: [text] for k, text in enumerate(predictions)}


def corpus_bleu(predictions, references, orders=(4,)):
    return {f"BLEU-{n}": BLEU(max_ngram_order=n).corpus_score(predictions, [references]).score for n in orders}


def sentence_bleu(predictions, references, orders=(4,)):
    found = {}
    for n in orders:
        metric = BLEU(max_ngram_order=n, effective_order=True)
        each = [metric.sentence_score(text, [true]).score for text, true in zip(predictions, references, strict=True)]
        found[f"BLEU-{n} (sentence mean)"] = np.mean(each)
    return found


def rouge(predictions, references, kinds=("rouge1", "rougeL")):
    metric = RougeScorer(list(kinds))
    each = [metric.score(true, text) for text, true in zip(predictions, references, strict=True)]
    return {f"ROUGE-{kind[-1]}": 100 * np.mean([one[kind].fmeasure for one in each]) for kind in kinds}


def meteor(predictions, references):
    both = zip(predictions, references, strict=True)
    return {"METEOR": 100 * np.mean([single_meteor_score(meteor_words(true), meteor_words(s)) for s, true in both])}


def bleu_mean(predictions, references):
    truth, said = coco(*[[uvlm_text(text) for text in side] for side in (predictions, references)])
    return {"BLEU-mean": 100 * np.mean(Bleu(4).compute_score(truth, said, verbose=0)[0])}


def cider(predictions, references):
    return {"CIDEr": Cider().compute_score(*coco(predictions, references))[0]}


def coco_rouge(predictions, references):
    return {"ROUGE-L (pycocoevalcap)": 100 * Rouge().compute_score(*coco(predictions, references))[0]}


def usual(predictions, references):
    orders = (1, 2, 3, 4)
    found = corpus_bleu(predictions, references, orders) | sentence_bleu(predictions, references, orders)
    for score in (bleu_mean, rouge, meteor, cider):
        found |= score(predictions, references)
    return found


ALONE = {
    "usual": usual, "BLEU-4": corpus_bleu, "BLEU-4 (sentence mean)": sentence_bleu, "ROUGE-1, ROUGE-L": rouge,
    "ROUGE-L": lambda *texts: rouge(*texts, kinds=["rougeL"]),
    "METEOR": meteor, "BLEU-mean": bleu_mean, "CIDEr": cider, "ROUGE-L (pycocoevalcap)": coco_rouge,
}  # fmt: skip


def in_turn(*functions, rounds=5):
    """Processor seconds of each function, the least of some rounds; every round runs all of them."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(times, functions, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return [min(taken[1:]) for taken in times]  # the first round loads WordNet


def forget():
    """Words and stems that were kept: each round begins as a first call does, but for WordNet's files."""
    for kept in (library._sacrebleu, library._rouge_words, library._stems, library._wordnet, meteor_words):
        kept.cache_clear()


@pytest.mark.parametrize("name", ALONE)
def test_scoring_is_no_slower_than_the_libraries(benchmark, thousand, name):
    metrics = list(USUAL) if name == "usual" else name.split(", ")

    def ours():
        forget()
        return text_scores(*thousand, metrics=metrics)

    def theirs():
        forget()
        return ALONE[name](*thousand)

    assert ours() == pytest.approx(theirs())
    ours_s, theirs_s = in_turn(ours, theirs)
    benchmark.pedantic(ours, rounds=2)
    benchmark.extra_info |= {"plain_s": round(theirs_s, 3), "times_faster": round(theirs_s / ours_s, 2)}
    print(f"\n{name}: {ours_s:.3f} s, the libraries {theirs_s:.3f} s: {ours_s / theirs_s:.2f} of their time")
    assert ours_s <= PROMISE * theirs_s


def test_repeated_pairs_cost_once(benchmark, thousand):
    """Answers of questions repeat: a list of 20 times the same 50 pairs."""
    few = [side[:50] * 20 for side in thousand]
    metrics = [name for name in USUAL if name != "CIDEr"]  # CIDEr's library takes all pairs
    repeated_s, different_s = in_turn(
        lambda: text_scores(*few, metrics=metrics), lambda: text_scores(*thousand, metrics=metrics)
    )
    benchmark.pedantic(text_scores, args=few, kwargs={"metrics": metrics}, rounds=2)
    print(f"\n50 pairs 20 times: {repeated_s:.3f} s; {PAIRS} different ones: {different_s:.3f} s")
    assert repeated_s < different_s / 4
