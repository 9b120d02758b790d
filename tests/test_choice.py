"""Accuracy of closed answers: counted as by hand, unread answers wrong and counted, nothing pooled silently."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate import answers
from ctvlm_lib.evaluate.answers import parse
from ctvlm_lib.evaluate.choice import accuracy_table, released_table, score_closed, unparsed_table

ORGANS = ("liver", "spleen", "left kidney", "right kidney")


def rows(*given, **shared):
    """A table of (answer, truth, choices), one question each, two to a patient."""
    common = {"kind": "organ", "form": "closed", "stratum": "unnamed", "condition": "contour", "control": "as asked"}
    return pd.DataFrame(
        {"id": f"q{k}", "patient": f"p{k // 2}", **common, "seed": 0, "answer": answer, "choices": choices,
         "truth": truth, "confidence": float("nan")} | shared
        for k, (answer, truth, choices) in enumerate(given)
    )  # fmt: skip


@pytest.fixture
def five():
    return rows(
        ("B. spleen", "spleen", ORGANS),
        ("A. liver", "spleen", ORGANS),
        ("A or B", "spleen", ORGANS),
        ("yes, there is", "Yes", ()),
        ("", "No", ()),
    )


def test_right_wrong_and_unread_answers_are_told_apart(five):
    scored = score_closed(five)
    assert scored["correct"].tolist() == [True, False, False, True, False]
    assert scored["parsed"].isna().tolist() == [False, False, True, False, True]
    assert scored["parsed"].dropna().tolist() == ["spleen", "liver", "Yes"]
    assert scored["reason"].tolist()[2:] == [answers.SEVERAL, answers.BY_WORDS, answers.EMPTY]
    assert "parsed" not in five.columns  # what was given isn't changed


def test_the_table_counts_as_by_hand(five):
    (row,) = accuracy_table(score_closed(five)).to_dict("records")
    assert row == {"kind": "organ", "n": 5, "patients": 3, "accuracy": 2 / 5, "unparsed": 2 / 5,
                   "chance": pytest.approx((3 / 4 + 2 / 2) / 5)}  # fmt: skip


def test_unread_answers_are_listed_by_their_reason(five):
    listed = unparsed_table(score_closed(pd.concat([five, five.assign(id=five["id"] + "again")])))
    assert listed["n"].tolist() == [2, 2] and set(listed["reason"]) == {answers.SEVERAL, answers.EMPTY}
    assert dict(zip(listed["reason"], listed["examples"], strict=True))[answers.SEVERAL] == ("A or B",)
    assert unparsed_table(score_closed(five[:2])).empty


@given(st.lists(st.tuples(st.sampled_from(["A", "B. spleen", "liver", "A or B", "D", "none"]), st.sampled_from(ORGANS),
                          st.sampled_from(["none", "contour"]), st.sampled_from(["organ", "size"])),
                min_size=1, max_size=30))  # fmt: skip
def test_every_group_is_what_a_plain_loop_counts(drawn):
    drawn = [("A", "liver", "none", "organ"), *drawn]  # at least one can be read
    table = rows(*((answer, truth, ORGANS) for answer, truth, *_ in drawn))
    table["condition"], table["kind"] = [one[2] for one in drawn], [one[3] for one in drawn]
    counted = accuracy_table(score_closed(table), by=("condition", "kind"))
    assert counted["n"].sum() == len(drawn)
    for row in counted.itertuples():
        same = [(k, one) for k, one in enumerate(drawn) if one[2:] == (row.condition, row.kind)]
        read = [parse(one[0], ORGANS).choice for _, one in same]
        right = sum(choice == one[1] for choice, (_, one) in zip(read, same, strict=True))
        assert (row.n, row.patients) == (len(same), len({k // 2 for k, _ in same}))
        assert row.accuracy == pytest.approx(right / len(same))
        assert row.unparsed == pytest.approx(read.count(None) / len(same)) and row.chance == 0.25


def test_guessing_is_at_chance():
    rng = np.random.default_rng(5)
    drawn = [("ABCD"[rng.integers(4)], ORGANS[rng.integers(4)], ORGANS) for _ in range(4000)]
    (row,) = accuracy_table(score_closed(rows(*drawn))).to_dict("records")
    assert abs(row["accuracy"] - row["chance"]) < 4 * (0.25 * 0.75 / 4000) ** 0.5  # four standard errors


def test_open_questions_are_left_out(five):
    mixed = pd.concat([five, rows(("a cyst", "cyst", ())).assign(form="open")])
    assert len(score_closed(mixed)) == 5
    with pytest.raises(BadInput, match="none of the 1 rows has form 'closed'"):
        score_closed(mixed[mixed["form"] == "open"])


def test_truths_of_yes_or_no_may_be_written_as_in_any_data_set():
    assert score_closed(rows(("No.", "no", ()), ("Yes", "Yes.", ())))["correct"].all()


def test_the_released_rule_counts_more_and_some_answers_twice():
    table = rows(("B. spleen", "spleen", ORGANS), ("A. liver. No: B. spleen.", "spleen", ORGANS), ("yes", "Yes", ()))
    (row,) = released_table(score_closed(table)).to_dict("records")
    assert row == {"kind": "organ", "n": 2, "accuracy": 0.5, "released": 1.0, "two letters": 0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns=["truth", "seed"]), "lacks seed, truth"),
        (lambda t: pd.concat([t, t[:1]]), "q0 .condition 'contour', control 'as asked'"),
        (lambda t: t.assign(truth="pancreas"), "truth of q0 is 'pancreas', which is none of liver, spleen"),
        (lambda t: t[3:].assign(truth="maybe"), "truth of q3 is 'maybe', which is none of Yes, No"),
        (lambda t: t.assign(answer=None), "answer to q0 is"),
        (
            lambda t: t.assign(answer="the third one"),
            "none of 5 answers can be read; the first, to q0, is 'the third one'",
        ),
    ],
)
def test_tables_that_cannot_be_scored_are_refused_in_a_sentence(five, change, words):
    with pytest.raises(BadInput, match=words):
        score_closed(change(five))


def test_the_message_on_unread_answers_says_what_was_expected(five):
    with pytest.raises(BadInput, match="'B. spleen', its letter or its words"):
        score_closed(five.assign(answer="?!"))


def test_the_same_question_under_another_condition_is_no_repeat(five):
    both = score_closed(pd.concat([five, five.assign(condition="box")]))
    assert accuracy_table(both, by=("condition",))["n"].tolist() == [5, 5]


@pytest.mark.parametrize("column", ["stratum", "condition", "control", "seed"])
def test_what_asks_different_things_is_never_pooled(five, column):
    other = 1 if column == "seed" else "named"
    both = score_closed(pd.concat([five, five.assign(**{column: other, "id": five["id"] + "b"})]))
    with pytest.raises(BadInput, match=f"{column} .* would be pooled"):
        accuracy_table(both)
    assert len(accuracy_table(both, by=("kind", column))) == 2


def test_groups_that_cannot_be_made_are_refused(five):
    scored = score_closed(five)
    for table, by, words in ((five, ("kind",), "aren't scored"), (scored, ("organ",), "no column organ"),
                             (scored, "kind", "give a list"), (scored, (), "give a list")):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            accuracy_table(table, by)
