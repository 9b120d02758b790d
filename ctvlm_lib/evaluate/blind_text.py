"""Texts of readers who see no image: what a text score is worth shows beside theirs.

Three of them: the most frequent training answer to the same words, one training text that is nearest to all others, and
the text of some other patient. None of them needs more than the training texts.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text_libraries import rouge_l_rows
from ctvlm_lib.records.balance import drawn


def most_frequent(texts: Sequence[str], wordings: Sequence, asked: Sequence) -> list[str]:
    """The training text that most often answers the same wording.

    Ties go to the first by alphabet. A wording that training lacks gets the most frequent text of all.

    Args:
        texts: training answers.
        wordings: of their questions, e.g. the question itself; anything hashable.
        asked: wordings of the test questions.

    Returns:
        One text for each of ``asked``.

    Raises:
        BadInput: no training text, or wordings of another number.
    """
    _check(texts, wordings, "wordings")
    counts = defaultdict(Counter)
    for text, wording in zip(texts, wordings, strict=True):
        counts[wording][text] += 1
    overall = _commonest(Counter(texts))
    known = {wording: _commonest(count) for wording, count in counts.items()}
    return [known.get(wording, overall) for wording in asked]


def central(texts: Sequence[str], tests: int, *, candidates: int = 20, against: int = 40, seed: int = 0) -> list[str]:
    """One training text, the same for each test: the one with the highest mean ROUGE-L to other training texts.

    Args:
        texts: training texts.
        tests: how many predictions to give.
        candidates, against: at most so many different texts are compared with so many others, drawn by ``seed``. Two
            reports of 170 words take about 5 ms.
        seed: of the draw.

    Returns:
        The text, ``tests`` times.

    Raises:
        BadInput: no training text.
    """
    _check(texts, texts, "texts")
    order = sorted(range(len(texts)), key=lambda place: drawn(seed, place, texts[place]))
    tried = list({texts[place]: place for place in reversed(order)}.values())[::-1][:candidates]
    others = order[:against]
    pairs = [(texts[place], (texts[other],)) for place in tried for other in others]
    found = rouge_l_rows([text for text, _ in pairs], [refs for _, refs in pairs])
    itself = np.equal.outer(tried, others)  # (candidates, others)
    scores = np.where(itself, 0, found.reshape(itself.shape)).sum(axis=1) / np.maximum((~itself).sum(axis=1), 1)
    return [texts[tried[int(np.argmax(scores))]]] * tests


def other_patients(
    texts: Sequence[str], patients: Sequence[str], asked: Sequence[str], *, keys: Sequence | None = None, seed: int = 0
) -> list[str]:
    """The text of another patient, drawn anew for each test.

    Args:
        texts: training texts.
        patients: whose they are.
        asked: patients of the tests, one for each prediction; a patient's own text is never given.
        keys: what tells the tests apart, e.g. record ids; None takes their places. The draw is a function of seed, key
            and patient.
        seed: of the draw.

    Returns:
        One text for each of ``asked``.

    Raises:
        BadInput: no training text, patients or keys of another number, or no patient other than the one asked about.
    """
    _check(texts, patients, "patients")
    keys = range(len(asked)) if keys is None else list(keys)
    if len(keys) != len(asked):
        raise BadInput(f"{len(keys)} keys for {len(asked)} tests; give one for each")
    chosen = []
    for patient, key in zip(asked, keys, strict=True):
        others = [place for place, owner in enumerate(patients) if owner != patient]
        if not others:
            raise BadInput(f"all training texts are of patient {patient}; give texts of another patient too")
        chosen.append(texts[others[drawn(seed, key, patient) % len(others)]])
    return chosen


def _commonest(counts: Counter) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def _check(texts: Sequence[str], beside: Sequence, what: str) -> None:
    if not texts:
        raise BadInput("there are no training texts; give at least one")
    if len(beside) != len(texts):
        raise BadInput(f"{len(texts)} training texts with {len(beside)} {what}; give one for each")
