"""The small table that is stored beside an arm's predictions, and what differs when it is computed again.

Retrieval arms have had one from the start, ``test.csv``. An arm of answers gets ``table.csv``: for each split,
condition, control, form, kind and stratum how many questions, how many right, and the text scores of open answers. It
holds neither intervals nor METEOR, so that forty arms are computed again within a minute.
"""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ctvlm_lib.evaluate.choice import exactly_right, score_closed
from ctvlm_lib.evaluate.text import TextStatistics
from ctvlm_lib.evaluate.text_metrics import measured
from ctvlm_lib.experiments.answers import AS_ASKED

NAME = "table.csv"  # beside the answers
KEY = ["split", "condition", "control", "form", "kind", "stratum"]
COUNTS, SCORES = ["n", "right"], ["BLEU-1", "BLEU-4", "ROUGE-L"]
COLUMNS = [*KEY, *COUNTS, "share", *SCORES]
_FAMILIES = {"sacrebleu": SCORES[:2], "rouge l": SCORES[2:]}
TOLERANCE = 0.011  # of a text score, 0–100: they are stored with two decimals
RECALL_TOLERANCE = 1e-4  # recalls and ceilings are stored with four

_known: dict[str, dict[tuple, np.ndarray]] = {family: {} for family in _FAMILIES}


def table_of_answers(said: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count and score an arm's answers.

    Args:
        said: split → table of answers, see :func:`ctvlm_lib.experiments.answers.load`.

    Returns:
        ``COLUMNS``. ``right`` and ``share``: right closed answers, or open ones that are the truth word for word; none
        for reports. ``BLEU-1``, ``BLEU-4``, ``ROUGE-L`` (0–100): of open answers as asked; a report's ROUGE-L is left
        out, which takes longer than all the rest.

    Raises:
        BadInput: answers that can't be scored, see :func:`ctvlm_lib.evaluate.choice.score_closed`.
    """
    rows = []
    for split, table in said.items():
        right = exactly_right(table)
        if (table["form"] == "closed").any():
            right.update(score_closed(table)["correct"].astype(float))
        groups = table.assign(split=split, right=right).groupby(KEY, sort=True)
        rows += [dict(zip(KEY, key, strict=True)) | _row(group) for key, group in groups]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"right": "Int64"})


def _row(group: pd.DataFrame) -> dict:
    form, kind, control = (group[name].iloc[0] for name in ("form", "kind", "control"))
    made: dict = {"n": len(group)}
    if kind != "report":
        made |= {"right": int(group["right"].sum()), "share": round(float(group["right"].mean()), 4)}
    if form != "closed" and control == AS_ASKED:
        made |= _text_scores(group, ("sacrebleu",) if kind == "report" else tuple(_FAMILIES))
    return made


def _text_scores(group: pd.DataFrame, families: tuple[str, ...]) -> dict[str, float]:
    """Scores of pairs; arms give many of the same short answers, so each pair is measured once."""
    pairs = [(said, (true,)) for said, true in zip(group["answer"], group["truth"], strict=True)]
    rows = {}
    for family in families:
        known = _known[family]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        if new:
            known.update(zip(new, measured(new, [family])[family], strict=True))
        rows[family] = np.stack([known[pair] for pair in pairs])
    names = tuple(name for family in families for name in _FAMILIES[family])
    return {name: round(score, 2) for name, score in TextStatistics(names, rows).scores().items()}


def as_text(table: pd.DataFrame) -> str:
    """A table as the file holds it, the same on every system."""
    return table.to_csv(index=False, lineterminator="\n")


def read(text: str) -> pd.DataFrame:
    """The table of :func:`as_text`; a stratum that is "" stays a text.

    Raises:
        ValueError: not a table, or counts and scores that aren't numbers.
    """
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    numbers = [name for name in COLUMNS if name in table and name not in KEY]
    return table.assign(**{name: pd.to_numeric(table[name].replace("", None)).astype(float) for name in numbers})


def compare_answers(stored: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    """What differs between an arm's stored table and the one that its answers give now, both read, a sentence each."""
    if list(stored.columns) != COLUMNS:
        return [f"{NAME}: its columns are {', '.join(stored.columns)} instead of {', '.join(COLUMNS)}"]
    left, right = (table.set_index(KEY) for table in (stored, again))
    if left.index.duplicated().any():
        return [f"{NAME}: {_group(left.index[left.index.duplicated()][0])} stand there twice"]
    only = left.index.difference(right.index), right.index.difference(left.index)
    told = [f"{NAME}: has {_group(key)}, and {key[0]}.npz holds no such answers" for key in only[0]]
    told += [f"{NAME}: lacks {_group(key)}, which {key[0]}.npz holds" for key in only[1]]
    for key in right.index.intersection(left.index):
        told += _row_differs(key, left.loc[key], right.loc[key])
    return told


def _row_differs(key: tuple, stored: pd.Series, again: pd.Series) -> list[str]:
    split, form = key[0], key[3]
    if any(not _same(stored[name], again[name], 0) for name in COUNTS) or not _same(
        stored["share"], again["share"], RECALL_TOLERANCE
    ):
        what = "closed accuracy" if form == "closed" else "exact match"
        return [f"{split}.npz: {what} of {_group(key)} is {_share(again)} and the stored table says {_share(stored)}"]
    return [
        f"{split}.npz: {name} of {_group(key)} is {again[name]:g} and the stored table says {stored[name]:g}"
        for name in SCORES
        if not _same(stored[name], again[name], TOLERANCE)
    ]


def compare_scores(scores: pd.DataFrame, table: str, digest: str) -> list[str]:
    """What in ``scores.csv`` isn't of these answers, a sentence each.

    The number of questions and closed accuracies follow from the table, where the region is named or there is none.
    METEOR and the intervals, which take minutes, do not; that the scores are of this file of answers is told by its
    hash.

    Args:
        scores: of one arm, see :mod:`ctvlm_lib.ledger.stored_scores`, as texts.
        table: of its answers, as text.
        digest: of its answers on test.
    """
    counted, told = read(table), []
    counted = counted[(counted["split"] == "test") & (counted["control"] == AS_ASKED)]
    for _, row in scores.iterrows():
        what = f"scores.csv: {row['form']} {row['metric']} of {row['kinds']}"
        kinds = str(row["kinds"]).split("+")
        some = counted[counted["kind"].isin(kinds) & counted["stratum"].isin(("", "named"))]
        some = some[some["form"] == ("closed" if row["form"] == "closed" else "open")]
        if not digest.startswith(row["answers"]):
            told.append(f"{what} is of other answers than test.npz; ctvlm verify --update computes it again")
        elif int(row["n"]) != some["n"].sum():
            told.append(f"{what} counts {row['n']} questions, and test.npz holds {some['n'].sum():g}")
        elif row["metric"] == "accuracy" and row["mean"] != "mean":
            share = 100 * some["right"].sum() / some["n"].sum()
            if not _same(share, float(row["value"]), RECALL_TOLERANCE):
                told.append(f"{what} is {share:.4f} by test.npz and the stored score is {row['value']}")
    return told


def compare_recalls(stored: pd.DataFrame, again: pd.DataFrame, name: str, by: str) -> list[str]:
    """What differs between two tables of recalls, a sentence each.

    Args:
        stored: as read from ``name``.
        again: computed from ``by``, the file of predictions or the record; only its columns are compared.
    """
    missing = [column for column in again if column not in stored]
    if missing or len(stored) != len(again):
        lacking = f" and lacks {', '.join(missing)}" if missing else ""
        return [f"{name}: has {len(stored)} rows{lacking}, and {by} gives {len(again)} rows"]
    told = []
    for column in again:
        for k, (old, new) in enumerate(zip(stored[column], again[column], strict=True)):
            if old != new and not (_is_number(old) and _is_number(new) and _same(old, new, RECALL_TOLERANCE)):
                row = again.iloc[k]
                where = f"{row['direction']} R@{row['k']} in a gallery of {row['gallery']}"
                told.append(f"{name}: {column} of {where} is {new} by {by} and the stored table says {old}")
    return told


def _group(key: tuple) -> str:
    """ "named presence questions (contour, as asked)"."""
    _, condition, control, form, kind, stratum = key
    what = "reports" if kind == "report" else f"{stratum} {'open ' if form == 'open' else ''}{kind} questions".strip()
    return f"{what} ({condition}, {control})"


def _share(row: pd.Series) -> str:
    if np.isnan(row["right"]):
        return f"empty ({row['n']:g} answers)"
    return f"{row['share']:.4f} ({row['right']:g} of {row['n']:g})"


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number)


def _same(left: float, right: float, tolerance: float) -> bool:
    return abs(left - right) <= tolerance + 1e-9 or (np.isnan(left) and np.isnan(right))
