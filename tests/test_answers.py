"""Closed answers: what is read as which choice, what is left unread and why, and the released rule."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate import answers
from ctvlm_lib.evaluate.answers import Parsed, parse, released_rule
from ctvlm_lib.prompt.wording import STYLES
from ctvlm_lib.records import questions
from ctvlm_lib.records.package import LETTERS, target_text
from ctvlm_lib.records.phantom import cohort

ORGANS = ("liver", "spleen", "left kidney", "right kidney")
SIZES = tuple(questions.size_class(0, limits)[1] for limits in (questions.LUNG_SIZES_MM, questions.ORGAN_SIZES_MM))
COHORT_SETS = (
    *questions.LUNG_CHOICES,
    *questions.ORGAN_CHOICES,
    *questions.ORGAN_SETS,
    questions.PARTS,
    questions.PHASES,
    *SIZES,
)
FORMS = ("{l}. {w}", "({l}) {w}", "{l}) {w}", "{l}: {w}", "{l}", "{l}.", "({l})", "{w}", "the {w}", "Answer: {l}. {w}",
         "The correct answer is {l}.", "Option {l}", "It is the {w}", "{l}. {w}. The finding lies there.")  # fmt: skip
# words as they stand in sets of choices, and everything that the grammar itself knows
WORDS = st.sampled_from(
    "a an the b c yes no not or spleen liver mass cyst left right kidney answer: option is it there are A. (B) D) 5 cm"
    " B.C 1.5 . , ; no. other possibly".split()
)
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize("form", FORMS)
def test_every_choice_of_the_cohort_in_every_form_is_read_as_itself(form):
    for choices in COHORT_SETS:
        for letter, words in zip(LETTERS, choices, strict=False):
            text = form.format(l=letter, w=words)
            assert parse(text, choices).choice == words, (text, choices)


def test_the_records_own_answers_are_read_as_themselves():
    asked = [record for one in cohort(4, seed=13) for record in questions.candidates(one)]
    closed = [record for record in asked if record.form == "closed"]
    assert len({record.choices for record in closed}) > 10 and {"Yes", "No"} <= {record.answer for record in closed}
    for record in closed:
        for style in ("plain", "red", "dual"):
            assert parse(target_text(record.worded(style)), record.choices).choice == record.answer


@pytest.mark.parametrize("prefix", [style.answer_prefix for style in STYLES.values() if style.answer_prefix])
def test_a_style_s_prefix_may_stand_before_the_answer(prefix):
    assert parse(f"{prefix} B. spleen", ORGANS).choice == "spleen"
    assert parse(f"{prefix} no", ()).choice == "No"


@given(st.lists(PHRASES, min_size=2, max_size=5, unique_by=answers._words), st.data())
def test_letter_and_words_of_any_set_of_choices_are_read_as_the_choice(choices, data):
    place = data.draw(st.integers(0, len(choices) - 1))
    text = f"{LETTERS[place]}. {choices[place]}"
    assume(not any(answers.same_words(text, choice) for choice in choices))  # a choice that is "A. liver" itself
    assert parse(text, choices).choice == choices[place]


@given(
    st.lists(PHRASES, max_size=4).map(". ".join) | st.text(max_size=30),
    st.sampled_from([(), ORGANS, ("mass", "a mass")]),
)
@example("A spleen", ORGANS)
@settings(max_examples=200)
def test_nothing_is_read_that_is_not_offered_and_a_reason_is_always_given(text, choices):
    found = parse(text, choices)
    assert found.choice is None or found.choice in (choices or ("Yes", "No"))
    assert found.how


@given(
    st.lists(PHRASES, min_size=1, max_size=3).map(". ".join), st.sampled_from([(), ORGANS]), st.sampled_from(" \t\n")
)
@settings(max_examples=200)
def test_case_white_space_and_final_punctuation_do_not_matter(text, choices, space):
    found = parse(text, choices)
    for same in (
        text.upper(),
        text.title(),
        f"{space}{text}{space}",
        text.replace(" ", "  "),
        f"**{text}**",
        f"“{text}”",
    ):
        assert parse(same, choices) == found, same
    if not text.rstrip().endswith((".", ",", ";", ":")):
        assert parse(f"{text}.", choices).choice == parse(f"{text}!", choices).choice == found.choice


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", answers.EMPTY),
        ("  .\n", answers.EMPTY),
        ("A or B", answers.SEVERAL),
        ("both A and B", answers.SEVERAL),
        ("A, B", answers.SEVERAL),
        ("A. liver B. spleen", answers.SEVERAL),
        ("liver or spleen", answers.SEVERAL),
        ("A. liver. B. spleen.", answers.SEVERAL),
        ("B. spleen. It isn't the liver.", answers.SEVERAL),
        ("B. spleen. Or (A).", answers.SEVERAL),
        ("B. spleen. Option A!", answers.SEVERAL),
        ("B. liver", answers.DISAGREE),
        ("A spleen", answers.DISAGREE),
        ("B. gallbladder", answers.DISAGREE),
        ("(B) because it is dark", answers.DISAGREE),
        ("E", answers.NOT_OFFERED),
        ("E. spleen", answers.NOT_OFFERED),
        ("not A", answers.DENIED),
        ("It is not the liver", answers.DENIED),
        ("B. spleen. No, wait.", answers.DENIED),
        ("Possibly B", answers.DOUBT),
        ("kidney", answers.NO_FORM),
        ("The spleen lies in the upper abdomen", answers.NO_FORM),
    ],
)
def test_what_commits_itself_to_no_choice_is_left_unread_and_says_why(text, why):
    assert parse(text, ORGANS) == Parsed(None, why)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B\nBecause it lies there.", "spleen"),
        ("B. spleen. The marked region is the spleen.", "spleen"),
        ("B. Spleen\nB. Spleen\nB. Spleen", "spleen"),
        ("b spleen", "spleen"),
        ("B.spleen", "spleen"),
        ("**B.** spleen", "spleen"),
        ("a", "liver"),
        ("A: the liver", "liver"),
        ("“Left  Kidney”", "left kidney"),
    ],
)
def test_unusual_but_plain_answers_are_read(text, choice):
    assert parse(text, ORGANS).choice == choice


def test_a_choice_that_is_a_denial_is_not_taken_for_one():
    choices = ("nodule", "no focal finding")
    for text in ("no focal finding", "B. No focal finding.", "B. no focal finding. There is no focal finding."):
        assert parse(text, choices).choice == "no focal finding"
    assert parse("A. nodule. No focal finding.", choices).choice is None


def test_one_choice_within_another_is_not_mistaken():
    choices = ("kidney", "left kidney", "15 mm", "up to 15 mm")
    for words in choices:
        assert parse(words, choices).choice == words


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Yes", "Yes"), ("yes.", "Yes"), ("YES!", "Yes"), ("Yes, there is.", "Yes"), ("Yes there is", "Yes"),
        ("Yes. A cyst is seen.", "Yes"), ("Answer: yes", "Yes"), ("There is a nodule.", "Yes"), ("It does.", "Yes"),
        ("No", "No"), ("no.", "No"), ("No, there is no nodule.", "No"), ("There is no nodule", "No"),
        ("No finding", "No"), ("No focal finding is seen.", "No"), ("No there isn't", "No"), ("It doesn't.", "No"),
        ("No, the requested abnormality is absent.", "No"), ("The answer is no.", "No"), ("no. no. no.", "No"),
    ],
)  # fmt: skip
def test_yes_and_no_are_read(text, choice):
    assert parse(text).choice == choice


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", answers.EMPTY), ("Yes and no", answers.SEVERAL), ("Yes or no", answers.SEVERAL),
        ("Yes, there is no nodule", answers.CONTRADICTION), ("No, there is a nodule", answers.CONTRADICTION),
        ("No nodule. There is a cyst.", answers.CONTRADICTION), ("not yes", answers.DENIED),
        ("There may be a nodule", answers.DOUBT), ("No other lesion", answers.DOUBT), ("Yes, but small", answers.DOUBT),
        ("No doubt there is a nodule", answers.DOUBT), ("Maybe", answers.DOUBT),
        ("There is insufficient information", answers.DOUBT), ("There is a lack of findings", answers.DENIED),
        ("No idea.", answers.DENIED), ("No, I cannot tell", answers.DOUBT), ("Nodule", answers.NO_FORM),
        ("A. Yes", answers.NO_FORM), ("The nose is normal", answers.NO_FORM), ("yesterday", answers.NO_FORM),
    ],
)  # fmt: skip
def test_what_is_neither_yes_nor_no_is_left_unread(text, why):
    assert parse(text) == Parsed(None, why)


def test_yes_and_no_as_lettered_choices_are_read_both_ways():
    assert parse("Yes, there is", ("Yes", "No")).choice == "Yes"
    assert parse("B", ("yes", "no")).choice == "no"
    assert parse("A. No", ("Yes", "No")).choice is None


def test_the_released_rule_counts_one_text_for_two_letters_and_the_parser_for_none():
    text = "B. spleen. On reflection, A. liver."
    assert released_rule(text, "A") and released_rule(text, "B")
    assert parse(text, ORGANS) == Parsed(None, answers.SEVERAL)
    assert released_rule("An aneurysm of type B.", "B") and parse("An aneurysm of type B.", ORGANS).choice is None
    assert not released_rule("B", "B") and parse("B", ORGANS).choice == "spleen"


@pytest.mark.parametrize(("text", "choices"), [(None, ()), (float("nan"), ORGANS), ("A", ("liver",)), ("A", "liver"),
                                               ("A", tuple(map(str, range(27))))])  # fmt: skip
def test_impossible_questions_are_refused(text, choices):
    with pytest.raises(BadInput, match="expected|give two to 26"):
        parse(text, choices)
