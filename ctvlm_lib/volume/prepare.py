"""Bring many volumes to a paper's input recipe and store each: a training then reads arrays and resamples nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.made_once import key_of, make_once, safe_name
from ctvlm_lib.volume import cases as listing
from ctvlm_lib.volume.read import load
from ctvlm_lib.volume.recipe import RECIPES

TABLE = "prepare.csv"


@dataclass(frozen=True)
class Case:
    """One volume to prepare.

    Attributes:
        name: names the output; unique within a batch.
        ct: NIfTI file or DICOM folder.
    """

    name: str
    ct: Path


def find_cases(source: Path) -> list[Case]:
    """List the cases of a CSV or of a folder of case folders, each with a ``ct.nii.gz``.

    A CSV has the column ct and, if wished, name; its paths are relative to it. Columns mask and roi are passed over, so
    that a table of ``ctvlm render`` will do.

    Raises:
        BadInput: a column is missing or misspelt, a row is incomplete, or two cases would write to one output.
    """

    def of_row(number: int, cells: dict) -> Case:
        ct = source.parent / cells["ct"]
        return Case(listing.name_of(cells, ct), ct)

    def of_folder(ct: Path) -> Case:
        return Case(ct.parent.name, ct)

    return listing.list_cases(source, ("ct",), ("name", "mask", "roi"), of_row, of_folder, output_name)


def output_name(case: Case) -> str:
    """What a case's output is called."""
    return f"{safe_name(case.name)}.npy"


def prepare_all(
    cases: list[Case], out: Path, recipe: str = "Med3DVLM", *, workers: int = 2, scheduler: str | None = None,
    check=True, force=False, say: Callable[[str], None] = print,
) -> list[dict]:  # fmt: skip
    """Store every case as a recipe makes it; a case that fails is listed and the rest is finished.

    An output is an array of float16 ``(1, …)`` in the recipe's own axes, ``NAME.npy``: rounding moves values of ±1 by
    at most 1/4096. One of Med3DVLM's recipe is read by :func:`ctvlm_lib.records.m3d.load_array`, and so by the
    trainings of ``ctvlm arm … --data``, once ``M3D_Cap.json`` lists it. One that was made from the same file is kept,
    so an interrupted batch goes on where it stopped. A table of what happened is written to ``out/prepare.csv``.

    Args:
        cases: from :func:`find_cases`.
        out: output folder, for one recipe.
        recipe: a key of :data:`ctvlm_lib.volume.RECIPES`.
        workers, scheduler, say: see :func:`ctvlm_lib.many.run_all`.
        check: refuse values that can't be HU.
        force: replace an existing output.

    Returns:
        One row a case, in the order of ``cases``: case, recipe, status (``done``, ``kept`` or ``failed``), out, shape,
        notes, error, seconds, peak_mb.

    Raises:
        BadInput: no such recipe, or as ``run_all``.
    """
    if recipe not in RECIPES:
        raise BadInput(f"no recipe is called {recipe!r}; choose one of {', '.join(RECIPES)}")
    cases = [replace(case, ct=case.ct.absolute()) for case in cases]  # workers have working folders of their own
    one = partial(_one, out=out.absolute(), recipe=recipe, check=check, force=force)
    blank = partial(_blank, recipe=recipe)
    return many.run_all(cases, one, blank, out / TABLE, workers=workers, scheduler=scheduler, say=say)


def _one(case: Case, out: Path, recipe: str, check: bool, force: bool) -> dict:
    """Prepare one case in a worker."""
    target = out / output_name(case)
    note = out / "records" / f"{target.name}.json"

    def make() -> dict:
        volume = load(case.ct, check=check)
        array = RECIPES[recipe](volume)[0].astype(np.float16)
        if not np.isfinite(array).all():
            raise BadInput(f"{case.ct.name} gives values that are NaN or beyond 16 bits; look at how it was made")
        with atomic_path(target) as partial_file:
            np.save(partial_file, array, allow_pickle=False)
        return {"ct": str(case.ct), "recipe": recipe, "shape": array.shape, "notes": volume.notes}

    status, made = make_once(target, note, key_of((case.ct,), case.name, recipe, check), make, force)
    told = {"shape": "×".join(map(str, made["shape"][1:])), "notes": "; ".join(made["notes"])}
    return {"status": status, "out": target.name} | told


def _blank(case: Case, recipe: str) -> dict:
    """A case's row of the table, as long as nothing was prepared."""
    row = {"case": case.name, "recipe": recipe, "status": "failed"}
    return row | {"out": "", "shape": "", "notes": "", "error": ""}
