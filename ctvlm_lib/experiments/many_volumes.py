"""What several processes bring: the same pictures rendered with one and with two, timed, compared byte by byte."""

import csv
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from ctvlm_lib.many import local_workers
from ctvlm_lib.prompt.batch import find_cases, render_all
from ctvlm_lib.prompt.render import Style
from ctvlm_lib.records.phantom import patient

REGIONS = ("liver", "spleen", "heart", "aorta")


def side_by_side(
    processes: Sequence[int] = (1, 2), cases: int = 12, shape: tuple[int, int, int] = (64, 160, 160)
) -> pd.DataFrame:
    """Render phantoms of which each has four prompts, with different numbers of processes.

    Args:
        processes: how many, one row each.
        cases: pictures.
        shape: (D, H, W) voxels of each CT; a phantom of 32×64×64 is enlarged.

    Returns:
        ``processes``; ``start s``, until they have imported what they need; ``seconds`` for all pictures;
        ``cases/s``; ``peak MB``, the most that one of them held; ``pictures``, the first letters of a hash of all
        files' bytes, which are the same if the pictures are.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        listed = find_cases(write_cases(folder / "cases", cases, shape), None, Style())
        return pd.DataFrame([_timed(listed, count, folder / f"{count}") for count in processes])


def write_cases(folder: Path, cases: int, shape: tuple[int, int, int]) -> Path:
    """Phantoms as NIfTI files with their labels, and a CSV that asks for so many pictures of them; returns the CSV."""
    rows = []
    for index in range(-(-cases // len(REGIONS))):
        drawn = patient(index)
        volume = drawn.volume.resize(shape)
        ct, mask = folder / f"{index}.nii.gz", folder / f"{index}_labels.nii.gz"
        volume.save(ct)
        drawn.labels.to(volume).save(mask)
        rows += [(f"{index}", ct.name, mask.name, region) for region in REGIONS]
    table = folder / "cases.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "ct", "mask", "roi"), *rows[:cases]])
    return table


def digest(folder: Path) -> str:
    """Hash of the names and bytes of all pictures in a folder."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.nii.gz")):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def _timed(cases: list, count: int, out: Path) -> dict:
    from dask.distributed import Client

    begun = time.monotonic()
    with local_workers(count) as cluster:
        with Client(cluster) as client:
            client.run(_ready)
        ready = time.monotonic()
        rows = render_all(cases, out, scheduler=cluster.scheduler_address, say=lambda line: None)
        seconds = time.monotonic() - ready
    return {
        "processes": count, "start s": round(ready - begun, 1), "seconds": round(seconds, 2),
        "cases/s": round(len(rows) / seconds, 2), "peak MB": max(row["peak_mb"] for row in rows),
        "pictures": digest(out)[:12],
    }  # fmt: skip


def _ready() -> bool:
    """Imports, in a process that has just started, this module and with it what rendering needs."""
    return True
