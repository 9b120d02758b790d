"""Readers of texts who see no image: what they say follows from the training texts, and from the seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.blind_text import central, most_frequent, other_patients

TEXTS = ["a mass", "no finding", "no finding", "a cyst", "a cyst", "a mass"]
WORDINGS = ["liver", "liver", "liver", "spleen", "spleen", "spleen"]


def test_the_most_frequent_answer_is_that_of_the_same_words():
    assert most_frequent(TEXTS, WORDINGS, ["liver", "spleen", "liver"]) == ["no finding", "a cyst", "no finding"]


def test_words_never_seen_get_the_most_frequent_answer_of_all_and_ties_go_by_alphabet():
    assert most_frequent(TEXTS, WORDINGS, ["heart"]) == ["a cyst"]
    assert most_frequent(["b", "a"], [1, 1], [1]) == ["a"]


def test_the_central_text_has_the_highest_mean_rouge_l_to_the_others():
    texts = [
        "no mass in the liver",
        "no mass in the spleen",
        "no cyst in the liver",
        "enlarged heart",
        "no mass is seen",
    ]
    scorer = RougeScorer(["rougeL"])
    mean = [
        np.mean([scorer.score(other, text)["rougeL"].fmeasure for k, other in enumerate(texts) if k != place])
        for place, text in enumerate(texts)
    ]
    assert central(texts, 3) == [texts[int(np.argmax(mean))]] * 3
    assert central(["one"], 2) == ["one", "one"]


def test_the_central_text_is_looked_for_among_a_few():
    texts = [f"finding {number} of the liver" for number in range(200)]
    assert central(texts, 1, candidates=3, against=5)[0] in texts
    assert central(texts, 1, candidates=3, against=5) == central(texts, 1, candidates=3, against=5)
    assert len({central(texts, 1, candidates=1, against=2, seed=seed)[0] for seed in range(8)}) > 1


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(0, 5))
def test_another_patients_text_is_never_ones_own(asked, seed):
    texts, patients = ["1", "2", "3", "4"], ["a", "a", "b", "c"]
    said = other_patients(texts, patients, asked, seed=seed)
    assert all(patients[texts.index(text)] != patient for text, patient in zip(said, asked, strict=True))
    assert said == other_patients(texts, patients, asked, seed=seed)


def test_a_draw_depends_on_its_key_and_not_on_its_place():
    texts, patients, keys = list("abcdefgh"), list("ABCDEFGH"), [f"record {k}" for k in range(20)]
    said = dict(zip(keys, other_patients(texts, patients, ["A"] * 20, keys=keys), strict=True))
    turned = other_patients(texts, patients, ["A"] * 20, keys=keys[::-1])
    assert dict(zip(keys[::-1], turned, strict=True)) == said
    assert set(said.values()) <= set("bcdefgh") and len(set(said.values())) > 3
    assert other_patients(texts, patients, ["A"] * 20, keys=keys, seed=1) != list(said.values())


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: most_frequent([], [], ["x"]), "no training texts"),
        (lambda: central([], 2), "no training texts"),
        (lambda: most_frequent(["a"], [], ["x"]), "1 training texts with 0 wordings"),
        (lambda: other_patients(["a"], ["p", "q"], ["p"]), "1 training texts with 2 patients"),
        (lambda: other_patients(["a"], ["p"], ["p"]), "all training texts are of patient p"),
        (lambda: other_patients(["a"], ["p"], ["q"], keys=[]), "0 keys for 1 tests"),
    ],
)
def test_what_can_not_be_answered_is_refused(call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call()
