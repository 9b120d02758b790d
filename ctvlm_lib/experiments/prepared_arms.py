"""The volumes that an arm of profile paper keeps, made ready ahead of it through Dask, on as many machines as wished.

``ctvlm arm`` makes them ready itself, in threads, while its GPUs wait. What is made here it finds and keeps; it makes
what is lacking. Both call the same function for a volume: :meth:`ctvlm_lib.alignment.radgenome_volumes.Volumes.prepare`
or :meth:`ctvlm_lib.experiments.uvlm_real_data.Volumes.prepare`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput
from ctvlm_lib.made_once import sweep
from ctvlm_lib.sources import Sources


class Maker(Protocol):
    """What makes volumes ready and keeps them."""

    def prepare(self, item) -> tuple[str, tuple[str, ...]]:
        """Why it can't be used, "" if it can; and notes."""

    def files(self, item) -> list[Path]:
        """All that is kept of it."""


@dataclass(frozen=True)
class Case:
    """A volume, and what is made of it.

    Attributes:
        name: of the volume.
        parts: for each stage that reads it what makes it ready, and the volume as that takes it.
    """

    name: str
    parts: tuple[tuple[Maker, object], ...]


def prepare_all(
    arm: str, given: Sources, *, workers: int = 2, scheduler: str | None = None, say: Callable[[str], None] = print
) -> tuple[list[dict], Path]:
    """Make all volumes of an arm ready, of all splits and of the arms that it begins with.

    Args:
        arm: one of ``ctvlm arm``'s that keep volumes, ``align-…`` or ``uvlm-…``.
        given: where data lie, and the folder for what is made.
        workers, scheduler, say: see :func:`ctvlm_lib.many.run_all`.

    Returns:
        One row a volume, in the order of their names: case, status (``done``, ``kept`` or ``failed``), notes, error,
        seconds, peak_mb; and the table that holds them, in that folder.

    Raises:
        BadInput: an arm that keeps no volumes, no folder, or data that can't be listed.
    """
    cases = cases_of(arm, given)
    table = Path(given.prepared) / f"prepare-{arm}.csv"
    return many.run_all(cases, _one, _blank, table, workers=workers, scheduler=scheduler, say=say), table


def cases_of(arm: str, given: Sources) -> list[Case]:
    """Which volumes an arm of profile paper reads; none is opened."""
    if not arm.startswith(("align-", "uvlm-")):
        raise BadInput(f"{arm} keeps no volumes; arms that do are called align-… and uvlm-…")
    if not given.prepared:
        raise BadInput("name a folder for volumes that are made ready in the sources file: [run] prepared = …")
    found: dict[str, list] = {}
    for maker, items in (_aligned if arm.startswith("align-") else _uvlm)(arm, given):
        for item in items:
            found.setdefault(item.name, []).append((maker, item))
    return [Case(name, tuple(found[name])) for name in sorted(found)]


def _aligned(arm: str, given: Sources):
    from ctvlm_lib.alignment import radgenome_pairs
    from ctvlm_lib.experiments import local_global_real, local_global_real_data

    config = local_global_real.config_of(arm, given)
    pairs = radgenome_pairs.read(given.folder("ct_rate"), given.folder("radgenome"), config)
    maker = local_global_real_data.volumes_of(config, given)
    return [(maker, split.each) for split in pairs.values()]


def _uvlm(arm: str, given: Sources):
    from ctvlm_lib.experiments.uvlm_real_listed import listed
    from ctvlm_lib.experiments.uvlm_real_options import chain

    for task in chain(arm, arm, given, 0, None):
        for split in listed(task.arm.stage, task.arm.granularity, task.scope, given, task.config).values():
            yield replace(split, scans=(), notes=()), split.scans  # which would be sent along with every case


def _one(case: Case) -> dict:
    """Make a volume ready in a worker, for every stage that reads it."""
    before, found = _times(case), []
    for maker, item in case.parts:
        for file in maker.files(item):
            sweep(file)
        found.append(maker.prepare(item))
    if problems := dict.fromkeys(why for why, _ in found if why):
        raise BadInput("; ".join(problems))
    notes = dict.fromkeys(note for _, notes in found for note in notes)
    return {"status": "kept" if _times(case) == before else "done", "notes": "; ".join(notes)}


def _times(case: Case) -> list[int | None]:
    """When what is kept of a volume was written, None for what isn't there."""
    files = [file for maker, item in case.parts for file in maker.files(item)]
    return [file.stat().st_mtime_ns if file.exists() else None for file in files]


def _blank(case: Case) -> dict:
    return {"case": case.name, "status": "failed", "notes": "", "error": ""}
