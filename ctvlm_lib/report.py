"""The report page of a run: what ran, its tables and figures, links to the executed notebooks, how to repeat it."""

import csv
import json
from pathlib import Path

from ctvlm_lib import notebook_outputs as outputs
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.html_page import write_page
from ctvlm_lib.notebook_progress import duration

MAX_ROWS = 200  # of a table on the page; the CSV beside it is complete
MARKS = {"ok": "done", "up to date": "done", "failed": "failed", "skipped": "skipped"}


def build(folder: Path) -> Path:
    """Write ``report/index.html`` from run.json and what the notebooks have left in a run's folder.

    The page needs no network: styles are in it, figures and executed notebooks are relative links.

    Args:
        folder: ``DIR/<profile>``.

    Returns:
        The page's path.

    Raises:
        BadInput: the folder has no run.json, or can't be written to.
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise BadInput(f"{folder} holds no run.json that can be read; run the notebooks first") from error
    try:
        notebooks = [_section(folder, number, entry) for number, entry in sorted(record["notebooks"].items())]
        facts = _facts(record)
    except (OSError, LookupError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise BadInput(
            f"{folder} holds a run.json, index or table that no notebook wrote so ({type(error).__name__}: {error});"
            " run the notebooks again"
        ) from error
    ledger = "ledger.html" if (folder / "report" / "ledger.html").is_file() else ""
    return write_page(
        folder / "report" / "index.html", Path(__file__).parent / "report_page.html", record=record,
        facts=facts, notebooks=notebooks, max_rows=MAX_ROWS, ledger=ledger,
    )  # fmt: skip


def _section(folder: Path, number: str, entry: dict) -> dict:
    """Return what the page shows of one notebook."""
    try:
        index = json.loads((folder / "figures" / f"{number}_index.json").read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        index = {}
    html = outputs.html_path(folder, entry["name"])
    captions = {item["file"]: item["caption"] for item in index.get("tables", {}).values()}
    seconds, peak = entry.get("seconds"), entry.get("peak_bytes")
    return entry | {
        "number": number,
        "mark": MARKS.get(entry["status"], "pending"),
        "time": duration(seconds) if seconds is not None else "–",
        "memory": f"{peak / 1e9:.1f} GB" if peak else "–",
        "link": f"../html/{html.name}" if html.exists() else None,
        "tables": [_table(folder, file, captions.get(file, "")) for file in outputs.tables(folder, number)],
        "figures": [item for item in index.get("figures", {}).values() if (folder / item["file"]).exists()],
        "data": list(index.get("data", {}).values()),
    }


def _table(folder: Path, file: str, caption: str) -> dict:
    with open(folder / file, encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream)) or [[]]
    body = rows[1:]
    numeric = [all(_is_number(row[i]) for row in body if i < len(row)) for i in range(len(rows[0]))]
    return {
        "file": file,
        "caption": caption or Path(file).stem[3:].replace("_", " "),
        "head": rows[0],
        "body": body[:MAX_ROWS],
        "left_out": max(len(body) - MAX_ROWS, 0),
        "numeric": numeric,
    }


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _facts(record: dict) -> list[tuple[str, str]]:
    """Return the environment as rows of name and value."""
    made = record["environment"]
    packages = ", ".join(f"{name} {version or 'absent'}" for name, version in made["packages"].items())
    return [
        ("profile, seed", f"{record['profile']}, {record['seed']}"),
        ("written", made["written"]),
        ("ctvlm", made["ctvlm"]),
        ("commit", made["commit"] or "not known (no git repository)"),
        ("device", f"{made['device']} ({made['device_why']})"),
        ("machine", f"{made['platform']}, {made['cpu_count']} CPU cores"),
        ("Python", made["python"]),
        ("packages", packages),
        ("data manifest", f"sha256 {made['manifest_sha256'] or 'absent'}"),
    ]
