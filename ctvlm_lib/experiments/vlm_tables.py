"""Tables of the trained vision–language models, from their stored answers, in the papers' own shape.

Nothing is averaged over seeds, and questions that name the region are never pooled with those that don't. What a
column pools stands in the protocol's ``tables``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import exactly_right, score_closed
from ctvlm_lib.evaluate.intervals import patient_bootstrap
from ctvlm_lib.evaluate.text import TextStatistics, text_statistics
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.vlm_arms import ARMS, DECODERS, VARIANTS, variant_of
from ctvlm_lib.records import protocol

FORMS = ("closed", "open", "report")


@dataclass(frozen=True, eq=False)
class ArmAnswers:
    """What one trained model answered.

    Attributes:
        name: of its arm in ``vlm_arms.ARMS``. seed: of its training.
        encoder, condition, decoder, variant: what the name says.
        table: its answers with ``correct`` where they are closed, under every control that it was asked under.
    """

    name: str
    seed: int
    encoder: str
    condition: str
    decoder: str
    variant: str
    table: pd.DataFrame

    def rows(self, form: str, kinds: Sequence[str] = (), stratum: str = "", control: str = AS_ASKED) -> pd.DataFrame:
        """Answers of one form, some kinds and one stratum, one row for each question.

        Args:
            form: "closed", "open" or "report".
            kinds: () takes all.
            stratum: "named" or "unnamed"; questions about no region (phase, reports) are in both.
            control: under which they were asked.
        """
        table = self.table[self.table["control"] == control]
        is_report = table["kind"] == "report"
        table = table[is_report] if form == "report" else table[~is_report & (table["form"] == form)]
        if kinds:
            table = table[table["kind"].isin(kinds)]
        return table[table["stratum"].isin(("", stratum))] if stratum else table

    def statistics(self, rows: pd.DataFrame, metrics: Sequence[str]) -> TextStatistics:
        """Text scores of some rows."""
        return text_statistics(rows["answer"].tolist(), rows["truth"].tolist(), metrics=list(metrics))


def load(asked: Asked, split: str = "test", results: str | Path = RESULTS, where: str = "vlm-*") -> list[ArmAnswers]:
    """Read the answers of all arms in a folder, the ladder's smallest first.

    Args:
        asked: the split's questions. split: "validation" or "test".
        results: with a folder for each arm and seed.
        where: pattern of their names.

    Raises:
        BadInput: a folder that isn't an arm's, or answers to other questions.
    """
    found = [read(folder, asked, split) for folder in sorted(Path(results).glob(where)) if folder.is_dir()]
    return sorted(found, key=_order)


def read(folder: str | Path, asked: Asked, split: str = "test") -> ArmAnswers:
    """Read one arm's answers; arguments and errors as of :func:`load`."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise BadInput(f"{folder.name} has no record that can be read ({type(error).__name__}); run it again") from None
    return of_table(folder.name, answers.load(folder / f"{split}.npz", asked), record["seed"])


def of_table(label: str, table: pd.DataFrame, seed: int = 0) -> ArmAnswers:
    """Score a table of answers of an arm.

    Args:
        label: name of the arm, with or without its seed.
        table: see :func:`ctvlm_lib.experiments.answers.answer_table`.
        seed: of its training.

    Raises:
        BadInput: no such arm.
    """
    name = re.sub(r"-seed\d+$", "", label)
    if name not in ARMS:
        raise BadInput(f"{label} isn't the answers of an arm; arms are vlm-ENCODER-CONDITION-DECODER[-VARIANT]")
    config = ARMS[name]
    right = score_closed(table)["correct"].astype(float).reindex(table.index)
    return ArmAnswers(name, seed, config.encoder, config.condition, config.decoder, variant_of(name),
                      table.assign(correct=right))  # fmt: skip


def paper_table(arms: Sequence[ArmAnswers], key: str, stratum: str = "named", texts: bool = True) -> pd.DataFrame:
    """A published table's rows and columns, computed from our arms; the closed accuracy has its interval.

    Args:
        arms: of one encoder, plain ones and their variants as wanted.
        key: of the protocol's ``tables``, e.g. "contour-T1".
        stratum: "named" or "unnamed".
        texts: False leaves the text scores out, which take seconds for each arm.

    Returns:
        ``encoder``, ``decoder``, ``condition``, ``variant``, ``seed``, then the protocol's columns, texts 0–100 and
        accuracy in %, with ``low`` and ``high`` behind the accuracy; NaN where an arm wasn't asked.
    """
    fixed = protocol.load().content["tables"][key]
    rows = []
    for arm in sorted(arms, key=_order):
        row = {"encoder": arm.encoder, "decoder": arm.decoder, "condition": arm.condition, "variant": arm.variant,
               "seed": arm.seed}  # fmt: skip
        rows.append(row | _columns(arm, fixed, stratum, texts))
    return pd.DataFrame(rows)


def by_kind(arms: Sequence[ArmAnswers], form: str = "closed", stratum: str = "named") -> pd.DataFrame:
    """Closed accuracy, or share of exactly right open answers, for each kind of question, in %."""
    rows = []
    for arm in sorted(arms, key=_order):
        table = arm.rows(form, stratum=stratum)
        right = table["correct"] if form == "closed" else exactly_right(table)
        means = (100 * right.groupby(table["kind"]).mean()).round(1)
        rows.append({"encoder": arm.encoder, "decoder": arm.decoder, "condition": arm.condition,
                     "variant": arm.variant, "seed": arm.seed} | means.to_dict())  # fmt: skip
    return pd.DataFrame(rows)


def pooled_kinds(fixed: dict, form: str) -> tuple[str, ...]:
    """The kinds of question that a table pools in its columns of a form."""
    return ("report",) if form == "report" else tuple(fixed.get(form, ()))


def _columns(arm: ArmAnswers, fixed: dict, stratum: str, texts: bool) -> dict[str, float]:
    metrics = protocol.load().content["metrics"]
    level = {"confidence": metrics["confidence"], "resamples": metrics["resamples"]}
    made: dict[str, float] = {}
    wanted: dict[str, list[str]] = {}
    for column in fixed["columns"]:
        form, _, metric = column.partition(" ")
        if form in FORMS and (texts or form == "closed"):
            wanted.setdefault(form, []).append(metric)
    for form, names in wanted.items():
        rows = arm.rows(form, pooled_kinds(fixed, form), stratum)
        if rows.empty:
            made |= {f"{form} {name}": np.nan for name in names}
        elif form == "closed":
            found = patient_bootstrap(rows["correct"].to_numpy(), rows["patient"].to_numpy(), **level)
            made |= {"closed accuracy": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high}
        else:
            scores = arm.statistics(rows, names).scores()
            made |= {f"{form} {name}": scores[name] for name in names}
    return made


def _order(arm: ArmAnswers) -> tuple:
    return (arm.encoder, DECODERS.index(arm.decoder), list(VARIANTS).index(arm.variant),
            CONDITIONS.index(arm.condition), arm.seed)  # fmt: skip
