"""What finished arms left, as tables over seeds; needs neither models nor data."""

import re
from collections.abc import Iterable
from pathlib import Path

from ctvlm_lib.damaged import read_csv
from ctvlm_lib.errors import BadInput

RESULTS = Path(__file__).resolve().parents[2] / "data_samples" / "results" / "full"
FACTS = "retrieval-by-facts"  # an arm without a network: readers who know facts of a patient and see no image


def of_seed(name: str, seed: int) -> str:
    """Name of an arm's folder for a seed: seed 0 has the bare name."""
    return name if seed == 0 else f"{name}-seed{seed}"


def name_and_seed(folder: str) -> tuple[str, int]:
    """Arm and seed of a folder's name: the inverse of :func:`of_seed`."""
    name, seed = re.fullmatch(r"(.+?)(?:-seed(\d+))?", folder).groups()
    return name, int(seed or 0)


def ceilings(encoders: Iterable[str], results: str | Path = RESULTS) -> str:
    """What could be reached on encoders' features, as one line that stands under tables of what decoders reached.

    Args:
        encoders: arms whose records hold a ceiling, see :func:`ctvlm_lib.alignment.ceiling.ceiling`.
        results: folder with a folder for each arm.

    Raises:
        BadInput: a record that isn't there or holds no ceiling.
    """
    from ctvlm_lib.records.table import read_json  # brings imaging packages along, which `ctvlm arm cost` may lack

    told = []
    for name in encoders:
        try:
            found = read_json(Path(results) / name / "record.json", dict)["test"]["ceiling"]
            percent = [f"{100 * found[key]:.1f}" for key in ("four_way", "low", "high")]
        except (KeyError, TypeError) as error:
            raise BadInput(f"the record of {name} holds no ceiling ({error}); run `ctvlm arm {name}` again") from None
        told.append("{} {} ({} to {})".format(name, *percent))
    return f"ceiling of the four-way finding, % by encoder: {', '.join(told)}"


def table(name: str, results: str | Path = RESULTS, split: str = "test"):
    """The recalls of all seeds of an arm, as stored.

    Args:
        name: of the arm.
        results: folder with a folder for each arm and seed.
        split: "validation" or "test".

    Returns:
        pandas table: arm, seed, then the stored columns (direction, gallery, k, recall, low, high, …, ceiling).

    Raises:
        BadInput: no result of this arm is there.
    """
    import pandas as pd

    there = {name_and_seed(path.parent.name): path for path in Path(results).glob(f"[!.]*/{split}.csv")}
    seeds = sorted(seed for arm, seed in there if arm == name)
    if not seeds:
        known = ", ".join(sorted({arm for arm, _ in there})) or "none"
        raise BadInput(f"there are no {split} results of an arm {name!r}; there are results of {known}")
    parts = [read_csv(there[name, seed], ("direction", "gallery", "k", "recall")) for seed in seeds]
    parts = [part.assign(arm=name, seed=seed) for part, seed in zip(parts, seeds, strict=True)]
    whole = pd.concat(parts, ignore_index=True)
    return whole[["arm", "seed", *(c for c in whole if c not in ("arm", "seed"))]]


def over_seeds(rows, value: str = "recall"):
    """Mean, smallest and largest over the seeds of one or several arms.

    Args:
        rows: of :func:`table`; of several arms concatenated.
        value: which column, e.g. "recall" or "ceiling".

    Returns:
        pandas table: arm, direction, gallery, k, then seeds, mean, low, high. Range of points, not an interval.
    """
    by = ["arm", *(c for c in ("split", "counted") if c in rows), "direction", "gallery", "k"]
    found = rows.groupby(by, sort=False)[value].agg(seeds="count", mean="mean", low="min", high="max")
    return found.reset_index()
