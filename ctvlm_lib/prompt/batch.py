"""Render many cases: Dask processes, progress with an estimate, resume, failures listed while the rest is finished."""

import csv
import glob
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ctvlm_lib import __version__
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.prompt.render import Style, check_output, parse_window, render

MASKS = ("segmentations", "labels.nii.gz")  # what may lie beside ct.nii.gz in a case's folder
TEXT_OPTIONS = ("style", "side", "box", "distractor")
NUMBER_OPTIONS = ("thickness", "seed")


@dataclass(frozen=True)
class Case:
    """One picture to render.

    Attributes:
        name: names the output; unique within a batch.
        ct, mask: paths as :func:`ctvlm_lib.prompt.render.render` takes them.
        roi: the region to outline.
        style: how to draw.
    """

    name: str
    ct: Path
    mask: Path
    roi: str
    style: Style


def find_cases(source: Path, roi: str | None, style: Style) -> list[Case]:
    """List the cases of a CSV or of a folder of case folders.

    A CSV has the columns ct, mask, roi and, if wished, name and any option of Style; its paths are relative to it.
    A case folder holds ``ct.nii.gz`` beside ``segmentations/`` or ``labels.nii.gz``.

    Raises:
        BadInput: a column is missing or misspelt, a row is incomplete, or two cases would write to one output.
    """
    try:
        cases = _from_csv(source, roi, style) if source.suffix.lower() == ".csv" else _from_folder(source, roi, style)
    except UnicodeDecodeError:
        raise BadInput(f"{source.name} is not UTF-8 text; save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{source} can't be read as a CSV: {reason}; give a file of cases") from error
    if not cases:
        raise BadInput(
            f"{source} holds no cases; a case is a row of the CSV, or a folder with ct.nii.gz and one of"
            f" {', '.join(MASKS)}"
        )
    outputs = [output_name(case) for case in cases]
    folded = [output.casefold() for output in outputs]  # macOS and Windows hold A and a for one name
    twice = sorted({o for o, same in zip(outputs, folded, strict=True) if folded.count(same) > 1})
    if twice:
        raise BadInput(f"{source.name} has several cases for the output {twice[0]}; give each row its own name")
    return cases


def _from_csv(source: Path, roi: str | None, style: Style) -> list[Case]:
    with open(source, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        known = {"name", "ct", "mask", "roi"} | {f.name for f in fields(Style)}
        columns = set(reader.fieldnames or ())
        needed = {"ct", "mask"} | (set() if roi else {"roi"})
        if needed - columns or columns - known:
            wrong = f"has unknown columns {sorted(map(str, columns - known))}"
            wrong = f"lacks {sorted(needed - columns)}" if needed - columns else wrong
            more = ", ".join(sorted(known - {"ct", "mask", "roi"}))
            raise BadInput(f"{source.name} {wrong}; the columns are ct, mask, roi and, if wished, {more}")
        return [_row_case(source, number, row, roi, style) for number, row in enumerate(reader, start=2)]


def _row_case(source: Path, number: int, row: dict, roi: str | None, style: Style) -> Case:
    given = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    if not (given["ct"] and given["mask"] and (given.get("roi") or roi)):
        raise BadInput(f"{source.name} line {number} needs ct, mask and roi")
    options = {key: given[key] for key in TEXT_OPTIONS if given.get(key)}
    try:
        options |= {key: int(given[key]) for key in NUMBER_OPTIONS if given.get(key)}
        options |= {"window": parse_window(given["window"])} if given.get("window") else {}
        mine = replace(style, **options)
    except ValueError as error:
        raise BadInput(f"{source.name} line {number}: {error}") from None
    ct, mask = (source.parent / given[key] for key in ("ct", "mask"))
    name = given.get("name") or ct.name.removesuffix(".gz").removesuffix(".nii")
    return Case(name, ct, mask, given.get("roi") or roi, mine)


def _from_folder(source: Path, roi: str | None, style: Style) -> list[Case]:
    if roi is None:
        raise BadInput(f"which region shall be outlined in the cases of {source}? give --roi NAME")
    cases = []
    for ct in sorted(source.glob("*/ct.nii.gz")):
        masks = [ct.parent / name for name in MASKS if (ct.parent / name).exists()]
        cases.append(Case(ct.parent.name, ct, masks[0] if masks else ct.parent / MASKS[0], roi, style))
    return cases


def output_name(case: Case) -> str:
    """What a case's output is called, without suffix: what no file system takes in a name becomes ``-``."""
    return "_".join(re.sub(r'[\s\\/:*?"<>|]', "-", part) for part in (case.name, case.roi, case.style.style))


def render_all(
    cases: list[Case], out: Path, kind: str = "rgb", *, workers: int = 2, scheduler: str | None = None,
    names=None, check=True, force=False, say: Callable[[str], None] = print,
) -> list[dict]:  # fmt: skip
    """Render every case into ``out``; a case that fails is listed and the rest is finished.

    An output that was made from the same inputs with the same options is kept, so an interrupted batch goes on where it
    stopped. A table of what happened is written to ``out/render.csv``.

    Args:
        cases: from :func:`find_cases`.
        out: output folder.
        kind: ``rgb``, ``label`` or ``png``.
        workers: local processes.
        scheduler: address of a running Dask scheduler, instead of local processes.
        names, check, force: see :func:`ctvlm_lib.prompt.render.render`.
        say: takes each line of progress.

    Returns:
        One record a case, in the order of ``cases``: case, roi, style, status (``done``, ``kept`` or ``failed``), out,
        prompt, error.
    """
    from dask.distributed import as_completed

    with atomic_path(out / "render.csv") as table:  # an unwritable folder is found before anything is read
        begun = time.monotonic()
        records: dict[int, dict] = {}
        with _workers(min(workers, len(cases)), scheduler) as client:
            options = {"out": out, "kind": kind, "names": names, "check": check, "force": force}
            jobs = {client.submit(_one, case, **options, pure=False): number for number, case in enumerate(cases)}
            for done in as_completed(jobs):
                lost = done.exception()  # of the worker, e.g. ended for its memory; what a case raises is in its record
                record = _record(cases[jobs[done]], error=f"its worker was lost: {lost}") if lost else done.result()
                records[jobs[done]] = record
                left = (time.monotonic() - begun) / len(records) * (len(cases) - len(records))
                problem = f": {record['error']}" if record["error"] else ""
                count = f"[{len(records)}/{len(cases)}]"
                say(f"{count} {record['case']} {record['status']}{problem}  (about {left:.0f} s left)")
        rows = [records[number] for number in range(len(cases))]
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return rows


@contextmanager
def _workers(count: int, scheduler: str | None):
    """A client of the running scheduler, or of local processes that end with the block."""
    from dask.distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise BadInput(f"no Dask scheduler answers at {scheduler}: {error}; start one, or leave it out") from error
        with client:
            yield client
        return
    if count < 1:
        raise BadInput(f"a batch needs at least one worker, got {count}")
    # any free port for the dashboard: the usual one may be taken by another batch
    # and no log of the workers': at the end a heartbeat may find the scheduler gone, and a lost one is in the table
    local = {"threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0, "silence_logs": 50}
    with LocalCluster(n_workers=count, **local) as cluster, Client(cluster) as client:
        yield client


def _one(case: Case, out: Path, kind: str, names, check: bool, force: bool) -> dict:
    """Render one case in a worker; every failure becomes a record, so that the batch goes on."""
    target = out / (output_name(case) + ("" if kind == "png" else ".nii.gz"))
    record = _record(case)
    try:
        note = out / "records" / f"{output_name(case)}.{kind}.json"
        key = _key(case, kind, names)
        kept = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        if target.exists() and kept.get("key") == key and not force:
            return record | {"status": "kept", "out": target.name, "prompt": kept["prompt"]}
        check_output(target, kind, force or "begun" in kept)
        _sweep(target)
        _write_note(note, {"begun": key})  # a batch killed between picture and note knows the picture as its own
        try:
            made = render(case.ct, case.mask, case.roi, target, kind, case.style, names=names, check=check, force=True)
        except BaseException:
            _write_note(note, kept)  # an older picture is still what its note says
            raise
        _write_note(note, {"key": key, **made})
        return record | {"status": "done", "out": target.name, "prompt": made["prompt"]}
    except BadInput as error:
        return record | {"error": str(error)}
    except Exception as error:  # a broken case must not stop the others; its kind is told
        return record | {"error": f"{type(error).__name__}: {error}"}


def _sweep(target: Path) -> None:
    """Remove what a worker that was killed has half-written of this output."""
    for stale in target.parent.glob(f".*.partial.{glob.escape(target.name)}"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _record(case: Case, error: str = "") -> dict:
    """A case's row of the table, as long as nothing was rendered."""
    row = {"case": case.name, "roi": case.roi, "style": case.style.style, "status": "failed"}
    return row | {"out": "", "prompt": "", "error": error}


def _write_note(path: Path, content: dict) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _key(case: Case, kind: str, names) -> str:
    """What the output depends on: options, the inputs' sizes and times, and this library's version."""
    inputs = []
    for path in (case.ct.resolve(), case.mask.resolve()):  # the same file, however it is spelt
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        inputs += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    text = json.dumps([case.name, case.roi, asdict(case.style), kind, str(names), inputs, __version__])
    return hashlib.sha256(text.encode()).hexdigest()
