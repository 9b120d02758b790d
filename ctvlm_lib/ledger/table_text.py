"""One published table as text for a terminal: the paper's numbers, ours with intervals, and what each of them is."""

from collections.abc import Iterator

import pandas as pd

from ctvlm_lib.ledger import places
from ctvlm_lib.ledger.rows import COMPUTED, NOT_TRAINED

HEAD = f"{'':46}{'paper':>9}{'ours':>9}  {'95 % interval':16}{'n':>7}  seeds"
MEANING = {
    places.EXACT: "counted here; has to agree",
    places.ANALOGUE: "the same quantity on phantoms with small models: levels can't be compared, differences can",
    places.DATA: "needs the real data set or released weights",
    places.NOT: "can't be computed here",
    places.LOST: "lost in the source text",
}


def text(name: str, title: str, rows: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """The table's lines.

    Args:
        name: e.g. "contour.T1". title: what it shows.
        rows: of :func:`ctvlm_lib.ledger.rows.ledger`.
        verdicts: of :func:`ctvlm_lib.ledger.verdicts.verdicts`, of its paper; those of other tables are left out.
    """
    lines = [f"{name} · {title}", "", HEAD]
    where_the_same = ["row", "group", "condition"]
    alone = rows.groupby(where_the_same).size().max() == 1  # one number a place: then one line
    same = {name for name in ("group", "column") if alone and rows[name].nunique() == 1}
    for (row, group, condition), part in rows.groupby(where_the_same, sort=False):
        where = " · ".join(filter(None, (row, "" if "group" in same else group, condition)))
        if alone:
            [one] = part.to_dict("records")
            lines.append(_line(one, where if "column" in same else f"{where} · {one['column']}"))
        else:
            lines += [where, *(_line(one, f"  {one['column']}") for one in part.to_dict("records"))]
    return "\n".join([*lines, "", *_kinds(rows), *_sources(rows), *_verdicts(name, verdicts)])


def _line(row: dict, label: str) -> str:
    printed = "–" if pd.isna(row["published"]) else f"{row['published']:g}"
    head = f"{label:46}{printed:>9}"
    if pd.isna(row["ours"]):
        return f"{head}{'–':>9}  {row['status'] or row['kind']}"
    digits = 1 if row["unit"] == "%" else 3
    interval = "" if pd.isna(row["low"]) else f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    n = "" if pd.isna(row["n"]) else f"{int(row['n']):,}"
    status = "" if row["status"] == COMPUTED else row["status"]
    return f"{head}{row['ours']:>9.{digits}f}  {interval:16}{n:>7}  {row['seeds']}{status}".rstrip()


def _kinds(rows: pd.DataFrame) -> Iterator[str]:
    """What the cells are, and why, the most frequent reason first."""
    for kind, part in rows.groupby("kind", sort=False):
        yield f"{len(part)} of {len(rows)} numbers are {kind}: {MEANING[kind]}."
        for why, count in part["why"].value_counts().items():
            yield f"    {count:3} × {why}"


def _sources(rows: pd.DataFrame) -> Iterator[str]:
    ours = rows[rows["ours"].notna() & (rows["arm"] != "")]
    if len(ours):
        commits = sorted({commit for told in ours["commit"].dropna() for commit in told.split()})
        most = int(ours["patients"].max())
        yield (
            f"Ours: profile {', '.join(sorted(set(ours['profile'])))}, up to {most} test patients; commits"
            f" {', '.join(commits) or 'not recorded'}; seeds by their mean, the interval spans all seeds'."
        )
    waiting = rows[rows["status"] == NOT_TRAINED]
    if len(waiting):
        first = min(waiting["arm"])
        yield f"{len(waiting)} numbers of ours are {NOT_TRAINED}; train one with `ctvlm arm {first}`."


def _verdicts(name: str, verdicts: pd.DataFrame) -> Iterator[str]:
    own = verdicts[verdicts["table"] == name.split(".")[1]]
    if own.empty:
        return
    yield ""
    yield f"{'what the paper claims of this table':46}{'paper':>9}{'ours':>9}  {'95 % interval':16}verdict"
    for row in own.to_dict("records"):
        ours, interval, sizes = "–", "", f" · {row['decoders']}" if row["decoders"] else ""
        if not pd.isna(row["difference"]):
            ours, interval = f"{row['difference']:+.1f}", f"[{row['low']:+.1f}, {row['high']:+.1f}]"
        yield f"  {row['name']:44}{row['published']:>+9.1f}{ours:>9}  {interval:16}{row['verdict']}{sizes}"
