"""Pairs of prediction and reference: matched by id, and every problem told with the ids that have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.pairs import checked, match


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), st.randoms(use_true_random=False))
def test_matching_does_not_depend_on_the_order_of_the_predictions(texts, random):
    shuffled = list(texts.items())
    random.shuffle(shuffled)
    ids, predictions, references = match(shuffled, texts)
    assert ids == list(texts) and predictions == references == list(texts.values())


@pytest.mark.parametrize(
    "predictions, references, sentence",
    [
        ({"a": "x"}, {"a": "y", "b": "z"}, r"1 id \(b\) of 2 references have no prediction; give ''"),
        ({"a": "x", "c": "y"}, {"a": "y"}, r"1 id \(c\) of 2 predictions have no reference; leave them out"),
        ([("a", "x"), ("a", "y")], {"a": "y"}, r"1 id \(a\) stand more than once in the predictions"),
        ({"a": "x"}, [("a", "x"), ("a", "y")], "more than once in the references"),
        (["ab", "cd"], {"a": "y"}, r"a mapping id → text or a list of \(id, text\)"),
    ],
)
def test_ids_that_do_not_fit_are_named(predictions, references, sentence):
    with pytest.raises(BadInput, match=sentence):
        match(predictions, references)


def test_only_the_first_ids_are_named():
    with pytest.raises(BadInput, match=r"9 ids \(0, 1, 2, 3, 4, …\) of 9 references have no prediction"):
        match({}, {number: "x" for number in range(9)})


def test_a_text_and_a_list_of_texts_become_a_tuple_without_blanks():
    assert checked(["x", "", "y"], ["a", ["b", " "], ("c", "d")]) == (["x", "", "y"], [("a",), ("b",), ("c", "d")])


def test_mappings_are_matched_by_id():
    assert checked({"a": "x", "b": "y"}, {"b": "Y", "a": "X"}) == (["y", "x"], [("Y",), ("X",)])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((["x"], ["a", "b"]), "1 predictions for 2 references"),
        (([], []), "no predictions to score"),
        (("x", "a"), "predictions must be a list of texts, got str; put a single text into a list"),
        ((["x"], 3), "references must be a list of texts, got int"),
        ((["x", None], ["a", "b"]), "1 of 2 predictions aren't texts, the first .number 1. is None"),
        ((["x", 3.5], ["a", "b"], ["p", "q"]), r"the first \(q\) is 3.5"),
        ((["x"], [None]), "the reference of number 0 is None"),
        ((["x"], [["a", 1]]), "references of one pair aren't texts"),
        ((["x"], [[]]), "reference of number 0 is blank"),
        ((["x", "y"], ["a", " \n"], ["p", "q"]), "reference of q is blank: no score is defined; leave the pair out"),
        ((["x", "y"], ["a", "b"], ["p"]), "1 ids for 2 pairs"),
        ((["x", "y"], ["a", "b"], ["p", "p"]), r"1 id \(p\) stand more than once in ids"),
        (({"a": "x"}, ["y"]), "give both by id, or both in order"),
    ],
)
def test_pairs_that_can_not_be_scored_are_refused(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        checked(*arguments)
