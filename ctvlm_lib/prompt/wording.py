"""How a question says that the image carries a prompt: every rewriting that the two papers state, word for word.

The contour paper states three that can't all have been used (a blue suffix, a blue prefix, red prefixes with a system
prompt), the dual-box paper one; each is a style of its own here, with its quotation, so that none is chosen silently.
What the papers leave open is decided as follows:

* *The case of the question.* After a prefix that ends with a comma the sentence goes on, so "Is there …" becomes
  "is there …". Only a common opening word is lowered, never "CT" or a name; ``keep_case=True`` leaves every letter.
* *The suffix* stands before the closing question mark or full stop. Choices are added to a question after rewriting.
* *The wh-rule.* "Either … or …, depending on whether it begins with a wh-word" is read in that order: wh-questions get
  the first prefix. ``wh_prefix="second"`` reads it the other way round. "How" counts as a wh-word, "in which" doesn't.
* *Answers* are never changed but for the red style's prefix, and that can be left out: it hands each open answer four
  words that are always right, which lifts BLEU.
* *The green box alone* is one of the dual-box paper's conditions, but its sentence isn't given: it is the dual one
  without the clause about red.
* *Red* asks for attention in one paper and forbids it in the other, so a text that carries one style is not given
  another on top.

Sources: contour.txt §1, §3.1, §3.3, §4; dualbox.txt §3.2, §4.3.
"""

import re
from dataclasses import dataclass

from ctvlm_lib.anatomy import normalise
from ctvlm_lib.errors import BadInput

SYS_PROMPT = (
    "You are a vision–language model that receives (1) a 3-D CT volume in NIfTI format and (2) a red, one-pixel-wide"
    " boundary that tightly encloses the ROI. Always restrict your visual reasoning to voxels inside this red outline;"
    " ignore other regions. When multiple structures appear inside the outline, describe only those explicitly"
    " requested. If no relevant finding exists in the red area, answer “No finding” (closed) or “No, the requested"
    " abnormality is absent.” (open). Provide concise, radiologically precise answers."
)
FALLBACK = {"closed": "No finding", "open": "No, the requested abnormality is absent."}  # what SYS_PROMPT asks for
WH_WORDS = frozenset("what which who whom whose when where why how".split())

_OPENERS = WH_WORDS | frozenset(
    "is are was were does do did has have had can could may might must should would will a an the this these there"
    " any in on at of for from to by with if please describe name list identify select choose give state determine"
    " indicate locate explain compare estimate summarise summarize".split()
)
_CLOSING = re.compile(r"[\s?.!]*\Z")
_YES_NO_OR_LETTER = re.compile(r"(yes|no)\.?|[A-H]|\(?[A-H][).:](\s.*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Wording:
    """One style of rewriting.

    Attributes:
        name: key in ``STYLES``.
        prefixes: stands before the question; of two, the wh-rule chooses. () where nothing does.
        suffix: stands behind the question, before its closing mark.
        answer_prefix: stands before an open answer.
        system: system prompt of the conversation; "" where the paper states none.
        radlex: whether the paper normalises the question's anatomy terms.
        drawing: the picture that goes with the words, a style of :mod:`ctvlm_lib.prompt.render`; "" for none.
        colours: of its lines, the region's first.
        thickness: of its lines, pixels.
        source: section of the paper, and its words.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    suffix: str = ""
    answer_prefix: str = ""
    system: str = ""
    radlex: bool = False
    drawing: str = ""
    colours: tuple[str, ...] = ()
    thickness: int = 3
    source: str = ""


@dataclass(frozen=True)
class Rewritten:
    """A question and its answer in a style, and the system prompt that belongs to them ("" for none)."""

    question: str
    answer: str
    system: str = ""


STYLES: dict[str, Wording] = {
    style.name: style
    for style in (
        Wording("plain", source="the data set's own words"),
        Wording(
            "blue-suffix",
            suffix="within the blue-outlined area",
            drawing="contour",
            colours=("blue",),
            source="contour.txt §4: the query is suffixed with “within the blue-outlined area.” (also §1, §2, §3.1)",
        ),
        Wording(
            "blue-prefix",
            prefixes=("Within the blue-outlined area of the CT volume,",),
            drawing="contour",
            colours=("blue",),
            source="contour.txt §4, Baselines: prepend the question with the phrase"
            " “Within the blue-outlined area of the CT volume,”",
        ),
        Wording(
            "red",
            prefixes=("Within the red-outlined area of the CT volume,", "Inside the red boundary,"),
            answer_prefix="Within the red boundary,",
            system=SYS_PROMPT,
            radlex=True,
            drawing="contour",
            colours=("red",),
            thickness=1,
            source="contour.txt §3.3: prefixed with either “Within the red-outlined area of the CT volume,” or “Inside"
            " the red boundary,” depending on whether it begins with a wh-word",
        ),
        Wording(
            "box",
            prefixes=(
                "Referring to the CT images, answer the following question based on the anatomy inside the"
                " green-outlined area. Question:",
            ),
            drawing="box",
            colours=("green",),
            source="derived from dualbox.txt §3.2 by leaving the red clause out; §4.3 names the condition “Positive"
            " Prompt Only” without its words",
        ),
        Wording(
            "dual",
            prefixes=(
                "Referring to the CT images, answer the following question based on the anatomy inside the"
                " green-outlined area, while ignoring anything inside the red-outlined area. Question:",
            ),
            drawing="dual",
            colours=("green", "red"),
            source="dualbox.txt §3.2: “Referring to the CT images, answer the following question based on the anatomy"
            " inside the green-outlined area, while ignoring anything inside the red-outlined area. Question:"
            " [original question q]”",
        ),
    )
}


def rewrite(
    question: str, answer: str, style: str, *, form: str | None = None, wh_prefix: str = "first",
    answer_prefix: bool = True, radlex: bool | None = None, keep_case: bool = False,
) -> Rewritten:  # fmt: skip
    """Word a question and its answer for a prompted image.

    A text that is worded in this style already is not worded twice.

    Args:
        question: without choices; they are added later.
        answer: may be "" where only the question is needed.
        style: key of ``STYLES``.
        form: "closed" (the answer stays as it is) or "open"; None takes yes, no and option letters for closed. An
            answer such as "mild" that is one of several choices needs it said.
        wh_prefix: which of two prefixes a question that begins with a wh-word gets: "first" or "second".
        answer_prefix: whether open answers get the style's prefix, if it has one.
        radlex: normalise the question's anatomy terms; None does so where the paper does.
        keep_case: leave the question's first letter as it is.

    Raises:
        BadInput: an unknown style or option, an empty question, or one that is worded in another style.
    """
    wording = _wording(style)
    _check_options(question, form, wh_prefix)
    found = style_of(question)
    if found not in ("plain", style):
        raise BadInput(f"the question is worded as {found!r} already; restore it before wording it as {style!r}")
    radlex = wording.radlex if radlex is None else radlex
    if found == "plain":
        question = normalise(question) if radlex else question
        question = _put_together(question, wording, _prefix(question, wording, wh_prefix), keep_case)
    elif radlex:
        prefix, rest = _taken_apart(question, wording)
        question = _put_together(normalise(rest), wording, prefix, keep_case=True)
    if wording.answer_prefix and answer_prefix and answer and (form or form_of(answer)) == "open":
        begun = answer.startswith(wording.answer_prefix + " ")
        answer = answer if begun else f"{wording.answer_prefix} {answer}"
    return Rewritten(question, answer, wording.system)


def restore(question: str, answer: str, style: str, *, keep_case: bool = False) -> tuple[str, str]:
    """Undo :func:`rewrite`: give the question and the answer without the style's words.

    Exact where the terms weren't normalised, for every question that was not itself worded in the style. One
    that began with a small opening word ("is there …") comes back with a capital, unless ``keep_case`` was used.

    Args:
        question: worded in ``style``.
        answer: with the style's prefix, or without.
        style: key of ``STYLES``.
        keep_case: as it was rewritten with.

    Raises:
        BadInput: an unknown style, or the question isn't worded in it.
    """
    wording = _wording(style)
    found = style_of(question)
    if found != style:
        raise BadInput(f"the question is worded as {found!r}, not as {style!r}; name its own style")
    prefix, rest = _taken_apart(question, wording)
    if prefix.endswith(",") and not keep_case and _first_word(rest) in _OPENERS:
        rest = rest[0].upper() + rest[1:]
    start = wording.answer_prefix + " "
    if wording.answer_prefix and answer.startswith(start) and answer != start:
        answer = answer[len(start) :]
    return rest, answer


def style_of(question: str) -> str:
    """Name the style that a question is worded in; "plain" if none. What stands in front decides before the suffix."""
    in_order = sorted(STYLES.values(), key=lambda wording: not wording.prefixes)
    return next((w.name for w in in_order if (w.prefixes or w.suffix) and _taken_apart(question, w)), "plain")


def form_of(answer: str) -> str:
    """Guess "closed" (yes, no, an option's letter such as "B" or "B. liver") or "open" from an answer alone."""
    return "closed" if _YES_NO_OR_LETTER.fullmatch(answer.strip()) else "open"


def begins_with_wh_word(question: str) -> bool:
    """Whether the first word is one of ``WH_WORDS`` ("What's" counts, "In which" doesn't)."""
    first = re.match(r"\s*([^\W\d_]+)", question)
    return bool(first) and first[1].lower() in WH_WORDS


def _wording(style: str) -> Wording:
    if style not in STYLES:
        raise BadInput(f"no wording style is called {style!r}; choose one of {', '.join(STYLES)}")
    return STYLES[style]


def _check_options(question: str, form: str | None, wh_prefix: str) -> None:
    words = question
    for phrase in (p for wording in STYLES.values() for p in (*wording.prefixes, wording.suffix)):
        words = words.replace(phrase, "") if phrase else words
    if not _CLOSING.sub("", words):
        raise BadInput(f"the question {question!r} has no words of its own; give the text of a question")
    if form not in (None, "closed", "open"):
        raise BadInput(f"form is {form!r}; expected closed or open")
    if wh_prefix not in ("first", "second"):
        raise BadInput(f"wh_prefix is {wh_prefix!r}; expected first or second")


def _prefix(question: str, wording: Wording, wh_prefix: str) -> str:
    if len(wording.prefixes) < 2:
        return "".join(wording.prefixes)
    return wording.prefixes[0 if begins_with_wh_word(question) == (wh_prefix == "first") else 1]


def _put_together(question: str, wording: Wording, prefix: str, keep_case: bool) -> str:
    if prefix.endswith(",") and not keep_case and _opens_with_capital(question):
        question = question[0].lower() + question[1:]
    if wording.suffix:
        closing = _CLOSING.search(question).start()
        question = f"{question[:closing]} {wording.suffix}{question[closing:]}"
    return f"{prefix} {question}" if prefix else question


def _taken_apart(question: str, wording: Wording) -> tuple[str, str] | None:
    """(prefix, question without the style's words), or None if it isn't worded in this style."""
    if not wording.prefixes and not wording.suffix:
        return "", question
    if wording.suffix:
        closing = _CLOSING.search(question).start()
        body = question[:closing].removesuffix(f" {wording.suffix}")
        worded = len(body) < closing and _CLOSING.sub("", body)
        return ("", body + question[closing:]) if worded else None
    for prefix in wording.prefixes:
        rest = question.removeprefix(f"{prefix} ")
        if len(rest) < len(question) and _CLOSING.sub("", rest):
            return prefix, rest
    return None


def _first_word(text: str) -> str:
    found = re.match(r"[A-Za-z]+(?=[\s,'’]|\Z)", text)
    return found[0] if found else ""


def _opens_with_capital(question: str) -> bool:
    """Whether the question begins with a common word that has a capital only because it begins the sentence."""
    word = _first_word(question)
    return word == word.capitalize() and word.lower() in _OPENERS
