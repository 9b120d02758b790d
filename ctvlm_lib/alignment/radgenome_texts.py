"""Enriched texts of CT-RATE and RadGenome-ChestCT, from what their own tables say.

MedVista3D has a chat model rewrite reports and region sentences as presence-or-absence statements; its rewrites aren't
public. Here the statements are made from what the data sets' own tables say of the text:

    "labels"   a report from CT-RATE's 18 labels, a region's sentences from RadGenome-ChestCT's table of presences
    "none"     the original texts
    FILE       a user's own rewrites, as JSON: {original: rewrite, …}

A text that the tables or the file say nothing of stays as it is, and is counted. The labels' statements name just what
zero-shot detection asks for, in the same words; with "labels" it is zero-shot in name only, and the record says so.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ctvlm_lib.alignment.enrichment import absent
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.zero_shot import text_pairs
from ctvlm_lib.records.ct_rate import LABELS
from ctvlm_lib.records.table import read_json

ENRICHED = ("labels", "none")


def report_by_labels(labels: Sequence[bool]) -> str:
    """A report as statements: each of CT-RATE's 18 labels that it has, then one sentence on those it doesn't have."""
    said = [sentence for sentence, there in zip(text_pairs(LABELS)[0], labels, strict=True) if there]
    never = [label[0].lower() + label[1:] for label, there in zip(LABELS, labels, strict=True) if not there]
    return " ".join([*said, absent(never)] if never else said)


def region_by_presences(region: str, presences: Iterable[tuple[str, bool]]) -> str:
    """A region's sentences as statements, what is there first; "" if nothing is known.

    Args:
        region: its name.
        presences: findings, as the table words them, and whether they are there; one that is both is there.
    """
    known: dict[str, bool] = {}
    for finding, there in presences:
        known[finding] = known.get(finding, False) or there
    in_order = sorted(known, key=lambda finding: not known[finding])
    return " ".join(f"The {region} shows {'' if known[finding] else 'no '}{finding}." for finding in in_order)


def rewrites_of(path: str | Path) -> dict[str, str]:
    """A user's rewrites: original → rewrite.

    Raises:
        BadInput: no such file, or it holds something else.
    """
    found = read_json(Path(path), dict)
    wrong = next((k for k, v in found.items() if not isinstance(v, str) or not v.strip()), None)
    if wrong is not None:
        raise BadInput(f"{Path(path).name} has no rewrite of {wrong[:60]!r}; give a text for each, or leave it out")
    return found
