"""Text scores against the libraries called directly, on 200 pairs in the phantom cohort's words."""

import math
from collections import Counter

import numpy as np
import pytest
from helpers_text import SPECIAL, pairs
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from ctvlm_lib.evaluate.intervals import bootstrap_of_sums, sums_of_patients
from ctvlm_lib.evaluate.text import text_scores, text_scores_per_pair, text_statistics
from ctvlm_lib.evaluate.text_registry import METRICS, USUAL
from ctvlm_lib.evaluate.text_tokens import uvlm_text

ORDERS = (1, 2, 3, 4)
WITHOUT_ASSETS = [name for name, metric in METRICS.items() if not metric.needs]
CLOSE = pytest.approx  # relative 1e-6: sums are taken in another order


@pytest.fixture(scope="module")
def two_hundred():
    predictions, references = pairs()
    assert len(predictions) == 200
    return predictions, references


@pytest.fixture(scope="module")
def scores(two_hundred):
    return text_scores(*two_hundred, metrics=WITHOUT_ASSETS)


def coco(predictions, references):
    """Pairs as pycocoevalcap takes them."""
    return {k: [text] for k, text in enumerate(references)}, {k: [text] for k, text in enumerate(predictions)}


def test_the_usual_metrics_hold_the_names_that_stay():
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr"} <= set(USUAL)
    assert not any(name.startswith("BERTScore") for name in USUAL)
    assert "BERTScore" not in METRICS


@pytest.mark.parametrize("order", ORDERS)
def test_bleu_equals_sacrebleu(two_hundred, scores, order):
    predictions, references = two_hundred
    assert scores[f"BLEU-{order}"] == CLOSE(BLEU(max_ngram_order=order).corpus_score(predictions, [references]).score)
    by_sentence = BLEU(max_ngram_order=order, effective_order=True)
    each = [
        by_sentence.sentence_score(*pair).score for pair in zip(predictions, [[r] for r in references], strict=True)
    ]
    assert scores[f"BLEU-{order} (sentence mean)"] == CLOSE(np.mean(each))
    assert scores[f"BLEU-{order}"] != CLOSE(scores[f"BLEU-{order} (sentence mean)"], abs=1)


def test_sentence_bleu_1_is_the_plain_formula_of_hugging_faces_evaluate(two_hundred):
    """Clipped matches over length, times the brevity penalty; a blank text, on which that library fails, scores 0."""
    words, plain = Tokenizer13a(), []
    for text, reference in zip(*two_hundred, strict=True):
        said, true = words(text).split(), words(reference).split()
        matches = sum((Counter(said) & Counter(true)).values())
        brevity = min(1, math.exp(1 - len(true) / len(said))) if said else 0
        plain.append(100 * brevity * matches / max(len(said), 1))
    name = "BLEU-1 (sentence mean)"
    np.testing.assert_allclose(text_scores_per_pair(*two_hundred, metrics=name)[name], plain, rtol=1e-9)


def test_rouge_equals_rouge_score(two_hundred, scores):
    scorer = RougeScorer(["rouge1", "rougeL"])
    found = [scorer.score(reference, text) for text, reference in zip(*two_hundred, strict=True)]
    assert scores["ROUGE-1"] == CLOSE(100 * np.mean([each["rouge1"].fmeasure for each in found]))
    assert scores["ROUGE-L"] == CLOSE(100 * np.mean([each["rougeL"].fmeasure for each in found]))


def test_the_coco_metrics_equal_pycocoevalcap_on_the_strings_as_they_are(two_hundred, scores):
    truth, said = coco(*two_hundred)
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    assert [scores[f"BLEU-{order} (pycocoevalcap)"] for order in ORDERS] == CLOSE([100 * one for one in bleu])
    assert scores["CIDEr"] == CLOSE(Cider().compute_score(truth, said)[0])
    assert scores["ROUGE-L (pycocoevalcap)"] == CLOSE(100 * Rouge().compute_score(truth, said)[0])


def test_bleu_mean_equals_pycocoevalcap_on_texts_rewritten_as_u_vlm_does(two_hundred, scores):
    predictions, references = [[uvlm_text(text) for text in texts] for texts in two_hundred]
    bleu, _ = Bleu(4).compute_score(*coco(predictions, references), verbose=0)
    assert scores["BLEU-mean"] == CLOSE(100 * np.mean(bleu))
    assert uvlm_text('A "mass"\n of 3.5 cm .. No cyst.End') == "A mass of 3. 5 cm. No cyst. End"


@pytest.mark.parametrize("name", WITHOUT_ASSETS)
def test_several_references_are_passed_on(name):
    predictions = ["a mass of the liver is seen here", "no cyst is seen in the kidney", "", "two cysts are seen here"]
    references = [["there is a cyst", "a mass in the liver is seen here"], ["no cyst is seen"], ["a", "b"],
                  ["two cysts", "two cysts are there", "cysts"]]  # fmt: skip
    assert text_scores(predictions, references, metrics=name)[name] == CLOSE(direct(name, predictions, references))


def direct(name, predictions, references):
    """A metric of pairs with several references, by its library alone."""
    order = int(name[5]) if name[5:6].isdigit() else 4
    truth, said = dict(enumerate(references)), {k: [text] for k, text in enumerate(predictions)}
    if name == "CIDEr":
        return Cider().compute_score(truth, said)[0]
    if name == "ROUGE-L (pycocoevalcap)":
        return 100 * Rouge().compute_score(truth, said)[0]
    if name == "BLEU-mean" or "coco" in name:
        bleu = Bleu(4).compute_score(truth, said, verbose=0)[0]
        return 100 * (np.mean(bleu) if name == "BLEU-mean" else bleu[order - 1])
    if name.startswith("ROUGE"):
        kind = name.replace("-", "").replace("ROUGE", "rouge")
        scorer = RougeScorer([kind])
        found = [scorer.score_multi(*pair)[kind] for pair in zip(references, predictions, strict=True)]
        return 100 * np.mean([one.fmeasure for one in found])
    if "sentence" in name:
        metric = BLEU(max_ngram_order=order, effective_order=True)
        return np.mean([metric.sentence_score(*pair).score for pair in zip(predictions, references, strict=True)])
    streams = [[refs[k] if k < len(refs) else None for refs in references] for k in range(3)]
    return BLEU(max_ngram_order=order).corpus_score(predictions, streams).score


def test_a_blank_prediction_scores_nothing_and_an_identical_one_everything():
    per_pair = [name for name in WITHOUT_ASSETS if METRICS[name].level != "corpus"]
    text = "There is a mass of 3.5 cm in the liver."
    found = text_scores_per_pair(["", " \n ", text, text], [text, text, text, "No cyst."], metrics=per_pair)
    for name, values in found.items():
        assert values[:2].tolist() == [0, 0], name
        assert values[2] == CLOSE(10 if name == "CIDEr" else 100), name
    whole = text_scores(["", ""], ["a mass", "a cyst"], metrics=WITHOUT_ASSETS)
    assert all(value == 0 for value in whole.values())


def test_cider_of_one_pair_is_nothing_as_its_words_are_in_every_reference():
    assert text_scores(["a mass"], ["a mass"], metrics="CIDEr") == {"CIDEr": 0}
    assert text_scores(["a mass", "no cyst"], ["a mass", "no cyst"], metrics="CIDEr")["CIDEr"] > 0


def test_a_flipped_negation_keeps_most_of_every_score():
    """What these metrics can't see, and why accuracy stands beside them."""
    flipped = next(pair for pair in SPECIAL if "no pleural effusion" in pair[1])
    found = text_scores(*[[text] for text in flipped], metrics=["ROUGE-L", "BLEU-1 (sentence mean)"])
    assert min(found.values()) > 75


def test_a_draw_of_pairs_scores_as_those_pairs_alone(two_hundred):
    """All but CIDEr, whose weights stay those of all references."""
    predictions, references = two_hundred
    statistics = text_statistics(predictions, references, metrics=WITHOUT_ASSETS)
    draw = np.random.default_rng(3).integers(0, 200, 200)
    drawn = [[texts[place] for place in draw] for texts in two_hundred]
    alone = text_scores(*drawn, metrics=[name for name in WITHOUT_ASSETS if name != "CIDEr"])
    resampled = statistics.scores(draw)
    assert {name: resampled[name] for name in alone} == CLOSE(alone)
    assert resampled["CIDEr"] == CLOSE(statistics.values("CIDEr")[draw].mean())
    assert resampled["BLEU-4"] == CLOSE(BLEU().corpus_score(drawn[0], [drawn[1]]).score)


@pytest.mark.parametrize("name", ["BLEU-4", "BLEU-mean", "ROUGE-L"])
def test_an_interval_over_patients_holds_the_score_and_its_draws_are_corpus_scores(two_hundred, name):
    predictions, references = two_hundred
    patients = [f"patient {place % 7}" for place in range(200)]
    rows, of_sums = text_statistics(predictions, references, metrics=name).sums(name)
    interval = bootstrap_of_sums(rows, patients, of_sums, resamples=200)
    assert interval.value == CLOSE(text_scores(predictions, references, metrics=name)[name])
    assert interval.low < interval.value < interval.high
    twice = [place for place in range(200) if place % 7 == 0] * 2 + [place for place in range(200) if place % 7 == 3]
    totals, _ = sums_of_patients(rows, patients)
    drawn = [[texts[place] for place in twice] for texts in two_hundred]
    assert of_sums(np.array([2, 0, 0, 1, 0, 0, 0]) @ totals) == CLOSE(text_scores(*drawn, metrics=name)[name])


def test_pair_values_average_to_the_score(two_hundred, scores):
    found = text_scores_per_pair(*two_hundred, metrics=["ROUGE-1", "CIDEr", "BLEU-4 (sentence mean)"])
    assert {name: values.mean() for name, values in found.items()} == CLOSE({name: scores[name] for name in found})
    assert all(values.shape == (200,) for values in found.values())


def test_two_processes_give_what_one_gives(two_hundred):
    metrics, seen = ["BLEU-4", "BLEU-mean"], []  # libraries that a process imports fast
    one = text_statistics(*two_hundred, metrics=metrics)
    two = text_statistics(*two_hundred, metrics=metrics, workers=2, progress=lambda *step: seen.append(step))
    for family, rows in one.rows.items():
        np.testing.assert_array_equal(rows, two.rows[family])
    different = len(set(zip(*two_hundred, strict=True)))
    assert seen[-1] == (different, different) and sorted(seen) == seen


WORDS = st.lists(st.sampled_from(["mass", "cyst", "no", "in", "the", "liver", "3.5", "cm", "µm", "."]), max_size=8)


@given(st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=6))
def test_bleu_from_counts_equals_both_libraries_on_any_words(drawn):
    predictions, references = ([" ".join(pair[side]) for pair in drawn] for side in (0, 1))
    names = ["BLEU-4", "BLEU-2", "BLEU-4 (pycocoevalcap)", "BLEU-3 (sentence mean)"]
    found = text_scores(predictions, references, metrics=names)
    metric = BLEU(max_ngram_order=3, effective_order=True)
    each = [metric.sentence_score(text, [true]).score for text, true in zip(predictions, references, strict=True)]
    assert found["BLEU-3 (sentence mean)"] == CLOSE(np.mean(each))
    assert found["BLEU-4"] == CLOSE(BLEU().corpus_score(predictions, [references]).score)
    assert found["BLEU-2"] == CLOSE(BLEU(max_ngram_order=2).corpus_score(predictions, [references]).score)
    bleu, _ = Bleu(4).compute_score(*coco(predictions, references), verbose=0)
    assert found["BLEU-4 (pycocoevalcap)"] == CLOSE(100 * bleu[3])
