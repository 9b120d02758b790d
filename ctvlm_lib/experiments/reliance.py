"""Prompt reliance: how much of the answers depends on the prompt, in one number.

The prompt is moved to another structure and the question stays. Where the two structures call for different answers,
an answer can be right for the one that the prompt is on (it *followed*), right for the one asked about (it *stayed*),
or neither. Reliance is the share that followed less the share that stayed:

    reliance = P(followed) − P(stayed)                 1: the prompt decides; −1: the words decide; 0: neither

A reader who guesses evenly follows as often as he stays, so that his reliance is 0. One with a habit need not: most
structures are healthy, and who always says "No" is right where the prompt was moved to more often than where it was.
So the same reader's answers before the move are judged on the same questions, too: what hangs on the prompt is how far
they *turn*, half the difference of the two reliances:

    turned = (reliance − reliance of the answers before the move) / 2       0 for whoever doesn't see the prompt
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.scans import Scans, kinds_of
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.controls import MOVED
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import LUNG_KINDS, NONE
from ctvlm_lib.records.record import Record

_ONE = ["id", "condition", "seed"]  # of an answer under one control
_LONGEST_FIRST = sorted(LUNG_KINDS, key=len, reverse=True)


def truth_at(record: Record, region: str, found: np.ndarray) -> str | None:
    """The right answer to a question if it were about another region of the same patient.

    Args:
        record: a question on presence, abnormality or organ.
        region: the other region.
        found: ``(10,)``, the patient's row of :attr:`ctvlm_lib.alignment.scans.Scans.found`.

    Returns:
        The answer; None where it isn't known, or is none of the choices.
    """
    code = found[REGIONS.index(region)]
    if code < 0:
        return None
    kind = kinds_of(region)[code]
    if record.kind == "presence":
        asked = next((name for name in _LONGEST_FIRST if name in record.question), None)
        return "Yes" if (kind == asked if asked else kind != NONE) else "No"
    answer = {"abnormality": kind, "organ": region}.get(record.kind)
    return answer if answer in (record.choices or (answer,)) else None


def moved_rows(table: pd.DataFrame, records: Sequence[Record], scans: Scans) -> pd.DataFrame:
    """The rows that tell followers from stayers.

    Args:
        table: of answers; the closed ones are read by :func:`ctvlm_lib.evaluate.choice.score_closed`, "C. mass" as
            mass.
        records: those that were asked, in any order.
        scans: the cohort.

    Returns:
        The rows with the control "moved" whose two truths are known and differ, with ``followed`` and ``stayed`` as 0
        or 1, and ``reliance``, their difference, whose mean is the score; ``before``, the reliance of what the same
        reader answered "as asked", and ``turned``, half of what the move changed, both NaN where that wasn't asked.

    Raises:
        BadInput: no row has the control "moved", or as ``score_closed``.
    """
    if not (table["control"] == MOVED).any():
        raise BadInput("prompt reliance needs the answers under the control 'moved'; ask under it first")
    table = score_closed(table)
    moved = table[table["control"] == MOVED]
    by_id, place = {r.id: r for r in records}, {name: k for k, name in enumerate(scans.names)}
    there = [
        truth_at(by_id[row.id], row.marked, scans.found[place[row.patient]]) if row.marked else None
        for row in moved.itertuples()
    ]
    moved = moved.assign(truth_there=there)
    moved = moved[moved["truth_there"].notna() & (moved["truth_there"] != moved["truth"])]
    followed, stayed = ((moved["parsed"] == moved[truth]).astype(float) for truth in ("truth_there", "truth"))
    found = moved.assign(followed=followed, stayed=stayed, reliance=followed - stayed)
    unmoved = table[table["control"] == AS_ASKED].set_index(_ONE)["parsed"]
    then = unmoved.reindex(pd.MultiIndex.from_frame(found[_ONE])).to_numpy()
    before = (then == found["truth_there"]).astype(float) - (then == found["truth"]).astype(float)
    known = pd.MultiIndex.from_frame(found[_ONE]).isin(unmoved.index)
    found["before"] = before.where(known)
    return found.assign(turned=(found["reliance"] - found["before"]) / 2)
