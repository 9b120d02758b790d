"""The primary contrasts of a paper, measured on stored answers and judged: what of its claims holds on the cohort."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from ctvlm_lib.alignment.scoring import Predictions
from ctvlm_lib.evaluate.paired import PairedDifference, paired_difference
from ctvlm_lib.experiments import uvlm_tables
from ctvlm_lib.experiments.local_global_tables import Store
from ctvlm_lib.ledger import chat, contrasts, local_global, uvlm
from ctvlm_lib.ledger.contrasts import Contrast
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.ledger.places import BATCH
from ctvlm_lib.ledger.quantities import ENCODER

COLUMNS = ("name", "table", "metric", "stratum", "published", "difference", "low", "high", "p after Holm", "seeds",
           "decoders", "detectable", "verdict")  # fmt: skip
UNMEASURED = "not measured yet"


def verdicts(paper: str, results: Results | None = None) -> pd.DataFrame:
    """All primary contrasts of a paper, those that can't be measured yet included.

    Args:
        paper: as in the list of contrasts; "workbook" for those that no paper has.
        results: of our arms; None reads those that ship with the workbook.

    Returns:
        COLUMNS; the paper's ``published`` difference in its unit, ours in points with an interval from the lowest to
        the highest end of the seeds' intervals; ``verdict`` is "same sign", "opposite" or "undetermined", and while
        seeds are missing how many there are; ``decoders``: the sizes that it was measured with.
    """
    from ctvlm_lib.experiments.vlm_contrasts import as_row, decoders, measure

    results = results or Results()
    if paper == local_global.PAPER:
        roots = tuple(results.roots)  # two protocols, and so two families
        found = pd.concat([local_global.verdicts(Store(roots)), chat.verdicts(roots)], ignore_index=True)
        found = found[found["table"] != ""].rename(columns={"measure": "metric"})
        return found.assign(stratum="", decoders="")[list(COLUMNS)]
    if paper == uvlm.PAPER:
        found = uvlm.verdicts(uvlm_tables.Store(tuple(results.roots)))
        found = found[found["table"] != ""].rename(columns={"measure": "metric"})
        return found.assign(stratum="", decoders="")[list(COLUMNS)]
    wanted = [one for one in contrasts.load() if one.primary and one.paper == paper]
    arms = [results.answers(path) for path in _folders(results, wanted)]
    found = {}
    for one in wanted:
        if one.metric == "retrieval":
            by_seed = recall_difference(one, results)
        else:
            by_seed = measure(one, arms, results.asked, ENCODER)
        if by_seed:
            found[one.name] = (one, by_seed)
    judged = dict(zip(found, contrasts.judge_all(found.values(), "full"), strict=True))
    rows = []
    for one in wanted:
        row = {"name": one.name, "table": one.table, "metric": one.metric, "stratum": one.stratum,
               "published": one.paper_difference, "decoders": "", "verdict": UNMEASURED}  # fmt: skip
        if one.name in judged:
            row |= as_row(one, judged[one.name], "full")
            row["decoders"] = "" if one.metric == "retrieval" else _told(decoders(one, arms, ENCODER))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def recall_difference(contrast: Contrast, results: Results | None = None) -> dict[int, PairedDifference]:
    """A retrieval contrast for each seed: R@1 among all test patients, mean of both directions, patient by patient."""
    results = results or Results()
    sides = [results.folders("{encoder}-{loss}-{0}".format(BATCH, **side)) for side in contrast.sides]
    found = {}
    for seed in sorted(set(sides[0]) & set(sides[1])):
        left, right = (Predictions.load(side[seed] / "test.safetensors").hits() for side in sides)
        found[seed] = paired_difference(left, right, {k: k for k in left})
    return found


def _folders(results: Results, wanted: Iterable[Contrast]) -> list[Path]:
    """Folders of the arms that some contrasts compare, a later root's in place of an earlier one's."""
    from ctvlm_lib.experiments.vlm_arms import ARMS, variant_of
    from ctvlm_lib.experiments.vlm_contrasts import VARIANT_OF_READER

    sides = [side for one in wanted if one.metric != "retrieval" for side in one.sides]
    variants = {side.get("projector") or VARIANT_OF_READER[side.get("reader", "model")] for side in sides}
    conditions = {side["condition"] for side in sides}
    found = []
    for name, config in ARMS.items():
        if config.encoder == ENCODER and config.condition in conditions and variant_of(name) in variants:
            found += results.folders(name).values()
    return found


def _told(sizes: Mapping[int, tuple[str, ...]]) -> str:
    """ "small"; with seeds that differ "small, middle (seed 0)"."""
    told = []
    for size in dict.fromkeys(size for those in sizes.values() for size in those):
        seeds = [str(seed) for seed, those in sizes.items() if size in those]
        told.append(size if len(seeds) == len(sizes) else f"{size} (seed {', '.join(seeds)})")
    return ", ".join(told)
