"""Retrieval: equal to a plain loop, equal texts right, ties fair, directions named as they are."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.retrieval import as_table, ranks, recalls


def plain_recall(similarity, texts, k) -> float:
    """Sort each row and look for the text among the first k; no ties."""
    hits = []
    for row, text in zip(similarity, texts, strict=True):
        order = sorted(range(len(row)), key=lambda j: -row[j])
        hits.append(any(texts[j] == text for j in order[:k]))
    return sum(hits) / len(hits)


def row_of(rows, direction, gallery, k):
    (found,) = [r for r in rows if (r.direction, r.gallery, r.k) == (direction, gallery, k)]
    return found


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 3))
def test_recall_equals_a_plain_loop(seed, n, different):
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(n, n))
    texts = [f"report {k}" for k in rng.integers(0, different * n, n)]
    rows = recalls(similarity, texts, (n,), (1, 5, 10), resamples=20)
    for row in rows:
        table = similarity if row.direction == "image→text" else similarity.T
        assert row.recall == pytest.approx(plain_recall(table, texts, row.k))
        assert row.low <= row.recall <= row.high and row.distinct == len(set(texts))


def test_the_two_directions_are_not_swapped():
    similarity = np.array([[0.1, 0.2, 0.0], [0.0, 0.3, 0.0], [0.0, 0.25, 0.1]])  # every image likes text 1 best
    rows = recalls(similarity, ["a", "b", "c"], (3,), (1,), resamples=10)
    assert row_of(rows, "image→text", 3, 1).recall == pytest.approx(1 / 3)
    assert row_of(rows, "text→image", 3, 1).recall == 1


def test_equal_texts_count_as_right():
    wrong = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert row_of(recalls(wrong, ["same", "same"], (2,), (1,), resamples=10), "image→text", 2, 1).recall == 1
    assert row_of(recalls(wrong, ["one", "two"], (2,), (1,), resamples=10), "image→text", 2, 1).recall == 0


def test_equal_similarities_earn_no_more_than_chance():
    rows = recalls(np.zeros((10, 10)), [str(k) for k in range(10)], (10,), (1, 5), resamples=10)
    place, _ = ranks(np.zeros((10, 10)), np.arange(10))
    assert (place == 4.5).all()  # in the middle
    assert all(row.recall <= row.chance + 0.01 for row in rows)


def test_chance_is_what_guessing_reaches():
    texts = [str(k) for k in [0, 0, 0, *range(1, 18)]]
    rng = np.random.default_rng(0)
    guessed = [recalls(rng.normal(size=(20, 20)), texts, (20,), (5,), resamples=5)[0] for _ in range(300)]
    assert np.mean([row.recall for row in guessed]) == pytest.approx(guessed[0].chance, abs=0.02)  # 4 standard errors


def test_galleries_are_dealt_without_repetition_and_alike_each_time():
    rng = np.random.default_rng(1)
    similarity, texts = rng.normal(size=(25, 25)), [str(k) for k in range(25)]
    rows = recalls(similarity, texts, (10, 25, 100), (1,), resamples=10)
    assert rows == recalls(similarity, texts, (10, 25, 100), (1,), resamples=10)
    assert {(r.gallery, r.queries) for r in rows} == {(10, 20), (25, 25)}
    assert len(as_table(rows, arm="x")) == len(rows)


def test_a_matrix_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="similarity matrix"):
        recalls(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(BadInput, match="finite"):
        recalls(np.full((2, 2), np.nan), ["a", "b"])
