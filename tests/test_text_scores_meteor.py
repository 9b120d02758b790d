"""METEOR against NLTK called directly, and what is to be known of it. Reads WordNet; skipped without it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers_text import pairs
from nltk.tokenize import word_tokenize

from ctvlm_lib.evaluate.text import text_scores, text_scores_per_pair
from ctvlm_lib.evaluate.text_tokens import meteor_words


@pytest.fixture(scope="module")
def meteor(asset):
    asset("wordnet")
    return lambda said, true: text_scores([said], [true], metrics="METEOR")["METEOR"]


@pytest.mark.assets
def test_meteor_equals_nltk(meteor):
    from nltk.translate.meteor_score import meteor_score, single_meteor_score

    predictions, references = pairs()
    found = text_scores_per_pair(predictions, references, metrics="METEOR")["METEOR"]
    words = [[meteor_words(text) for text in texts] for texts in (predictions, references)]
    direct = [100 * single_meteor_score(true, said) for said, true in zip(*words, strict=True)]
    np.testing.assert_allclose(found, direct, rtol=1e-12)
    several = [["a cyst of the kidney", "no mass in the liver"]]
    best = 100 * meteor_score([meteor_words(text) for text in several[0]], meteor_words("a mass in the liver"))
    assert text_scores(["a mass in the liver"], several, metrics="METEOR") == {"METEOR": pytest.approx(best)}


@pytest.mark.assets
def test_meteor_knows_synonyms_and_inflections(meteor):
    assert meteor("a neoplasm", "a tumor") == meteor("a tumor", "a tumor") > 90
    assert meteor("two cysts", "two cyst") == meteor("two cyst", "two cyst")
    assert meteor("a cyst", "a tumor") < 30


@pytest.mark.assets
def test_meteor_looks_synonyms_up_by_stem():
    """NLTK's way, kept: "large" is looked up as "larg", which WordNet doesn't know."""
    from nltk.corpus import wordnet

    assert "large" in {lemma.name() for lemma in wordnet.synsets("big")[0].lemmas()}
    found = text_scores_per_pair(["a big mass", "a big mass"], ["a large mass", "a round mass"], metrics="METEOR")
    assert found["METEOR"][0] == found["METEOR"][1]


@pytest.mark.assets
def test_one_right_word_scores_a_half(meteor):
    """Its penalty for fragments has full weight on a single word: why METEOR of plane questions is near 49."""
    assert meteor("Axial", "axial") == 50
    assert meteor("", "axial") == 0
    assert meteor("There is a mass in the liver.", "There is a mass in the liver.") > 99


@pytest.mark.assets
def test_files_that_nltk_refuses_are_told_with_a_remedy(asset, tmp_path):
    copied = shutil.copytree(asset("wordnet"), tmp_path / "assets" / "wordnet")
    for path in (copied, *copied.rglob("*")):
        path.chmod(path.stat().st_mode | 0o020)  # the group may write
    code = "from ctvlm_lib.evaluate.text import text_scores; text_scores(['a'], ['b'], metrics='METEOR')"
    settings = {**os.environ, "CTVLM_CACHE": str(tmp_path), "NLTK_DATA": ""}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert said.returncode == 1
    assert "BadInput: NLTK refuses the WordNet files in" in said.stderr.splitlines()[-1]


def test_meteors_words_are_nltks_within_a_sentence():
    sentences = ["It's a mass (3.5 cm) in the liver.", "No cyst!", "Is it 12 mm x 4?"]
    expected = [word for one in sentences for word in word_tokenize(one, preserve_line=True)]
    assert list(meteor_words(" ".join(sentences))) == expected
    assert "liver" in expected and "3.5" in expected
    assert meteor_words("") == ()
