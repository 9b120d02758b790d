"""Every published number beside ours: the ledger itself, one row a cell of the papers' tables."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ctvlm_lib.ledger import places, published, real_places, stored_scores
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.ledger.places import ANALOGUE, DATA, EXACT, Place
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Score

COLUMNS = (
    "paper", "table", "row", "group", "column", "condition", "published", "unit", "kind", "status", "ours", "low",
    "high", "n", "patients", "seeds", "arm", "profile", "commit", "notebook", "command", "why",
)  # fmt: skip
COMPUTED, AGREES, DIFFERS = "computed", "agrees", "differs"
NOT_TRAINED, NONE = "not trained yet", ""


def ledger(cells: Sequence[Published] | None = None, results: Results | None = None) -> pd.DataFrame:
    """The ledger's rows.

    Args:
        cells: of the papers' tables; None takes all.
        results: of our arms; None reads those that ship with the workbook.

    Returns:
        a table with COLUMNS. ``ours`` is empty where there is nothing of ours; then ``status`` or ``why`` says why.

    Raises:
        BadInput: a half-finished arm, or answers under another protocol.
    """
    results = results or Results()
    return pd.DataFrame([_row(cell, results) for cell in (published.load() if cells is None else cells)],
                        columns=list(COLUMNS))  # fmt: skip


def counts(rows: pd.DataFrame) -> pd.DataFrame:
    """How many rows there are of each kind, and of each status; the last row sums."""
    status = rows["status"].replace(NONE, "nothing of ours")
    found = pd.crosstab(rows["kind"], status).reindex(places.KINDS).fillna(0).astype(int)
    found.insert(0, "rows", found.sum(axis=1))
    found.loc["all"] = found.sum()
    return found.rename_axis(None, axis=1).reset_index(names="kind")


def by_seed(name: str, results: Results | None = None) -> pd.DataFrame:
    """One published table from our arms, a row for each arm and seed.

    Args:
        name: of the table, "contour.T1" or "dualbox.T1".
        results: of our arms; None reads those that ship with the workbook.

    Returns:
        ``decoder``, ``condition``, ``seed``, then for each column "closed accuracy" with "low" and "high", "open
        BLEU-4", …, in % or 0–100, on questions that name their region.

    Raises:
        BadInput: as :func:`ledger`, or an unknown table.
    """
    results, found = results or Results(), {}
    for cell in published.table(name):
        quantity = places.place(cell).quantity
        for seed, path in results.folders(quantity.arm).items() if isinstance(quantity, Score) else ():
            row = found.setdefault((quantity.arm, seed), {"decoder": quantity.decoder, "condition": quantity.condition,
                                                          "seed": seed})  # fmt: skip
            interval = results.score(quantity, path)
            row[f"{quantity.form} {quantity.metric}"] = interval.value
            if quantity.form == "closed":
                row |= {"low": interval.low, "high": interval.high}
    order = {name: k for k, name in enumerate((*places.SIZES.values(), *places.PROMPTS.values()))}
    table, key = pd.DataFrame(found.values()), ["decoder", "condition", "seed"]
    return table.sort_values(key, key=lambda column: column.map(order).fillna(column)).reset_index(drop=True)


def quantities_of(arm: str) -> tuple[Score, ...]:
    """All scores of an arm that stand in the ledger, or would if it was the one that stands there."""
    wanted = {place.quantity for place in map(places.place, published.load()) if isinstance(place.quantity, Score)}
    return tuple(sorted((one for one in wanted if one.arm == arm), key=repr))


def store_scores(folder: Path, results: Results | None = None) -> Path | None:
    """Compute the scores of an arm's folder that stand in the ledger, unless they lie beside its answers already.

    Returns:
        the file; None where there was nothing to do.
    """
    wanted = quantities_of(stored_scores.name_of(folder))
    if not wanted or set(wanted) <= set(stored_scores.read(folder)):
        return None
    from ctvlm_lib.ledger.ours import score

    answers = (results or Results(stored=False)).answers(folder)
    found = {one: interval for one in wanted if (interval := score(answers, one))}
    return stored_scores.write(folder, found)


def agrees(printed: float, ours: float) -> bool:
    """Whether a counted number rounds to the printed one."""
    digits = f"{printed:.10g}".partition(".")[2]
    return abs(ours - printed) <= 0.5 * 10.0 ** -len(digits) * (1 + 1e-9)


def _row(cell: Published, results: Results) -> dict:
    place, real = places.place(cell), real_places.quantity(cell)
    found = results.measure_real(real)
    if found is not None:  # a user's own data go before phantoms
        changed = ", ".join(results.otherwise(real))
        why = "on the user's own copy" + (f", run otherwise than the paper says ({changed})" if changed else "")
        place = Place(DATA, real, f"{why}; {place.why}", "80", real_places.command(real))
    elif place.quantity is not None:
        found = results.measure(place.quantity)
    row = {
        "paper": cell.paper, "table": cell.table, "row": cell.row, "group": cell.group, "column": cell.column,
        "condition": cell.condition, "published": cell.value, "unit": cell.unit, "kind": place.kind,
        "status": _status(cell, place, found), "notebook": place.notebook, "command": place.command, "why": place.why,
        "arm": getattr(place.quantity, "arm", ""),
    }  # fmt: skip
    if found is not None:
        row |= {
            "ours": found.value, "low": found.low, "high": found.high, "n": found.n or None,
            "patients": found.patients or None, "seeds": " ".join(map(str, found.seeds)), "profile": found.profile,
            "commit": " ".join(found.commits),
        }  # fmt: skip
    return row


def _status(cell: Published, place: Place, found) -> str:
    if found is not None:
        return (AGREES if agrees(cell.value, found.value) else DIFFERS) if place.kind == EXACT else COMPUTED
    return NOT_TRAINED if place.kind == ANALOGUE else NONE
