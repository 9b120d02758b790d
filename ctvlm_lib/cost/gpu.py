"""``ctvlm arm cost``: time and memory on a GPU, of whole models around four decoders and of the encoder's layouts.

The record has every measurement, and under "measured" those that the papers make claims about, by the names of
``paper_claims.csv``; the ledger reads it from there. It is written again after each model, so that a run that is cut
short leaves what it has. Nothing of medical imaging is imported: PyTorch, transformers and peft are enough.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.checkpoints import circumstances
from ctvlm_lib.cost import ARM, trials
from ctvlm_lib.cost.timing import MEASURED
from ctvlm_lib.cost.trials import ANSWER, BOTH, FORWARD, STEP, Plan
from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import claims
from ctvlm_lib.ledger.claims import RECORD
from ctvlm_lib.run import run_folder, write_json

if TYPE_CHECKING:
    import pandas

SMALLEST, MIDDLE, LARGEST = "Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B"
DRAWING = "seconds to draw a contour"  # of a CPU, measured whenever the ledger is made
PAPERS_BATCH = 4  # contour.txt §4: peak memory is told for it
COLUMNS = ("what", "model", "batch", "checkpointing", "compiled", "seconds", "seconds, ratio", "peak, GB",
           "peak, ratio", "reserved, GB", "status")  # fmt: skip


def waits_for() -> list[str]:
    """Names of what the papers claim and only a GPU can show, as ``paper_claims.csv`` has them."""
    names = dict.fromkeys(claim.name for claim in claims.load() if claim.kind == "measured")
    return [name for name in names if name != DRAWING]


def check_gpu() -> None:
    """Raise BadInput unless PyTorch sees a GPU."""
    if not torch.cuda.is_available():
        waiting = ", ".join(repr(name) for name in waits_for())
        raise BadInput(
            f"`ctvlm arm {ARM}` measures on an NVIDIA GPU, and PyTorch {torch.__version__} sees none here, so the"
            f" papers' claims about {waiting} still wait; run the same command on a machine with a GPU and a CUDA"
            " build of PyTorch"
        )


def run(
    path: str | Path,
    plan: Plan | None = None,
    device: torch.device | str = "cuda",
    seed: int = 0,
    profile: str = "full",
    progress: Callable[[str], None] = print,
) -> dict:
    """Measure everything and write the record, again after each model.

    Args:
        path: of the record; what is there is replaced.
        plan: how much; None takes the papers' sizes.
        device: on a CPU there is no memory to tell.
        seed: of the random weights. profile: entered into the record.
        progress: is told each row.

    Returns:
        the record: "measured" (name → value, unit, hardware, what), "trials" (rows of
        :func:`ctvlm_lib.cost.trials.row`), "plan", "finished", profile, seed, device, made, commit, hardware, versions,
        seconds.

    Raises:
        BadInput: the record can't be written.
    """
    plan, start = plan or Plan(), time.perf_counter()
    record = circumstances({}) | {"profile": profile, "seed": seed, "device": torch.device(device).type}
    del record["curves"]
    record |= {"plan": plan.described(), "finished": False, "trials": []}
    for rows in _groups(plan, device, seed):
        for row in rows:
            record["trials"].append(row)
            progress(_line(row))
        record["measured"] = measurements(record["trials"], record["hardware"])
        record["seconds"] = round(time.perf_counter() - start)
        write_json(Path(path), record)
    record["finished"] = True
    write_json(Path(path), record)
    return record


def measurements(rows: Sequence[dict], hardware: str) -> dict[str, dict]:
    """What the papers make claims about, as far as it was measured.

    Args:
        rows: of a record's trials. hardware: that they were measured on.

    Returns:
        name of a claim → value, unit, hardware, and what in words. What didn't fit or has no memory is left out.
    """
    found = {}
    for name, (make, unit, what) in _CLAIMED.items():
        value = make(rows)
        if value is not None:
            found[name] = {"value": value, "unit": unit, "hardware": hardware, "what": what}
    return found


def table(path: str | Path = RECORD) -> "pandas.DataFrame":
    """A record's measurements with their ratios to 7B, or an empty table where nothing was measured yet.

    Args:
        path: of the record.

    Returns:
        COLUMNS; ratios are to the same with the 7B decoder, of the encoder to the released layout as it is.

    Raises:
        BadInput: a file of another form.
    """
    import json

    import pandas

    path = Path(path)
    if not path.exists():
        return pandas.DataFrame(columns=list(COLUMNS))
    claims.measurements(path)  # refuses what is no record
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["trials"]
        return pandas.DataFrame([_with_ratios(row, rows) for row in rows], columns=list(COLUMNS))
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path.name} has no trials ({error}); measure again with `ctvlm arm {ARM}`") from None


def command(seed: int, profile: str, out: str) -> int:
    """Run ``ctvlm arm cost``.

    Args:
        seed: of the random weights. profile: entered into the record.
        out: output folder; "" replaces the record that the ledger reads.
    """
    check_gpu()
    home = run_folder(profile, out) / "results" if out else RECORD.parents[1]
    path = home / of_seed(ARM, seed) / RECORD.name
    record = run(path, seed=seed, profile=profile)
    print(table(path).round(4).to_string(index=False))
    for name, one in record["measured"].items():
        print(f"{name}: {one['value']:.3g} {one['unit']} ({one['what']})")
    print(f"on {record['hardware']}, {record['seconds']} s; record in {path}")
    return 0


def _groups(plan: Plan, device, seed: int) -> Iterable[Iterable[dict]]:
    """The smallest model first, so that a small GPU has shown something before memory runs out."""
    for name in plan.decoders:
        yield trials.of_decoder(name, plan, device, seed)
    yield trials.of_encoder(plan, device, seed)


# what is claimed
def _value(rows: Sequence[dict], column: str, what: str, model: str, batch: int, checkpointing=None) -> float | None:
    wanted = (what, model, batch, checkpointing)
    found = (row[column] for row in rows if (row["what"], row["model"], row["batch"], row["checkpointing"]) == wanted)
    return next(found, None)


def _saved(rows: Sequence[dict]) -> float | None:
    large, small = (_value(rows, "peak, GB", ANSWER, model, 1) for model in (LARGEST, SMALLEST))
    return None if large is None or small is None else large - small


def _latency(rows: Sequence[dict]) -> float | None:
    middle, large = (_value(rows, "seconds", ANSWER, model, 1) for model in (MIDDLE, LARGEST))
    return None if middle is None or large is None else middle / large


def _training(rows: Sequence[dict]) -> float | None:
    return _value(rows, "peak, GB", STEP, MIDDLE, PAPERS_BATCH, False)


_CLAIMED = {
    "memory saved, 0.5B for 7B": (_saved, "GB", "peak of an answer to one question, whole model"),
    "latency, 1.5B over 7B": (_latency, "ratio", "seconds of an answer to one question, whole model"),
    "peak training memory, 1.5B": (_training, "GB", f"peak of a LoRA step of {PAPERS_BATCH} rows, no checkpointing"),
}


# rows in words and beside the largest
def _with_ratios(row: dict, rows: Sequence[dict]) -> dict:
    of_model = row["what"] not in (FORWARD, BOTH)
    alike = ("what", "batch", "checkpointing") if of_model else ("what", "batch")
    base = {"model": LARGEST} if of_model else {"model": trials.RELEASED, "compiled": False}
    wanted = {key: row[key] for key in alike} | base
    first = next((one for one in rows if all(one[key] == value for key, value in wanted.items())), {})
    return row | {"seconds, ratio": _ratio(row, first, "seconds"), "peak, ratio": _ratio(row, first, "peak, GB")}


def _ratio(row: dict, first: dict, column: str) -> float | None:
    return None if row[column] is None or not first.get(column) else row[column] / first[column]


def _line(row: dict) -> str:
    told = [row["model"], row["what"], f"batch {row['batch']}"]
    told += ["checkpointing"] * bool(row["checkpointing"]) + ["compiled"] * bool(row["compiled"])
    if row["status"] != MEASURED:
        return f"{', '.join(told)}: {row['status']}"
    memory = "" if row["peak, GB"] is None else f", {row['peak, GB']:.2f} GB"
    return f"{', '.join(told)}: {row['seconds']:.4f} s{memory}"
