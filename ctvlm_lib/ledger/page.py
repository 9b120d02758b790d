"""The ledger as a page of the report, ``report/ledger.html``, and as files: ``ledger.csv``, ``ledger_claims.csv``."""

import datetime
from pathlib import Path

import pandas as pd

from ctvlm_lib.errors import atomic_path
from ctvlm_lib.html_page import write_page
from ctvlm_lib.ledger import claims, published
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.ledger.rows import counts, ledger
from ctvlm_lib.ledger.verdicts import verdicts

TEMPLATE = Path(__file__).with_name("ledger_page.html")


def write(folder: Path, results: Results | None = None) -> pd.DataFrame:
    """Write the page and the CSV.

    Args:
        folder: ``DIR/<profile>``. results: of our arms; None reads those that ship with the workbook.

    Returns:
        the ledger's rows.

    Raises:
        BadInput: as :func:`ctvlm_lib.ledger.rows.ledger`, or a folder that can't be written to.
    """
    results = results or Results()
    rows = ledger(results=results)
    with atomic_path(folder / "ledger.csv") as partial:
        rows.to_csv(partial, index=False)
    said = claims.table()
    with atomic_path(folder / "ledger_claims.csv") as partial:
        said.to_csv(partial, index=False)
    found, papers = counts(rows), [_paper(key, rows, said, results) for key in published.PAPERS]
    write_page(
        folder / "report" / "ledger.html", TEMPLATE, total=len(rows), tables=published.names(),
        written=datetime.date.today().isoformat(), papers=papers,
        counts={"head": list(found.columns), "body": found.to_numpy().tolist()},
    )  # fmt: skip
    return rows


def _paper(key: str, rows: pd.DataFrame, said: pd.DataFrame, results: Results) -> dict:
    own = rows[rows["paper"] == key]
    titles = {cell.name: cell.title for cell in published.load()}
    tables = []
    for table, part in own.groupby("table", sort=True):
        kinds = ", ".join(f"{count} {kind}" for kind, count in part["kind"].value_counts().items())
        name = f"{key}.{table}"
        tables.append({"name": name, "title": titles[name], "kinds": kinds, "rows": _rows(part)})
    judged = [_verdict(row) for row in verdicts(key, results).to_dict("records")]
    own = said[said["paper"] == key].assign(ours=said["ours"].map(lambda ours: "" if pd.isna(ours) else f"{ours:.6g}"))
    return {"key": key, "title": published.PAPERS[key], "tables": tables, "verdicts": judged,
            "claims": own.fillna("").to_dict("records")}  # fmt: skip


def _rows(part: pd.DataFrame) -> list[dict]:
    made = []
    for row in part.astype(object).where(part.notna(), None).to_dict("records"):
        digits, printed, n = 1 if row["unit"] == "%" else 3, row["published"], row["n"]
        made.append({
            "label": " · ".join(filter(None, (row["row"], row["group"], row["condition"]))), "column": row["column"],
            "paper": "–" if printed is None else f"{printed:g}", "ours": _number(row["ours"], digits),
            "interval": _interval(row["low"], row["high"], digits), "n": "" if n is None else f"{int(n):,}",
            "seeds": row["seeds"] or "", "kind": row["kind"], "status": row["status"], "why": row["why"],
            "command": row["command"] or "",
        })  # fmt: skip
    return made


def _verdict(row: dict) -> dict:
    told = {name: None if pd.isna(row[name]) else row[name] for name in ("published", "difference", "low", "high")}
    return {
        "name": row["name"], "table": row["table"], "verdict": row["verdict"],
        "decoders": row["decoders"],
        "paper": "" if told["published"] is None else f"{told['published']:+.1f}",
        "ours": "" if told["difference"] is None else f"{told['difference']:+.1f}",
        "interval": _interval(told["low"], told["high"], 1, "+"),
        "seeds": "" if pd.isna(row["seeds"]) else int(row["seeds"]),
    }  # fmt: skip


def _number(value, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(low, high, digits: int, sign: str = "") -> str:
    return "" if low is None else f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
