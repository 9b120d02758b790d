"""The protocol's contrasts, measured on the answers of trained vision–language models.

Both sides answered the same questions; a contrast over all decoders averages each question's score over the protocol's
sizes that were trained on both sides with the same seed. What can't be measured with the arms at hand is left out, and
counts as lost where contrasts are judged.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from ctvlm_lib.evaluate.paired import PairedDifference, equal_weights, paired_difference
from ctvlm_lib.evaluate.text_registry import METRICS
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.experiments.controls import MOVED
from ctvlm_lib.experiments.reliance import moved_rows
from ctvlm_lib.experiments.vlm_tables import ArmAnswers, pooled_kinds
from ctvlm_lib.ledger import contrasts
from ctvlm_lib.ledger.contrasts import Contrast, Verdict
from ctvlm_lib.records import protocol

VARIANT_OF_READER = {"model": "", "text only": "blind"}
MEAN = "mean"  # a contrast's kind: the plain mean over the table's kinds
_WITHIN = ("condition", "decoder", "control", "counted", "projector", "reader")  # what tells VLM arms apart


@dataclass(frozen=True)
class _Side:
    """Scores of one side: ids → score or sums, their patients and kinds."""

    scores: pd.Series | pd.DataFrame
    rows: pd.DataFrame
    of_sums: Callable | None = None


def measure(
    contrast: Contrast, arms: Sequence[ArmAnswers], asked: Asked, encoder: str = "B"
) -> dict[int, PairedDifference]:
    """A contrast's difference for each seed that has both sides.

    Args:
        contrast: of :func:`ctvlm_lib.ledger.contrasts.load`.
        arms: with scored answers. asked: the questions that they were asked, with findings.
        encoder: whose arms are compared.

    Returns:
        Seed → left minus right, in shares; {} where an arm is missing, or the contrast isn't about these models.
    """
    left, right = contrast.sides
    if contrast.metric == "retrieval" or (set(left) | set(right)) - set(_WITHIN):
        return {}
    own = [arm for arm in arms if arm.encoder == encoder]
    found = {}
    for seed in sorted({arm.seed for arm in own}):
        pairs = _pairs([arm for arm in own if arm.seed == seed], left, right)
        if pairs:
            sides = [
                _average([_side(contrast, arm, side, asked) for arm in those])
                for side, those in zip((left, right), zip(*pairs, strict=True), strict=True)
            ]
            if all(side is not None for side in sides):
                found[seed] = _difference(contrast, *sides)
    return found


def decoders(contrast: Contrast, arms: Sequence[ArmAnswers], encoder: str = "B") -> dict[int, tuple[str, ...]]:
    """Which sizes a contrast over all decoders could be measured with: seed → the left sides' decoders."""
    own = [arm for arm in arms if arm.encoder == encoder]
    pairs = {seed: _pairs([a for a in own if a.seed == seed], *contrast.sides) for seed in {a.seed for a in own}}
    return {seed: tuple(left.decoder for left, _ in those) for seed, those in sorted(pairs.items()) if those}


def judged(
    arms: Sequence[ArmAnswers], asked: Asked, profile: str, encoder: str = "B", only: Iterable[Contrast] | None = None
) -> pd.DataFrame:
    """All contrasts that the arms can measure, with verdicts.

    Args:
        arms, asked, encoder: as for :func:`measure`.
        profile: "quick" gives no verdict.
        only: of the contrasts; None takes all.

    Returns:
        ``name``, ``paper``, ``table``, ``stratum``, ``metric``, the paper's ``published`` difference in its unit,
        ``difference`` with ``low`` and ``high`` in points, ``p after Holm``, ``seeds``, ``detectable``, ``verdict``.
        While some of the protocol's seeds are missing, nothing is judged: the verdict says how many there are.
    """
    pairs = [(one, measure(one, arms, asked, encoder)) for one in (contrasts.load() if only is None else only)]
    pairs = [(one, found) for one, found in pairs if found]
    verdicts = contrasts.judge_all(pairs, profile)
    return pd.DataFrame([as_row(one, v, profile) for (one, _), v in zip(pairs, verdicts, strict=True)])


def as_row(one: Contrast, verdict: Verdict, profile: str) -> dict:
    """A judged contrast as a row of :func:`judged`."""
    planned = set(protocol.load().seeds(profile))
    early = one.primary and profile != "quick" and not planned <= set(verdict.seeds)
    return {
        "name": one.name, "paper": one.paper, "table": one.table, "stratum": one.stratum, "metric": one.metric,
        "published": one.paper_difference, "difference": 100 * verdict.value, "low": 100 * verdict.low,
        "high": 100 * verdict.high, "p after Holm": verdict.p_holm, "seeds": len(verdict.seeds),
        "questions": verdict.n, "patients": verdict.patients, "detectable": 100 * verdict.detectable,
        "verdict": f"{len(verdict.seeds)} of {len(planned)} seeds" if early else verdict.verdict,
    }  # fmt: skip


def _pairs(arms: Sequence[ArmAnswers], left: dict, right: dict) -> list[tuple[ArmAnswers, ArmAnswers]]:
    """The arms of both sides, one pair for each decoder of the protocol: SmolLM2 stands outside of what it fixed."""
    ladder = protocol.load().content["vlm"]["decoders"]
    sides = [{arm.decoder: arm for arm in arms if arm.decoder in ladder and _fits(arm, side)} for side in (left, right)]
    sizes = [side.get("decoder") for side in (left, right)]
    if any(size not in (None, "all") for size in sizes):
        found = [arms_of.get(size) for arms_of, size in zip(sides, sizes, strict=True)]
        return [tuple(found)] if all(found) else []
    return [(sides[0][size], sides[1][size]) for size in sides[0] if size in sides[1]]


def _fits(arm: ArmAnswers, side: dict) -> bool:
    wanted = side.get("projector") or VARIANT_OF_READER[side.get("reader", "model")]
    return arm.condition == side.get("condition", arm.condition) and arm.variant == wanted


def _side(contrast: Contrast, arm: ArmAnswers, side: dict, asked: Asked) -> _Side | None:
    """One arm's scores under a side of a contrast, None where it wasn't asked so."""
    if contrast.metric == "reliance":
        if not (arm.table["control"] == MOVED).any():
            return None
        rows = moved_rows(arm.table, asked.questions, asked)
        rows = rows[rows["stratum"] == contrast.stratum].set_index("id")
        return _Side(rows[side["counted"]], rows) if len(rows) else None
    form, _, metric = contrast.metric.partition(" ")
    fixed = protocol.load().content["tables"][_table_of(contrast)]
    kinds = pooled_kinds(fixed, form) if contrast.kind in ("", MEAN) else (contrast.kind,)
    rows = arm.rows(form, kinds, contrast.stratum, side.get("control", AS_ASKED))
    if rows.empty:
        return None
    rows = rows.set_index("id", drop=False)
    if form == "closed":
        return _Side(rows["correct"], rows)
    found = arm.statistics(rows, [metric])
    if METRICS[metric].level != "corpus":
        return _Side(pd.Series(found.values(metric) / 100, rows.index), rows)
    sums, of_sums = found.sums(metric)  # what each question adds to the score of all
    return _Side(pd.DataFrame(sums, rows.index), rows, lambda total: of_sums(total) / 100)


def _average(sides: Sequence[_Side | None]) -> _Side | None:
    """Each question's mean over decoders."""
    if not sides or any(side is None for side in sides):
        return None
    scores = sum(side.scores for side in sides) / len(sides)
    return _Side(scores, sides[0].rows, sides[0].of_sums)


def _difference(contrast: Contrast, left: _Side, right: _Side) -> PairedDifference:
    common = left.scores.index.intersection(right.scores.index)
    kind, metrics = left.rows.loc[common, "kind"], protocol.load().content["metrics"]
    weights = equal_weights(kind.to_dict()) if contrast.kind == MEAN and left.of_sums is None else None
    sides = [side.scores.loc[common] for side in (left, right)]
    if left.of_sums is not None:
        sides = [dict(zip(side.index, side.to_numpy(), strict=True)) for side in sides]
    return paired_difference(
        *sides, left.rows.loc[common, "patient"], list(common), weights=weights, statistic_of_sums=left.of_sums,
        confidence=metrics["confidence"], resamples=metrics["resamples"],
    )  # fmt: skip


def _table_of(contrast: Contrast) -> str:
    key = f"{contrast.paper}-{contrast.table}"
    tables = protocol.load().content["tables"]
    return key if key in tables else "med3dvlm" if contrast.paper == "med3dvlm" else next(iter(tables))
