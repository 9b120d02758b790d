"""What the text metrics count as words, where their library leaves that to its caller."""

import re
from functools import lru_cache

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_STOP = re.compile(r"\s*\.\s*")
_TWO_STOPS = re.compile(r"\.\s*\.")


@lru_cache(maxsize=2**15)
def meteor_words(text: str) -> tuple[str, ...]:
    """NLTK's word tokenizer, sentence by sentence; a sentence ends at ``.``, ``!`` or ``?`` before white space.

    ``nltk.word_tokenize`` finds the sentences with the Punkt model, which no package registry carries. The two differ
    only after an abbreviation inside a sentence ("approx. 3 cm"), where this one splits the full stop off.

    Args:
        text: any text.

    Returns:
        The words and punctuation marks, as written.
    """
    from nltk.tokenize import word_tokenize

    sentences = _SENTENCE_END.split(text)
    return tuple(word for sentence in sentences for word in word_tokenize(sentence, preserve_line=True))


def uvlm_text(text: str) -> str:
    """A report as U-VLM's evaluation rewrites it before it splits at white space.

    Double quotes go, all white space becomes one space, and each full stop is followed by one and never preceded:
    "3.5 cm" becomes "3. 5 cm", two words. Two full stops in a row become one.

    Source: U-VLM's released code, uvlm/evaluation/metrics/nlg.py.
    """
    joined = " ".join(text.replace('"', "").split())
    return _TWO_STOPS.sub(".", _STOP.sub(". ", joined)).strip()
