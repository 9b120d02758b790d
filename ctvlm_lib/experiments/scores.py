"""From tables of answers to tables of scores: accuracies with intervals, differences, reliance, calibration.

All of it follows the protocol: which level, how many draws, which bins. A table of answers has to have been read first
by :func:`ctvlm_lib.evaluate.choice.score_closed`, which says what counts as right.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abstention import choose_threshold
from ctvlm_lib.evaluate.calibration import (
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability,
    two_way,
)
from ctvlm_lib.evaluate.intervals import patient_bootstrap
from ctvlm_lib.evaluate.paired import PairedDifference, paired_difference, smallest_detectable_difference
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.records import protocol

ASKED = ["condition", "control", "stratum"]


def accuracies(table: pd.DataFrame, by: Sequence[str] = ASKED) -> pd.DataFrame:
    """Accuracy of each group with its interval over patients.

    Args:
        table: scored answers of one reader and one seed.
        by: columns that make a group; strata are never pooled, so "stratum" has to be among them.

    Returns:
        ``by``, then ``questions``, ``patients``, ``accuracy``, ``low``, ``high``, ``chance``, ``unparsed``.

    Raises:
        BadInput: the strata would be pooled, several seeds, or answers that weren't scored.
    """
    _check(table, by)
    metrics, rows = protocol.load().content["metrics"], []
    for key, group in table.groupby(list(by), sort=False):
        found = _interval(group["correct"], group["patient"], metrics)
        rows.append(dict(zip(by, key, strict=True)) | {
            "questions": found.n, "patients": found.patients, "accuracy": found.value, "low": found.low,
            "high": found.high, "chance": float(np.mean([1 / (len(c) or 2) for c in group["choices"]])),
            "unparsed": float(group["parsed"].isna().mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def difference(table: pd.DataFrame, left: dict, right: dict, stratum: str) -> PairedDifference:
    """Accuracy of one condition or control less that of another, on the same questions.

    Args:
        table: scored answers.
        left, right: column → value, e.g. ``{"condition": "contour", "control": "as asked"}``; "control" may be left
            out and is then "as asked".
        stratum: "named" or "unnamed".

    Raises:
        BadInput: a side without answers, or sides without a common question.
    """
    sides = [_side(table, where, stratum) for where in (left, right)]
    common = sides[0].index.intersection(sides[1].index)
    if common.empty:
        raise BadInput(f"{left} and {right} have no {stratum} question in common; ask both about the same records")
    metrics = protocol.load().content["metrics"]
    return paired_difference(
        sides[0]["correct"].astype(float), sides[1]["correct"].astype(float), sides[0]["patient"], list(common),
        confidence=metrics["confidence"], resamples=metrics["resamples"],
    )  # fmt: skip


def differences(table: pd.DataFrame, pairs: Sequence[tuple[dict, dict]], strata=("named", "unnamed")) -> pd.DataFrame:
    """Several differences as a table, each with its interval, its test and the smallest difference it could find."""
    power, rows = protocol.load().content["metrics"]["power"], []
    for left, right in pairs:
        for stratum in strata:
            found = difference(table, left, right, stratum)
            rows.append({
                "left": _words(left), "right": _words(right), "stratum": stratum, "difference": found.value,
                "low": found.low, "high": found.high, "p": found.p, "patients": found.patients,
                "detectable": smallest_detectable_difference(found.differences, power),
            })  # fmt: skip
    return pd.DataFrame(rows)


def reliances(rows: pd.DataFrame, by: Sequence[str] = ("condition", "stratum")) -> pd.DataFrame:
    """Prompt reliance with its interval over patients, and how far the move turned the answers.

    Args:
        rows: of :func:`ctvlm_lib.experiments.reliance.moved_rows`.
        by: columns that make a group.
    """
    metrics, made = protocol.load().content["metrics"], []
    for key, group in rows.groupby(list(by), sort=False):
        found = _interval(group["reliance"], group["patient"], metrics)
        made.append(dict(zip(by, key, strict=True)) | {
            "followed": group["followed"].mean(), "stayed": group["stayed"].mean(), "reliance": found.value,
            "low": found.low, "high": found.high, "before": group["before"].mean(), "turned": group["turned"].mean(),
            "questions": found.n, "patients": found.patients,
        })  # fmt: skip
    return pd.DataFrame(made)


def calibrations(validation: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Calibration of each condition on test, before and after a temperature fitted on validation.

    Args:
        validation, test: scored answers with the control "as asked".
    """
    bins, rows = protocol.load().content["calibration"]["bins"], []
    for condition, group in test[test["control"] == AS_ASKED].groupby("condition", sort=False):
        fitted_on = validation[(validation["condition"] == condition) & (validation["control"] == AS_ASKED)]
        temperature = fit_temperature(two_way(fitted_on["confidence"]), 1 - fitted_on["correct"].astype(int))
        cooled = temperature.apply(two_way(group["confidence"]), "test")[:, 0]
        right = group["correct"].astype(float)
        rows.append({
            "condition": condition, "answers": len(group), "accuracy": right.mean(),
            "confidence": group["confidence"].mean(),
            "ECE": expected_calibration_error(group["confidence"], right, bins),
            "temperature": temperature.value, "ECE after": expected_calibration_error(cooled, right, bins),
            "Brier": brier(group["confidence"], right), "Brier after": brier(cooled, right),
        })  # fmt: skip
    return pd.DataFrame(rows)


def reliability_of(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Reliability diagram of one condition, in the protocol's bins."""
    group = table[(table["condition"] == condition) & (table["control"] == AS_ASKED)]
    return reliability(
        group["confidence"], group["correct"].astype(float), protocol.load().content["calibration"]["bins"]
    )


def abstentions(validation: pd.DataFrame, test: pd.DataFrame, condition: str, by: str = "confidence") -> pd.DataFrame:
    """What is left on test when thresholds chosen on validation are applied, one row for each target of the protocol.

    Args:
        validation, test: scored answers.
        condition: one of them, "as asked".
        by: the column that answers are trusted by.
    """
    sides = [t[(t["condition"] == condition) & (t["control"] == AS_ASKED)] for t in (validation, test)]
    rows = []
    for target in protocol.load().content["abstention"]["target_error"]:
        chosen = choose_threshold(sides[0][by], sides[0]["correct"].astype(float), target)
        kept = chosen.apply(sides[1][by], sides[1]["correct"].astype(float), "test")
        rows.append({
            "target": target, "threshold": chosen.value, "errors on validation": chosen.risk, "errors": kept.risk,
            "answered": kept.coverage, "right answers refused": kept.refused_right,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(values: pd.Series, patients: pd.Series, metrics: dict):
    level = {"confidence": metrics["confidence"], "resamples": metrics["resamples"]}
    return patient_bootstrap(values.to_numpy(float), patients.to_numpy(), **level)


def _side(table: pd.DataFrame, where: dict, stratum: str) -> pd.DataFrame:
    """The rows of one side, by question."""
    _check(table, ["stratum"])
    kept = table[table["stratum"] == stratum]
    for column, value in ({"control": AS_ASKED} | where).items():
        kept = kept[kept[column] == value]
    if kept.empty:
        raise BadInput(f"there are no {stratum} answers with {where}; ask the reader under it first")
    return kept.set_index("id")


def _check(table: pd.DataFrame, by: Sequence[str]) -> None:
    if "correct" not in table:
        raise BadInput("the answers aren't scored yet; pass them through ctvlm_lib.evaluate.choice.score_closed first")
    if "stratum" not in by and table["stratum"].replace("", np.nan).nunique() > 1:
        raise BadInput("questions that name the region and questions that don't are never pooled; add 'stratum' to by")
    if "seed" not in by and table["seed"].nunique() > 1:
        raise BadInput("the table holds several seeds, which are shown one by one; score each, or add 'seed' to by")


def _words(where: dict) -> str:
    return ", ".join(str(value) for value in where.values() if value != AS_ASKED)
