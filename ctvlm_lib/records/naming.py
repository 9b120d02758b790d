"""Which structure a question names, and what counts as yes and no."""

import re
from functools import cache

from ctvlm_lib import anatomy

_LONGEST_NAME = 6  # words of the longest anatomical name that is looked for in a text


def structure_in(text: str) -> str | None:
    """The one structure of :mod:`ctvlm_lib.anatomy` that a text names, or None if it names none or several."""
    words = re.findall(r"[\w/]+", text.lower())
    names, found, at = _structure_names(), set(), 0
    while at < len(words):
        for length in range(min(_LONGEST_NAME, len(words) - at), 0, -1):
            name = names.get(" ".join(words[at : at + length]))
            if name:
                found.add(name)
                at += length - 1  # the longest name counts: "left kidney" isn't also "kidney"
                break
        at += 1
    return found.pop() if len(found) == 1 else None


@cache
def _structure_names() -> dict[str, str]:
    """Every name of a structure, lower case, words separated by one blank → canonical name."""
    names: dict[str, str] = {}
    for s in anatomy.structures().values():
        for name in (s.name, s.radlex, *s.radgenome, *s.synonyms):
            key = " ".join(re.findall(r"[\w/]+", name.lower()))
            for form in (key, key + "s"):
                names.setdefault(form, s.name)
    return names


def yes_or_no(answer: str) -> str | None:
    """Give "Yes"/"No" of "yes", "No." …, or None."""
    word = answer.strip().rstrip(".").lower()
    return {"yes": "Yes", "no": "No"}.get(word)
