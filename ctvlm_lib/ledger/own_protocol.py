"""What arms with a protocol of their own share in the ledger: checks of a table and of a record, and verdicts.

Such a protocol lies beside the cohort's. It is committed before anything is scored on test, and its contrasts are a
family of their own: Holm shares the level out over them, and over no others.
"""

import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from ctvlm_lib.errors import atomic_path
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.evaluate.paired import PairedDifference
from ctvlm_lib.evaluate.zero_shot import Drawn
from ctvlm_lib.ledger import contrasts
from ctvlm_lib.ledger.contrasts import Contrast
from ctvlm_lib.records.committed import as_it_stands
from ctvlm_lib.records.protocol import content_of

TOLERANCE = 2e-6  # of a share that is stored with six decimals
NUMBERS = 3  # the last columns of a table: value, low and high
COLUMNS = ["name", "table", "left", "right", "measure", "published", "difference", "low", "high", "p after Holm",
           "seeds", "detectable", "verdict"]  # fmt: skip


def write(text: str, path: Path) -> Path:
    """Write a table, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(text.encode())
    return path


def interval(rows: pd.DataFrame, key: Hashable, percent: bool) -> Interval | None:
    """A measure of a stored table, in the published unit; None if the arm wasn't asked for it.

    Args:
        rows: columns value, low, high and patients.
        key: of the measure's row.
        percent: the published number is in percent, ours are shares.
    """
    if key not in rows.index:
        return None
    row, scale = rows.loc[key], 100.0 if percent else 1.0
    patients = int(row["patients"])
    return Interval(*(scale * float(row[name]) for name in ("value", "low", "high")), n=patients, patients=patients)


def seed_by_seed(
    arms: Mapping[str, Sequence[int]], pair: Sequence[str], score: Callable[[str, int], Drawn], confidence: float
) -> dict[int, PairedDifference]:
    """A contrast for each seed that both of its arms have: left minus right, in shares; p is of the draws.

    Args:
        arms: arm → its seeds.
        pair: left and right arm.
        score: (arm, seed) → the measure.
        confidence: of the intervals.
    """
    found = {}
    for seed in sorted(set(arms.get(pair[0], ())) & set(arms.get(pair[1], ()))):
        left, right = (score(arm, seed) for arm in pair)
        one = left.minus(right)
        patients = len(one.each)
        found[seed] = PairedDifference(one.value, *one.interval(confidence), one.p, patients, patients, left.value,
                                       right.value, one.each)  # fmt: skip
    return found


def compare(stored: str, again: str, name: str, columns: Sequence[str], named: int) -> list[str]:
    """What differs between a stored table and the one that an arm's predictions give now, a sentence each.

    Args:
        stored, again: the tables as text.
        name: of the stored one.
        columns: of both; the last three hold numbers, the first the split.
        named: how many of the first tell a row apart.
    """
    left, right = (pd.read_csv(io.StringIO(text), keep_default_na=False) for text in (stored, again))
    if list(left.columns) != list(columns) or len(left) != len(right):
        return [f"{name}: has other columns or rows than the scores give; write it again with `ctvlm verify --update`"]
    told, keys = [], list(columns[:-NUMBERS])
    for (_, old), (_, new) in zip(left.iterrows(), right.iterrows(), strict=True):
        what = " ".join(str(new[column]) for column in columns[:named])
        if list(old[keys].map(str)) != list(new[keys].map(str)):
            told.append(f"{name}: has other rows than the scores give; {what} isn't where it belongs")
        for column in columns[-NUMBERS:]:
            if abs(float(old[column]) - float(new[column])) > TOLERANCE:
                told.append(f"{new['split']}.npz: {column} of {what} is {new[column]}, and {name} says {old[column]}")
    return told


def problems(record: Mapping, seed: int, key: str, files: tuple[Path, ...], wanted: Sequence[str]) -> list[str]:
    """What an arm's record lacks, or that can't be so.

    Args:
        record: as read.
        seed: that the folder's name says.
        key: under which the record has its protocol's version and hash.
        files: whose hash that is; the last is the arms' own protocol.
        wanted: fields that have to be there.
    """
    told = [f"record.json: lacks {name}" for name in wanted if not record.get(name)]
    under, version = record.get(key) or {}, content_of(files[-1], ("version",))["version"]
    if not under:
        told.append("record.json: lacks the protocol's version and sha256")
    elif under.get("version") == version and under.get("sha256") != as_it_stands(files).sha256:
        told.append("record.json: another protocol of the same version; one of the two was changed without saying so")
    elif not 1 <= int(under.get("version", 0)) <= version:
        told.append(f"record.json: protocol version {under.get('version')}, and here it is {version}")
    if record.get("seed") != seed:
        told.append(f"record.json: its seed is {record.get('seed')!r}, and the folder's name says {seed}")
    return told


def listed(content: Mapping, paper: str) -> tuple[Contrast, ...]:
    """A protocol's contrasts, in the form that all are judged in; those of no table are ours."""
    made = []
    for one in content["contrast"]:
        left, right = one["paper"] or (None, None)
        made.append(
            Contrast(one["name"], paper if one["table"] else "workbook", one["table"], one["left"], one["right"],
                     one["measure"], "", one["sign"], primary=one["primary"], paper_left=left, paper_right=right,
                     paper_unit="%" if one["paper"] else "", note=one["note"])
        )  # fmt: skip
    return tuple(made)


def judged(
    every: Sequence[Contrast], measured: Mapping[str, dict[int, PairedDifference]], seeds: Sequence[int], profile: str
) -> pd.DataFrame:
    """All contrasts of a protocol, measured and judged; those whose arms or seeds aren't all there yet say so.

    Args:
        every: of :func:`listed`.
        measured: name → seed → left minus right, in shares.
        seeds: that the protocol asks for.
        profile: "quick" gives no verdict.

    Returns:
        COLUMNS; published and ours in points.
    """
    pairs = {one.name: (one, measured[one.name]) for one in every if measured.get(one.name)}
    found = dict(zip(pairs, contrasts.judge_all(pairs.values(), profile, every), strict=True))
    rows = []
    for one in every:
        published = one.paper_difference
        row = {"name": one.name, "table": one.table, "left": one.left, "right": one.right, "measure": one.metric}
        row |= {"published": None if published is None else round(published, 2), "verdict": "not measured yet"}
        if one.name in found:
            said = found[one.name]
            waits = one.primary and profile != "quick" and len(said.seeds) < len(seeds)
            verdict = f"{len(said.seeds)} of {len(seeds)} seeds" if waits else said.verdict
            row |= {"difference": round(100 * said.value, 1), "low": round(100 * said.low, 1),
                    "high": round(100 * said.high, 1), "p after Holm": said.p_holm, "seeds": len(said.seeds),
                    "detectable": round(100 * said.detectable, 1), "verdict": verdict}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seeds": "Int64"})
