"""What runs that were finished left on record: seconds and memory of notebooks and cells, and the arms' throughput."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.alignment.arm_tables import RESULTS, name_and_seed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import PROJECT

if TYPE_CHECKING:
    import pandas

INJECTED = "injected-parameters"
KINDS = {  # what a record holds → its stage
    "local_global_protocol": "local–global alignment", "uvlm_protocol": "U-VLM", "chat_protocol": "chat model",
    "finetuning": "VLM",
}  # fmt: skip


def stored_throughput(results: str | Path = RESULTS) -> "pandas.DataFrame":
    """How fast the stored arms were trained, as their records say.

    Volumes a second where the record gives them or one batch size of whole volumes, else steps a second. Arms that
    trained nothing are left out. Most shared their machine's cores with others: the fastest of a stage comes nearest to
    what an idle core does.

    Args:
        results: folder with a folder for each arm and seed.

    Returns:
        A row an arm and seed: stage, arm, seed, rate (a second), unit ("volumes" or "steps"), steps, minutes, hardware.
    """
    import pandas as pd

    found = []
    for path in sorted(Path(results).glob("[!.]*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        row = _pretrained(record) if "volumes_per_s" in record else _trained(record)
        if row:
            arm, seed = name_and_seed(path.parent.name)
            found.append({"stage": row.pop("stage"), "arm": arm, "seed": seed} | row | {"hardware": record["hardware"]})
    return pd.DataFrame(found, columns=["stage", "arm", "seed", "rate", "unit", "steps", "minutes", "hardware"])


def by_stage(throughput: "pandas.DataFrame") -> "pandas.DataFrame":
    """Of :func:`stored_throughput`, a row a stage: arms, slowest, median and fastest rate, and their unit."""
    rates = throughput.groupby(["stage", "unit"], sort=False)["rate"]
    return rates.agg(arms="count", slowest="min", median="median", fastest="max").reset_index()


def _pretrained(record: dict) -> dict:
    config = record["config"]
    return {
        "stage": f"encoder pretraining, {config['encoder']}, batch {config['batch']}",
        "rate": record["volumes_per_s"], "unit": "volumes",
        "steps": config["training"]["steps"], "minutes": record["minutes"],
    }  # fmt: skip


def _trained(record: dict) -> dict | None:
    """Of a record with curves, whose last rows number the steps; None where nothing was trained."""
    kind = next((kind for kind in KINDS if kind in record), None)
    steps = sum(curve[-1]["step"] for curve in (record.get("curves") or {}).values() if curve)
    if not (kind and steps and record.get("seconds")):
        return None
    stage = KINDS[kind]
    if kind == "uvlm_protocol":
        stage += f", {record['arm']['stage']}"
    elif "finetuning" in record:
        stage += f", {record['finetuning']['decoder']} decoder, {record['finetuning']['pictures']} pictures a step"
    batch = record.get("recipe", {}).get("batch") if kind == "local_global_protocol" else None
    rate = steps * (batch or 1) / record["seconds"]
    return {
        "stage": stage, "rate": round(rate, 3), "unit": "volumes" if batch else "steps", "steps": int(steps),
        "minutes": round(record["seconds"] / 60, 2),
    }  # fmt: skip


def notebook_costs(folder: str | Path | None = None) -> "pandas.DataFrame":
    """Seconds and peak memory of each notebook: a run's own, or those that the committed notebooks state.

    Args:
        folder: of a run, with its ``run.json``, as ``run.folder`` is; None means the committed notebooks' measurements.

    Returns:
        A row a notebook: notebook, seconds, peak_gb (10⁹ bytes, the kernel's process and all below it).

    Raises:
        BadInput: the folder holds no record of a run.
    """
    import pandas as pd

    rows = []
    if folder is None:
        for path in sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            about = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("ctvlm", {})
            rows.append((path.stem, about.get("seconds"), about.get("peak_gb")))
    else:
        try:
            record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))["notebooks"]
        except OSError as error:
            raise BadInput(f"{folder} holds no run.json; give the folder of a run, for example out/quick") from error
        rows += [(one["name"], one["seconds"], one["peak_bytes"] / 1e9) for one in record.values() if "seconds" in one]
    return pd.DataFrame(rows, columns=["notebook", "seconds", "peak_gb"]).round(2)


def cell_seconds(path: str | Path) -> "pandas.DataFrame":
    """What each code cell of an executed notebook took, as papermill notes it.

    Args:
        path: an executed notebook, such as one of ``out/quick/notebooks``; the committed ones hold no times.

    Returns:
        A row a code cell: notebook, cell (its number from 1 in the notebook as it is committed), line (its first),
        seconds.

    Raises:
        BadInput: no notebook, or one without papermill's times.
    """
    import pandas as pd

    path = Path(path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path} can't be read as a notebook; give an executed one of out/quick/notebooks") from error
    rows = [(path.stem, *row) for row in _timed(cells)]
    if not rows:
        raise BadInput(f"{path.name} holds no times of its cells; give the copy that ctvlm run executed")
    return pd.DataFrame(rows, columns=["notebook", "cell", "line", "seconds"])


def _timed(cells: list[dict]) -> Iterator[tuple[int, str, float]]:
    """(number, first line, seconds) of each code cell that ran; the cell that papermill put in isn't counted."""
    own = [cell for cell in cells if INJECTED not in cell["metadata"].get("tags", [])]
    for number, cell in enumerate(own, start=1):
        seconds = cell["metadata"].get("papermill", {}).get("duration")
        if cell["cell_type"] == "code" and seconds is not None:
            source = "".join(cell["source"])
            line = re.search(r"^[^\S\n]*(\S.*)$", source, re.MULTILINE)
            yield number, line[1] if line else "", round(seconds, 2)


def where_the_seconds_go(folder: str | Path, top: int | None = None) -> "pandas.DataFrame":
    """The cells of all executed notebooks of a run, those that took longest first.

    Args:
        folder: of executed notebooks, ``out/quick/notebooks``.
        top: so many rows; None means all.

    Returns:
        As :func:`cell_seconds`, and share: percent of all cells' seconds.

    Raises:
        BadInput: the folder holds no executed notebooks.
    """
    import pandas as pd

    paths = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise BadInput(f"{folder} holds no executed notebooks; run the workbook first: make run")
    cells = pd.concat([cell_seconds(path) for path in paths], ignore_index=True)
    cells["share"] = (100 * cells["seconds"] / cells["seconds"].sum()).round(1)
    return cells.sort_values("seconds", ascending=False, kind="stable", ignore_index=True).head(top or len(cells))
