"""Predictions and references side by side: matched by id, checked, each problem told by its ids."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ctvlm_lib.errors import BadInput

_SHOWN = 5


def match(predictions, references) -> tuple[list[str], list, list]:
    """Align predictions with references by id.

    Args:
        predictions: a mapping id → text, or (id, text) pairs.
        references: the same; a reference may also be a sequence of texts.

    Returns:
        ids, predictions and references, in the order of the references.

    Raises:
        BadInput: an id given twice, a reference without a prediction, or a prediction without a reference.
    """
    said, true = _by_id(predictions, "predictions"), _by_id(references, "references")
    missing = [one for one in true if one not in said]
    if missing:
        raise BadInput(f"{_named(missing)} of {len(true)} references have no prediction; give '' where there is none")
    extra = [one for one in said if one not in true]
    if extra:
        raise BadInput(f"{_named(extra)} of {len(said)} predictions have no reference; leave them out")
    return list(true), [said[one] for one in true], list(true.values())


def checked(predictions, references, ids=None) -> tuple[list[str], list[tuple[str, ...]]]:
    """Predictions and references as every metric takes them.

    Args:
        predictions: texts, or a mapping id → text.
        references: a text for each or a sequence of texts, or a mapping from the same ids.
        ids: of the pairs in order, each once, for error sentences; None numbers them from 0.

    Returns:
        predictions, and for each a tuple of its references that aren't blank.

    Raises:
        BadInput: different numbers, no pair, something that isn't a text, an id given twice, or a pair whose
            references are all blank: BLEU, ROUGE and METEOR don't agree on what such a pair scores.
    """
    if isinstance(predictions, Mapping) != isinstance(references, Mapping):
        raise BadInput("predictions or references come by id, the others don't; give both by id, or both in order")
    if isinstance(predictions, Mapping):
        ids, predictions, references = match(predictions, references)
    predictions, references = _sequence(predictions, "predictions"), _sequence(references, "references")
    if len(predictions) != len(references):
        raise BadInput(f"{len(predictions)} predictions for {len(references)} references; give one each, '' for none")
    if not predictions:
        raise BadInput("there are no predictions to score; give at least one pair")
    names = _names(ids, len(predictions))
    _check_texts(predictions, names, "predictions")
    several = [(refs,) if isinstance(refs, str) else refs for refs in references]
    return list(predictions), [_references(refs, name) for refs, name in zip(several, names, strict=True)]


def _by_id(given, what: str) -> dict:
    """Ids → texts; no id twice."""
    if isinstance(given, Mapping):
        return dict(given)
    pairs = list(given)
    if not all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs):
        raise BadInput(f"{what} must be a mapping id → text or a list of (id, text)")
    twice = [one for one, count in Counter(one for one, _ in pairs).items() if count > 1]
    if twice:
        raise BadInput(f"{_named(twice)} stand more than once in the {what}; keep one of each")
    return dict(pairs)


def _sequence(given, what: str) -> list:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadInput(f"{what} must be a list of texts, got {type(given).__name__}; put a single text into a list")
    return list(given)


def _names(ids, count: int) -> list[str]:
    if ids is None:
        return [f"number {place}" for place in range(count)]
    ids = list(ids)
    if len(ids) != count:
        raise BadInput(f"{len(ids)} ids for {count} pairs; give one for each")
    twice = [one for one, times in Counter(ids).items() if times > 1]
    if twice:
        raise BadInput(f"{_named(twice)} stand more than once in ids; each pair needs its own")
    return [str(one) for one in ids]


def _check_texts(texts: Iterable, names: Sequence[str], what: str) -> None:
    wrong = [(name, text) for name, text in zip(names, texts, strict=True) if not isinstance(text, str)]
    if wrong:
        name, text = wrong[0]
        raise BadInput(f"{len(wrong)} of {len(names)} {what} aren't texts, the first ({name}) is {text!r}; give str")


def _references(refs, name: str) -> tuple[str, ...]:
    """The references that aren't blank."""
    if not isinstance(refs, Sequence):
        raise BadInput(f"the reference of {name} is {refs!r}; give a str or a list of str")
    _check_texts(refs, [name] * len(refs), "references of one pair")
    kept = tuple(ref for ref in refs if ref.strip())
    if not kept:
        raise BadInput(f"the reference of {name} is blank: no score is defined; leave the pair out")
    return kept


def _named(ids: Sequence) -> str:
    """How many, and the first few: ``3 ids (a, b, c)``."""
    shown = ", ".join(str(one) for one in ids[:_SHOWN])
    return f"{len(ids)} id{'s' if len(ids) > 1 else ''} ({shown}{', …' if len(ids) > _SHOWN else ''})"
