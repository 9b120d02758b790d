"""Wording: the papers' words, verbatim; grammar; rewriting twice changes nothing; restoring gives the original."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import wording
from ctvlm_lib.prompt.render import STYLES as DRAWINGS
from ctvlm_lib.prompt.wording import STYLES, restore, rewrite

PROMPTED = [name for name in STYLES if name != "plain"]

# contour.txt §3.3, the paragraph after "System-level instruction"
SYS_PROMPT = """You are a vision–language model that receives (1) a 3-D CT volume in NIfTI format and (2) a red, \
one-pixel-wide boundary that tightly encloses the ROI. Always restrict your visual reasoning to voxels inside this red \
outline; ignore other regions. When multiple structures appear inside the outline, describe only those explicitly \
requested. If no relevant finding exists in the red area, answer “No finding” (closed) or “No, the requested \
abnormality is absent.” (open). Provide concise, radiologically precise answers."""

# (question, style, section of the paper, rewritten question)
VERBATIM = [
    ("Is there a nodule?", "blue-suffix", "contour §3.1, §4", "Is there a nodule within the blue-outlined area?"),
    (
        "Is there a nodule?", "blue-prefix", "contour §4 Baselines",
        "Within the blue-outlined area of the CT volume, is there a nodule?",
    ),
    (
        "What is seen?", "red", "contour §3.3, wh-word",
        "Within the red-outlined area of the CT volume, what is seen?",
    ),
    ("Is there a nodule?", "red", "contour §3.3, no wh-word", "Inside the red boundary, is there a nodule?"),
    (
        "Is there a nodule?", "dual", "dualbox §3.2",
        "Referring to the CT images, answer the following question based on the anatomy inside the green-outlined area,"
        " while ignoring anything inside the red-outlined area. Question: Is there a nodule?",
    ),
    (
        "Is there a nodule?", "box", "dualbox §3.2 without its red clause",
        "Referring to the CT images, answer the following question based on the anatomy inside the green-outlined area."
        " Question: Is there a nodule?",
    ),
]  # fmt: skip

# Strings that look like questions, besides any others: rich in what the styles add, take away or look at.
pieces = st.sampled_from(
    ["Is", "is there", "What", "what's", "A mass", "CT", "T2", "?", " ?", ".", "…", " ", "\n", "windpipe", "", "É", "Ⅳ",
     "within the blue-outlined area", "Within the red boundary,", "Inside the red boundary,", "Question:", "x"]
)  # fmt: skip
texts = st.one_of(st.lists(pieces, max_size=6).map(" ".join), st.text(max_size=30))


@pytest.mark.parametrize(("question", "style", "section", "expected"), VERBATIM)
def test_each_style_has_the_papers_words(question, style, section, expected):
    assert rewrite(question, "no", style).question == expected, section


def test_the_verbatim_list_covers_every_style():
    assert {style for _, style, _, _ in VERBATIM} == set(PROMPTED)


def test_the_system_prompt_is_the_papers_and_only_red_has_one():
    assert wording.SYS_PROMPT == SYS_PROMPT
    assert {name for name in STYLES if rewrite("Is it?", "no", name).system} == {"red"}
    assert rewrite("Is it?", "no", style="red").system == SYS_PROMPT
    assert all(f"“{phrase}”" in SYS_PROMPT for phrase in wording.FALLBACK.values())


def test_red_gives_open_answers_the_prefix_and_leaves_closed_ones():
    """contour.txt §3.3: "open-ended strings receive the additional prefix"; Yes/No, ordinal, multi-choice don't."""
    assert rewrite("What is seen?", "A large mass.", "red").answer == "Within the red boundary, A large mass."
    assert rewrite("What is seen?", "A large mass.", "red", answer_prefix=False).answer == "A large mass."
    for answer in ("Yes", "no.", "B", "C. spleen", "(d) liver"):
        assert rewrite("What is seen?", answer, "red").answer == answer
    assert rewrite("How severe is it?", "mild", "red", form="closed").answer == "mild"
    assert rewrite("Is it large?", "No", "red", form="open").answer == "Within the red boundary, No"
    assert rewrite("What is seen?", "", "red").answer == ""


@pytest.mark.parametrize("style", [name for name in PROMPTED if name != "red"])
def test_no_other_style_touches_an_answer(style):
    assert rewrite("What is seen?", "a large mass", style, form="open").answer == "a large mass"


def test_an_answer_that_only_begins_with_a_letter_is_open():
    assert wording.form_of("A mass") == wording.form_of("no mass") == wording.form_of("B12") == "open"


def test_the_wh_rule_can_be_read_the_other_way_round():
    assert rewrite("What is it?", "", "red", wh_prefix="second").question == "Inside the red boundary, what is it?"
    long = "Within the red-outlined area of the CT volume, is it?"
    assert rewrite("Is it?", "", "red", wh_prefix="second").question == long


@pytest.mark.parametrize(
    ("question", "is_wh"),
    [("What's seen?", True), ("How large is it?", True), ("WHERE is it?", True), (" Which lobe?", True),
     ("In which lobe?", False), ("However small?", False), ("Whatever?", False), ("Is it?", False), ("?", False)],
)  # fmt: skip
def test_wh_words(question, is_wh):
    assert wording.begins_with_wh_word(question) is is_wh


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is it large?", "is it large?"),
        ("A mass is where?", "a mass is where?"),
        ("What's this?", "what's this?"),
        ("CT of what?", "CT of what?"),
        ("IVC filter?", "IVC filter?"),
        ("IS IT LARGE?", "IS IT LARGE?"),
        ("Hodgkin lymphoma?", "Hodgkin lymphoma?"),
        ("A-lines?", "A-lines?"),
        ("T2 or T1?", "T2 or T1?"),
    ],
)
def test_after_a_comma_only_a_common_word_loses_its_capital(question, expected):
    made = rewrite(question, "", "blue-prefix").question
    assert made == f"Within the blue-outlined area of the CT volume, {expected}"
    assert restore(made, "", "blue-prefix") == (question, "")
    kept = rewrite(question, "", "blue-prefix", keep_case=True).question
    assert kept == f"Within the blue-outlined area of the CT volume, {question}"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is it large?", "Is it large within the blue-outlined area?"),
        ("Is it large ?", "Is it large within the blue-outlined area ?"),
        ("Describe it.", "Describe it within the blue-outlined area."),
        ("Is it large", "Is it large within the blue-outlined area"),
        ("Really?! \n", "Really within the blue-outlined area?! \n"),
    ],
)
def test_the_suffix_stands_before_the_closing_mark(question, expected):
    assert rewrite(question, "", "blue-suffix").question == expected


def test_red_normalises_anatomy_in_the_question_and_not_in_the_answer():
    question, answer = "Is the gall bladder or the windpipe enlarged?", "the gall bladder"
    made = rewrite(question, answer, "red")
    assert made.question == "Inside the red boundary, is the gallbladder or the trachea enlarged?"
    assert made.answer == "Within the red boundary, the gall bladder"
    assert "gall bladder" in rewrite(question, answer, "red", radlex=False).question
    assert "gall bladder" in rewrite(question, answer, "blue-suffix").question
    assert "gallbladder" in rewrite(question, answer, "blue-suffix", radlex=True).question
    worded = rewrite(question, answer, "red", radlex=False)
    assert rewrite(worded.question, worded.answer, "red").question == made.question  # normalised later


@given(texts, texts, st.sampled_from(list(STYLES)), st.booleans(), st.booleans(), st.sampled_from(["first", "second"]))
@example("Is the windpipe narrow?", "the windpipe", "red", True, False, "first")
@example("Is the windpipe narrow?", "", "red", True, True, "first")
def test_rewriting_twice_changes_nothing(question, answer, style, radlex, keep_case, wh_prefix):
    options = {"radlex": radlex, "keep_case": keep_case, "wh_prefix": wh_prefix}
    once = _rewritten(question, answer, style, **options)
    assert rewrite(once.question, once.answer, style, **options) == once
    assert wording.style_of(once.question) == style


@given(texts, texts, st.sampled_from(list(STYLES)), st.booleans(), st.booleans())
@example("Is it?  ", "Within the blue-outlined area", "red", False, True)
def test_restoring_gives_the_original_exactly(question, answer, style, keep_case, answer_prefix):
    assume(wording.style_of(question) == "plain" and not answer.startswith("Within the red boundary, "))
    small = wording._first_word(question) in wording._OPENERS
    assume(keep_case or not small)
    options = {"radlex": False, "keep_case": keep_case, "answer_prefix": answer_prefix}
    made = _rewritten(question, answer, style, **options)
    assert restore(made.question, made.answer, style, keep_case=keep_case) == (question, answer)


def test_a_question_that_began_small_comes_back_with_a_capital_unless_case_is_kept():
    made = rewrite("is it large?", "", "red").question
    assert restore(made, "", "red") == ("Is it large?", "")
    assert restore(made, "", "red", keep_case=True) == ("is it large?", "")


@pytest.mark.parametrize("style", list(STYLES))
def test_one_style_is_not_put_upon_another(style):
    for other in set(PROMPTED) - {style}:
        worded = rewrite("Is it large?", "no", other)
        with pytest.raises(BadInput, match=f"worded as '{other}'"):
            rewrite(worded.question, worded.answer, style)
        with pytest.raises(BadInput, match=f"worded as '{other}'"):
            restore(worded.question, worded.answer, style)


def test_what_stands_in_front_decides_where_two_styles_meet():
    both = "Inside the red boundary, is it large within the blue-outlined area?"
    assert wording.style_of(both) == "red"
    assert restore(both, "", "red") == ("Is it large within the blue-outlined area?", "")
    with pytest.raises(BadInput, match="worded as 'red'"):
        rewrite(both, "", "blue-suffix")


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("Is it?", {"style": "purple"}, "no wording style is called 'purple'"),
        (" ?", {"style": "red"}, "has no words"),
        ("within the blue-outlined area?", {"style": "blue-prefix"}, "has no words of its own"),
        ("Inside the red boundary, ", {"style": "blue-suffix"}, "has no words of its own"),
        ("Is it?", {"style": "red", "form": "ordinal"}, "form is 'ordinal'"),
        ("Is it?", {"style": "red", "wh_prefix": "long"}, "wh_prefix is 'long'"),
    ],
)
def test_what_cannot_be_worded_is_said(question, options, message):
    with pytest.raises(BadInput, match=message):
        rewrite(question, "no", **options)


def test_each_prompted_style_names_a_picture_with_as_many_colours_as_lines():
    for style in (STYLES[name] for name in PROMPTED):
        assert style.drawing in DRAWINGS
        assert len(style.colours) == (2 if style.drawing == "dual" else 1)
        words = style.suffix + " ".join(style.prefixes)
        assert all(colour in words for colour in style.colours), "the words name the colours that are drawn"
        assert style.source.split(" ")[0] in ("contour.txt", "dualbox.txt", "derived")
    assert STYLES["red"].thickness == 1, "its system prompt says one-pixel-wide"


def _rewritten(question, answer, style, **options):
    """Rewrite, unless the text is one that is refused by design."""
    try:
        return rewrite(question, answer, style, **options)
    except BadInput:
        assume(False)
