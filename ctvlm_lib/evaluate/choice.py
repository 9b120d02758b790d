"""Accuracy of closed answers: each is read by one grammar; one that can't be read is wrong, and counted as unread.

Chance stands beside every accuracy, as kinds of questions have different numbers of choices. Nothing is pooled that
asks different things: strata, conditions, controls and seeds stay apart unless they are named as groups.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import YES_NO, Parsed, parse, released_rule, same_words
from ctvlm_lib.records.package import LETTERS

COLUMNS = ("id", "patient", "kind", "form", "stratum", "condition", "control", "seed", "answer", "choices", "truth",
           "confidence")  # fmt: skip
ASKED = ("condition", "control", "seed")  # a question stands once under each
NEVER_POOLED = ("stratum", *ASKED)


def score_closed(table: pd.DataFrame) -> pd.DataFrame:
    """Read and score the closed questions of a table of answers.

    Args:
        table: one row for each answered question, with ``COLUMNS`` (others are kept): ``answer`` is the text as it was
            given, "" for none; ``choices`` a tuple, () for yes or no; ``truth`` one of them. Rows of another ``form``
            than "closed" are left out: open answers are scored as texts.

    Returns:
        the closed rows in their order with ``parsed`` (the choice, or None), ``reason`` (how it was read, or why not)
        and ``correct`` (bool; an unread answer is wrong).

    Raises:
        BadInput: missing columns, no closed question, an id twice under the same condition, control and seed, a truth
            that isn't among the choices, an answer that isn't a text, or no answer that can be read.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BadInput(f"the table of answers lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    closed = table[table["form"] == "closed"].copy()
    if closed.empty:
        raise BadInput(f"none of the {len(table)} rows has form 'closed'; give answers to closed questions")
    _refuse_repeats(closed)
    asked = list(zip(closed["answer"], map(tuple, closed["choices"]), closed["truth"], closed["id"], strict=True))
    known: dict[tuple, tuple[Parsed, bool]] = {}  # thousands of rows hold a few hundred different answers
    for answer, choices, truth, name in asked:
        if (answer, choices, truth) not in known:
            known[answer, choices, truth] = _score(answer, choices, truth, name)
    read = [known[answer, choices, truth] for answer, choices, truth, _ in asked]
    if not any(parsed.choice for parsed, _ in read):
        raise BadInput(_nothing_read(*asked[0], read[0][0].how, len(asked)))
    closed["parsed"] = pd.Series([parsed.choice for parsed, _ in read], index=closed.index, dtype=object)
    closed["reason"] = [parsed.how for parsed, _ in read]
    closed["correct"] = [right for _, right in read]
    return closed


def exactly_right(table: pd.DataFrame) -> pd.Series:
    """1 where an open answer is the truth but for case, outer blanks and a full stop at the end."""
    said, true = (table[name].str.strip().str.rstrip(".").str.lower() for name in ("answer", "truth"))
    return (said == true).astype(float)


def accuracy_table(scored: pd.DataFrame, by: Sequence[str] = ("kind",)) -> pd.DataFrame:
    """Count right answers of each group.

    Args:
        scored: of :func:`score_closed`.
        by: columns that make a group.

    Returns:
        ``by``, then ``n`` (answers), ``patients``, ``accuracy`` (right of all), ``unparsed`` (unread of all) and
        ``chance`` (mean of one over the number of choices), all shares 0…1, in the order of the table.

    Raises:
        BadInput: answers that weren't scored, a column that isn't there, or strata, conditions, controls or seeds that
            would be pooled.
    """
    _check_groups(scored, by)
    rows = []
    for key, group in scored.groupby(list(by), sort=False, dropna=False):
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "n": len(group),
                "patients": group["patient"].nunique(),
                "accuracy": float(group["correct"].mean()),
                "unparsed": float(group["parsed"].isna().mean()),
                "chance": float((1 / group["choices"].map(lambda choices: len(choices or YES_NO))).mean()),
            }
        )
    return pd.DataFrame(rows)


def unparsed_table(scored: pd.DataFrame, examples: int = 1) -> pd.DataFrame:
    """Why answers couldn't be read.

    Args:
        scored: of :func:`score_closed`.
        examples: how many different answers to show for each reason.

    Returns:
        ``reason``, ``n`` and ``examples`` (a tuple of answers), the most frequent reason first; no rows if all could
        be read.
    """
    _check_groups(scored, NEVER_POOLED)
    unread = scored[scored["parsed"].isna()]
    rows = [
        {"reason": reason, "n": len(group), "examples": tuple(group["answer"].drop_duplicates()[:examples])}
        for reason, group in unread.groupby("reason")
    ]
    return pd.DataFrame(rows, columns=["reason", "n", "examples"]).sort_values("n", ascending=False, ignore_index=True)


def released_table(scored: pd.DataFrame) -> pd.DataFrame:
    """The same answers by the rule of Med3DVLM's released evaluation, for contrast.

    Args:
        scored: of :func:`score_closed`; rows with choices are counted, as the rule needs letters.

    Returns:
        ``kind``, ``n``, ``accuracy`` (as here), ``released`` (share that the rule counts as right) and ``two letters``
        (share that it would count for more than one choice).
    """
    lettered = scored[scored["choices"].map(len) > 0]
    columns, rows = ["kind", "n", "accuracy", "released", "two letters"], []
    for kind, group in lettered.groupby("kind", sort=False):
        hits = [
            {choice for letter, choice in zip(LETTERS, choices, strict=False) if released_rule(answer, letter)}
            for answer, choices in zip(group["answer"], group["choices"], strict=True)
        ]
        right = [truth in found for truth, found in zip(group["truth"], hits, strict=True)]
        several = [len(found) > 1 for found in hits]
        shares = [float(np.mean(values)) for values in (group["correct"], right, several)]
        rows.append(dict(zip(columns, (kind, len(group), *shares), strict=True)))
    return pd.DataFrame(rows, columns=columns)


def _score(answer: object, choices: tuple[str, ...], truth: object, name: str) -> tuple[Parsed, bool]:
    if not isinstance(answer, str):
        raise BadInput(f"the answer to {name} is {answer!r}, and a text is expected; give '' where there is none")
    offered = choices or YES_NO
    right = [
        one for one in offered if one == truth or (not choices and isinstance(truth, str) and same_words(one, truth))
    ]
    if not right:
        raise BadInput(f"the truth of {name} is {truth!r}, which is none of {', '.join(offered)}; correct the record")
    parsed = parse(answer, choices)
    return parsed, parsed.choice == right[0]


def _nothing_read(answer: str, choices: tuple[str, ...], truth: str, name: str, why: str, count: int) -> str:
    expected = f"'{LETTERS[choices.index(truth)]}. {truth}', its letter or its words" if choices else "'Yes' or 'No'"
    return (
        f"none of {count} answers can be read; the first, to {name}, is {answer[:80]!r} ({why}), and a text such as"
        f" {expected} is expected; see ctvlm_lib.evaluate.answers"
    )


def _refuse_repeats(table: pd.DataFrame) -> None:
    twice = table[table.duplicated(["id", *ASKED])]
    if len(twice):
        one = twice.iloc[0]
        where = ", ".join(f"{name} {one[name]!r}" for name in ASKED)
        raise BadInput(f"{len(twice)} answers stand twice, the first is {one['id']} ({where}); keep one of each")


def _check_groups(scored: pd.DataFrame, by: Sequence[str]) -> None:
    if isinstance(by, str) or not len(by):
        raise BadInput(f"by is {by!r}; give a list of columns, e.g. ('kind',)")
    missing = [name for name in ("correct", "parsed", "reason") if name not in scored]
    if missing:
        raise BadInput("the answers aren't scored yet; pass them through score_closed first")
    absent = [name for name in by if name not in scored]
    if absent:
        raise BadInput(f"the table has no column {', '.join(absent)}; group by some of {', '.join(scored.columns)}")
    for name in NEVER_POOLED:
        values = [value for value in scored[name].unique() if value != ""]
        if name not in by and len(values) > 1:
            raise BadInput(
                f"{name} {', '.join(map(str, values[:3]))} would be pooled; add {name!r} to by, or choose one"
            )
