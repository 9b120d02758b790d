"""Render many cases: Dask processes, progress with an estimate, resume, failures listed while the rest is finished."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput
from ctvlm_lib.made_once import key_of, make_once, safe_name
from ctvlm_lib.prompt.render import Style, check_output, parse_window, render
from ctvlm_lib.volume import cases as listing

MASKS = ("segmentations", "labels.nii.gz")  # what may lie beside ct.nii.gz in a case's folder
TEXT_OPTIONS = ("style", "side", "box", "distractor")
NUMBER_OPTIONS = ("thickness", "seed")
TABLE = "render.csv"


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
    if roi is None and source.suffix.lower() != ".csv":
        raise BadInput(f"which region shall be outlined in the cases of {source}? give --roi NAME")
    needed = ("ct", "mask") if roi else ("ct", "mask", "roi")
    optional = ("name", *(f.name for f in fields(Style)), *(("roi",) if roi else ()))

    def of_row(number: int, cells: dict) -> Case:
        return _row_case(source, number, cells, roi, style)

    def of_folder(ct: Path) -> Case:
        masks = [ct.parent / name for name in MASKS if (ct.parent / name).exists()]
        return Case(ct.parent.name, ct, masks[0] if masks else ct.parent / MASKS[0], roi, style)

    beside = f" and one of {', '.join(MASKS)}"
    return listing.list_cases(source, needed, optional, of_row, of_folder, output_name, beside)


def _row_case(source: Path, number: int, given: dict, roi: str | None, style: Style) -> Case:
    options = {key: given[key] for key in TEXT_OPTIONS if given.get(key)}
    try:
        options |= {key: int(given[key]) for key in NUMBER_OPTIONS if given.get(key)}
        options |= {"window": parse_window(given["window"])} if given.get("window") else {}
        mine = replace(style, **options)
    except ValueError as error:
        raise BadInput(f"{source.name} line {number}: {error}") from None
    ct, mask = (source.parent / given[key] for key in ("ct", "mask"))
    return Case(listing.name_of(given, ct), ct, mask, given.get("roi") or roi, mine)


def output_name(case: Case) -> str:
    """What a case's output is called, without suffix."""
    return safe_name(case.name, case.roi, case.style.style)


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
        workers, scheduler, say: see :func:`ctvlm_lib.many.run_all`.
        names, check, force: see :func:`ctvlm_lib.prompt.render.render`.

    Returns:
        One row a case, in the order of ``cases``: case, roi, style, status (``done``, ``kept`` or ``failed``), out,
        prompt, error, seconds, peak_mb.
    """
    # a scheduler's workers have working folders of their own
    cases = [replace(case, ct=case.ct.absolute(), mask=case.mask.absolute()) for case in cases]
    one = partial(_one, out=out.absolute(), kind=kind, names=names, check=check, force=force)
    return many.run_all(cases, one, _blank, out / TABLE, workers=workers, scheduler=scheduler, say=say)


def _one(case: Case, out: Path, kind: str, names, check: bool, force: bool) -> dict:
    """Render one case in a worker."""
    target = out / (output_name(case) + ("" if kind == "png" else ".nii.gz"))
    note = out / "records" / f"{output_name(case)}.{kind}.json"

    def make() -> dict:
        return render(case.ct, case.mask, case.roi, target, kind, case.style, names=names, check=check, force=True)

    status, made = make_once(target, note, _key(case, kind, names), make, force, partial(check_output, target, kind))
    return {"status": status, "out": target.name, "prompt": made["prompt"]}


def _blank(case: Case) -> dict:
    """A case's row of the table, as long as nothing was rendered."""
    row = {"case": case.name, "roi": case.roi, "style": case.style.style, "status": "failed"}
    return row | {"out": "", "prompt": "", "error": ""}


def _key(case: Case, kind: str, names) -> str:
    """What the output depends on."""
    return key_of((case.ct, case.mask), case.name, case.roi, asdict(case.style), kind, str(names))
