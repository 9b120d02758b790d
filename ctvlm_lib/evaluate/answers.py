"""Reading a closed answer: which of the offered choices, or of yes and no, a text commits itself to, if to any.

A text is read by a fixed grammar, whatever its case, white space and final punctuation. A letter that merely occurs in
it counts for nothing. With choices, a text is, in this order:

1. a lead-in, if any: "Answer:", "The correct answer is", "Option", "It is", "This is";
2. the choice: its letter ("B", "b.", "(b)", "B:"), its own words ("the spleen"), or both ("B. spleen");
3. an explanation, if any: further sentences after the words, or a further line after the letter, that name no other
   choice and take nothing back ("not", "but", "or" …).

Without choices the question is one for yes or no, and a text is, after a lead-in if any:

* "Yes" or "No" alone, or followed by a text that doesn't say the opposite ("Yes, there is." "No, it is normal.");
* a statement of presence or absence: "There is …", "There is no …", "No … (is seen)", "It does (not)". What is said to
  be there isn't compared with what was asked for.

All else is left unread, with a reason: the empty text, two choices named, a letter beside another choice's words, a
letter that isn't offered, a denial ("not A"), a doubt ("possibly"), a contradiction ("Yes, there is no mass"), and
sentences of any other form. "A mass" is left unread unless A is the mass: letter or article? And so is "No other
lesion", as it may stand beside a lesion.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt.wording import STYLES
from ctvlm_lib.records.package import LETTERS

YES_NO = ("Yes", "No")
BY_LETTER, BY_WORDS, BY_BOTH, BY_STATEMENT = "letter", "words", "letter and words", "statement"
EMPTY, SEVERAL, DISAGREE = "empty", "several choices", "letter and words disagree"
NOT_OFFERED, DENIED, DOUBT = "letter not offered", "denied", "doubt"
CONTRADICTION, NO_FORM = "contradiction", "no known form"

_PLAIN = dict.fromkeys(map(ord, "‐‑‒–—−"), "-") | dict.fromkeys(map(ord, "‘’"), "'") | dict.fromkeys(map(ord, "*`"))
_MARKS = " \t\n.,;:!?\"'“”"
_PREFIXES = tuple(style.answer_prefix.casefold() for style in STYLES.values() if style.answer_prefix)
_LEAD = re.compile(
    r"(?:(?:the |my )?(?:(?:correct|final|best|right) )?(?:answer|option|choice)(?: is|:|\b)[\s:]*"
    r"|(?:it|this|that) is |it's )(?:(?:option|choice) )?"
)
_LETTER = re.compile(r"(?:\((?P<inside>[a-z])\)|(?P<plain>[a-z])(?P<mark>[.):]|(?=\s|$)))\s*(?P<rest>.*)", re.DOTALL)
_POINTED = re.compile(r"(?<![\w'])(?!a (?!or\b|and\b)\w{2})([a-z])(?![\w'])")  # "a" before a word is an article
_MARKED = re.compile(r"(?<![\w'])(?:\(([a-z])\)|([a-z])(?:[.):!?,;]+(?=\s|$)|$))|\b(?:option|choice|answer) ([a-z])\b")
_SENTENCE_END = re.compile(r"[.!?;](?=\s)|\n")
_DENIES = re.compile(r"\b(?:no|not|cannot|none|neither|nor|never|without|nothing|absent|absence|lack|hardly)\b|n't\b")
_TAKES_BACK = re.compile(_DENIES.pattern + r"|\b(?:but|however|or|instead|rather|wait|although|otherwise)\b")
_DOUBTS = re.compile(
    r"\b(?:or|but|however|maybe|perhaps|possibly|possible|probably|might|may|could|unclear|uncertain|unsure|whether|if"
    r"|cannot|doubt|question|other|further|additional|more|new|longer|change|except|besides|apart"
    r"|insufficient|inconclusive|information)\b|can't\b"
)
_OPENING = re.compile(
    r"(?P<word>yes|no)(?:$|\s*[,.;:!-]+\s*(?P<rest>.*)|\s+(?P<more>(?:there|it|this|the)\b.*))", re.DOTALL
)
_PRESENT = re.compile(r"there (?:is|are)\b(?! normal)|it (?:is|does)$")
_ABSENT = re.compile(
    r"there (?:(?:is|are) (?:no|not)|(?:is|are)n't)\b|it (?:is not|isn't)$|it (?:does not|doesn't)(?: show\b|$)"
    r"|no (?!idea\b|answer\b|comment\b|way\b|images?\b)\w"
)


@dataclass(frozen=True)
class Parsed:
    """What a text was read as.

    Attributes:
        choice: one of the choices, or "Yes" or "No"; None if the text commits itself to none.
        how: by "letter", "words", "letter and words" or "statement"; of an unread text, why.
    """

    choice: str | None
    how: str


def parse(text: str, choices: Sequence[str] = ()) -> Parsed:
    """Read an answer to a closed question.

    Args:
        text: the answer as it was given.
        choices: those offered, without letters, in the order of A, B, C …; () for yes or no.

    Returns:
        the choice or the reason why there is none; never a choice that isn't offered.

    Raises:
        BadInput: the answer isn't a text, or there is one choice only, or more than letters.
    """
    if not isinstance(text, str):
        raise BadInput(f"the answer is {text!r}, and a text is expected; give '' where there is none")
    if isinstance(choices, str) or len(choices) == 1 or len(choices) > len(LETTERS):
        raise BadInput(f"choices are {choices!r}; give two to {len(LETTERS)} texts, or () for yes or no")
    said = _lowered(text)
    if not said.strip(_MARKS + "()"):
        return Parsed(None, EMPTY)
    starts = list(_without_lead(said))
    if not choices:
        return _first([_yes_or_no(start) for start in starts])
    readings = [one for start in starts for one in _readings(start, choices)]
    if {_words(choice) for choice in choices} == {"yes", "no"} and not readings:
        own = {_words(choice): choice for choice in choices}
        found = _first([_yes_or_no(start) for start in starts])
        return Parsed(own[found.choice.lower()], found.how) if found.choice else found
    named = {choice for choice, _ in readings}
    if len(named) == 1:
        return Parsed(*readings[0])
    return Parsed(None, SEVERAL if named else _why_not(said, choices))


def released_rule(text: str, letter: str) -> bool:
    """Whether Med3DVLM's released evaluation counts an answer as the letter: "B." stands anywhere in it.

    For contrast only. One text can count for two letters ("B. No, A.") and a sentence's end for one ("… of type A.").

    Source: Med3DVLM at cbbd633, ``"{letter}." in output``.
    """
    return f"{letter}." in text


def same_words(a: str, b: str) -> bool:
    """Whether two texts are the same answer but for case, white space, article and outer punctuation."""
    return _words(_lowered(a)) == _words(_lowered(b))


@lru_cache(maxsize=2**13)
def _lowered(text: str) -> str:
    """Small letters, plain dashes, single spaces, no bold, no outer quotes; line breaks stay: they end a sentence."""
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN).casefold()
    lines = (" ".join(line.split()) for line in plain.strip(" \t\n\"'“”").splitlines())
    return "\n".join(line for line in lines if line)


@lru_cache(maxsize=2**13)
def _words(text: str) -> str:
    """A text without outer punctuation and leading article; as it is if nothing else is in it."""
    core = " ".join(_lowered(text).split())
    bare = core.strip(_MARKS)
    return re.sub(r"^(?:the|an|a) (?=.)", "", bare) or core


def _without_lead(said: str) -> Iterator[str]:
    """The text as it stands, and without what may stand before an answer."""
    yield said
    for prefix in _PREFIXES:
        if said.startswith(prefix + " "):
            said = said[len(prefix) :].strip()
            yield said
    lead = _LEAD.match(said)
    if lead and lead.end() < len(said):
        yield said[lead.end() :].lstrip(_MARKS)


def _readings(said: str, choices: Sequence[str]) -> list[tuple[str, str]]:
    """(choice, how) in every way that the text can be read, with as short an explanation as possible."""
    ends = [len(said), *(found.end() for found in reversed(list(_SENTENCE_END.finditer(said))))]
    for end in ends:
        head, rest = said[:end].strip(), said[end:].strip()
        found = list(_heads(head, choices))
        if rest:
            own_line = said[end - 1] == "\n"
            found = [(choice, how) for choice, how in found if how != BY_LETTER or own_line]
            found = [(choice, how) for choice, how in found if not _other_named(rest, choice, choices)]
        if found:
            return found
    return []


def _heads(head: str, choices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a text is without an explanation: letter, words, or both."""
    found = _LETTER.fullmatch(head.rstrip(_MARKS))
    place = LETTERS.lower().find(found["inside"] or found["plain"]) if found else -1
    lettered = choices[place] if 0 <= place < len(choices) else None
    for choice in choices:
        article_or_a = head.startswith("a ") and not _lowered(choice).startswith("a ") and choice != choices[0]
        if _words(choice) == _words(head) and not article_or_a:
            yield choice, BY_WORDS
    if lettered is not None and not found["rest"].strip(_MARKS):
        yield lettered, BY_LETTER
    elif lettered is not None and _words(lettered) == _words(found["rest"]):
        yield lettered, BY_BOTH


def _other_named(rest: str, chosen: str, choices: Sequence[str]) -> bool:
    """Whether an explanation names another choice, or takes the chosen one back."""
    left = re.sub(_whole(chosen), " ", rest)
    letters = {letter for found in _MARKED.findall(left) for letter in found if letter}
    others = any(re.search(_whole(choice), left) for choice in choices if _words(choice) != _words(chosen))
    return others or bool(letters - {LETTERS[list(choices).index(chosen)].lower()} or _TAKES_BACK.search(left))


def _whole(choice: str) -> str:
    """Pattern of a choice's words that are no part of longer ones."""
    return rf"(?<!\w){re.escape(_words(choice))}(?!\w)"


def _why_not(said: str, choices: Sequence[str]) -> str:
    """Why a text couldn't be read: for people who look at the answers; nothing is counted by it."""
    offered = LETTERS[: len(choices)].lower()
    words = [place for place, choice in enumerate(choices) if re.search(_whole(choice), said)]
    letters = set(_POINTED.findall(said))
    if len(letters & set(offered)) > 1 or len(words) > 1:
        return SEVERAL
    first = _LETTER.match(list(_without_lead(said))[-1])
    marked = first and (first["inside"] or first["mark"] or words or not first["rest"])
    letter = (first["inside"] or first["plain"]) if marked else None
    if letter and words != [offered.find(letter)]:
        return DISAGREE if letter in offered else NOT_OFFERED
    return DENIED if _DENIES.search(said) else DOUBT if _DOUBTS.search(said) else NO_FORM


def _first(found: list[Parsed]) -> Parsed:
    """The only answer of all readings; of none, the reason of the first."""
    named = {one.choice for one in found if one.choice}
    if len(named) > 1:
        return Parsed(None, CONTRADICTION)
    return next((one for one in found if one.choice), found[-1])


def _yes_or_no(said: str) -> Parsed:
    """Read a text as yes or no."""
    said = said.rstrip(_MARKS)
    opening = _OPENING.fullmatch(said)
    if not opening:
        stated, why = _statement(said)
        return Parsed(stated, BY_STATEMENT if stated else why)
    choice, rest = opening["word"].capitalize(), opening["rest"] or opening["more"] or ""
    if not rest:
        return Parsed(choice, BY_WORDS)
    opposite = re.search(r"\bno\b" if choice == "Yes" else r"\byes\b", rest)
    if opposite or (choice == "Yes" and _DENIES.search(rest)) or (choice == "No" and _statement(rest)[0] == "Yes"):
        return Parsed(None, CONTRADICTION)
    return Parsed(None, DOUBT) if _DOUBTS.search(rest) else Parsed(choice, BY_WORDS)


def _statement(said: str) -> tuple[str | None, str]:
    """("Yes" or "No", "") of a sentence that states presence or absence, else (None, why not)."""
    if re.search(r"\byes\b", said):
        return None, SEVERAL if re.search(r"\bno\b", said) else DENIED if _DENIES.search(said) else NO_FORM
    denials = len(_DENIES.findall(said))
    if _DOUBTS.search(said):
        return None, DOUBT
    if _ABSENT.match(said):  # "No mass. There is a cyst." says both
        return (None, CONTRADICTION) if denials > 1 or _PRESENT.search(said, 1) else ("No", "")
    if _PRESENT.match(said):
        return (None, DENIED) if denials else ("Yes", "")
    return None, DENIED if denials else NO_FORM
