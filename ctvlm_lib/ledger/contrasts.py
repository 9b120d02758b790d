"""The contrasts: what the papers claim as differences that the cohort can judge, and the rule that judges them.

``contrasts.csv`` is part of the protocol: it is committed before the test split is scored. One row is one difference,
left minus right. A side says what is compared as ``key=value; key=value``, see :data:`KEYS`:

    condition=contour; decoder=middle

A key that neither side has isn't fixed by the contrast and is the same on both. ``decoder=all`` averages each
question's score over the decoders that were trained on both sides. There is no contrast on the questions that ask which
structure is marked where the condition is "none": without a prompt nothing tells which.

Many differences are looked at, so few are judged: those with ``primary``, at a level that Holm shares out over the
primary contrasts of one paper; primary ones that weren't measured count as lost, so that leaving some out gains
nothing. All others are described by value and interval, without a verdict. On phantoms a verdict is about an analogue
of the claim: the same words about other images.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.paired import PairedDifference, holm, margin_tests, smallest_detectable_difference

PATH = Path(__file__).with_name("contrasts.csv")
KEYS = {
    "condition": ("none", "contour", "box", "dual"),
    "decoder": ("small", "middle", "large", "all"),  # a ladder of sizes that stands for 0.5B, 1.5B and 3B
    "control": ("as asked", "removed", "moved", "colours swapped", "wrong neighbour"),
    "counted": ("followed", "stayed"),  # of the answers under the control "moved", as in experiments.reliance
    "encoder": ("dcformer", "vit3d"),
    "loss": ("siglip", "clip"),
    "projector": ("2xMLP", "2xMLP-H", "1xMLP-Mixer-H", "2xMLP-Mixer-H"),  # vlm.projector.IN_THE_PAPER
    "reader": ("model", "text only"),
}
SAME, OPPOSITE, UNDETERMINED = "same sign", "opposite", "undetermined"
DESCRIBED, NO_VERDICT = "described", "no verdict"  # not primary; profile quick
_TEXT = ("BLEU-1", "BLEU-4", "ROUGE-1", "ROUGE-L", "METEOR")
METRICS = ("closed", "retrieval", "reliance", *(f"{form} {name}" for form in ("open", "report") for name in _TEXT))
KINDS = ("", "mean", "phase", "abnormality", "location")


@dataclass(frozen=True)
class Contrast:
    """One claim as a difference that can be measured: ``left`` minus ``right``.

    Attributes:
        name: of the contrast.
        paper, table: which published table claims it; paper "workbook" and no table where we ask it ourselves.
        left, right: the sides, ``key=value; key=value``.
        metric: of METRICS. "closed" is the accuracy of closed questions, "retrieval" R@1 as the mean of both
            directions, "reliance" the share of answers that ``counted`` names, "open …" and "report …" text scores.
        stratum: "named", "unnamed" or "" where it doesn't apply.
        sign: what the paper's numbers say: 1, −1, or 0 for "on par"; of our own contrasts, what is expected.
        kind: "" pools the kinds as the paper's table does, "mean" is the plain mean over its kinds, else one kind.
        primary: whether it is judged.
        paper_left, paper_right: the published values, None where there are none.
        paper_unit: theirs, "%".
        note: which row and column they come from, and what is odd about them.
    """

    name: str
    paper: str
    table: str
    left: str
    right: str
    metric: str
    stratum: str
    sign: int
    kind: str = ""
    primary: bool = False
    paper_left: float | None = None
    paper_right: float | None = None
    paper_unit: str = ""
    note: str = ""

    @property
    def sides(self) -> tuple[dict[str, str], dict[str, str]]:
        """Left and right as dictionaries of KEYS."""
        return parse_side(self.left), parse_side(self.right)

    @property
    def paper_difference(self) -> float | None:
        """The published left minus right, in ``paper_unit``; None where nothing is published."""
        return None if self.paper_left is None else round(self.paper_left - self.paper_right, 6)


@dataclass(frozen=True)
class Verdict:
    """What was measured of a contrast, and what follows.

    Attributes:
        name: of the contrast.
        value: left minus right, of several seeds the mean; 0.01 is one point.
        low, high: interval over patients; of several seeds, from the lowest to the highest end of all their intervals,
            so that it leaves out 0 only if every seed's does, on the same side.
        p: the largest of the seeds'; of an "on par" contrast, of the tests against the margin.
        p_holm: adjusted over ``family``; NaN where nothing is judged.
        n, patients: questions and patients.
        seeds: of training.
        sign: what the paper says.
        verdict: "same sign", "opposite", "undetermined"; "described" where it isn't primary; "no verdict" in quick.
        detectable: true difference that one seed would have shown with the protocol's power (0.8), at the level that
            Holm asks of the smallest p value: (1 − confidence) / family; of several seeds the largest.
        family: over how many primary contrasts of this paper p was adjusted; 0 where nothing is judged.
        margin: what counts as on par, ±; NaN where the paper says a direction.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    patients: int
    seeds: tuple[int, ...]
    sign: int
    verdict: str
    detectable: float
    family: int
    margin: float

    def __str__(self) -> str:
        adjusted = f", {self.p_holm:.2g} after Holm over {self.family} primary contrasts" if self.family else ""
        return (
            f"{self.name}: {self.verdict}; {self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f}),"
            f" p = {self.p:.2g}{adjusted}; {self.patients} patients, {len(self.seeds)} seed(s);"
            f" {self.detectable:.3f} could have been detected"
        )


Differences = PairedDifference | Mapping[int, PairedDifference]


@cache
def load(path: str | Path = PATH) -> tuple[Contrast, ...]:
    """Read the contrasts and check that each can be measured.

    Raises:
        BadInput: the file isn't there, or a row with a name that stands twice, a side that doesn't parse, or an unknown
            metric, kind, stratum or sign.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{path.name} can't be read as contrasts ({error}); restore it") from None
    except OSError as error:
        raise BadInput(
            f"there is no list of contrasts {path.name} ({error.strerror}); nothing is judged without"
        ) from None
    columns = list(Contrast.__dataclass_fields__)
    if not rows or any(list(row) != columns for row in rows):
        raise BadInput(f"{path.name} has other columns than {', '.join(columns)}; write one row for each contrast")
    contrasts, names = tuple(_contrast(row) for row in rows), [row["name"] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path.name} has the contrast {twice!r} twice; give each its own name")
    return contrasts


def parse_side(side: str) -> dict[str, str]:
    """Read ``"condition=contour; decoder=middle"``.

    Raises:
        BadInput: a part that isn't ``key=value``, a key given twice, or a key or value that isn't in KEYS.
    """
    found: dict[str, str] = {}
    for part in side.split(";"):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS or key in found:
            raise BadInput(
                f"the side {side!r} has the part {part.strip()!r}; give each of {', '.join(KEYS)} once at most"
            )
        if value not in KEYS[key]:
            raise BadInput(f"the side {side!r} has {key}={value}; {key} is one of {', '.join(KEYS[key])}")
        found[key] = value
    return found


def judge(contrast: Contrast, difference: Differences, profile: str) -> Verdict:
    """Judge one contrast as if it were the only one; :func:`judge_all` says what is left of it among all.

    Args:
        contrast: what is compared.
        difference: left minus right, higher scores being better, in shares (0.01 is one point); of several seeds
            {seed: difference}.
        profile: "quick" gives no verdict.

    Returns:
        "same sign" or "opposite" if the interval leaves out 0 and p is below 1 − confidence, else "undetermined". Of
        an "on par" contrast (sign 0) "same sign" if the interval lies within ± the protocol's margin, "opposite" if it
        lies beyond it.

    Raises:
        BadInput: no difference, or seeds with other patients.
    """
    by_seed = _by_seed(contrast, difference)
    return _verdict(contrast, by_seed, profile, _p(contrast, by_seed), int(contrast.primary))


def judge_all(
    measured: Iterable[tuple[Contrast, Differences]], profile: str, contrasts: Iterable[Contrast] | None = None
) -> list[Verdict]:
    """Judge all that was measured; p is adjusted by Holm over the primary contrasts of each paper.

    Args:
        measured: (contrast, its difference or {seed: difference}); a contrast that was measured twice, e.g. with two
            encoders, counts twice.
        profile: "quick" gives no verdict.
        contrasts: all there are; None reads the file. Primary ones that weren't measured enter Holm with p = 1.

    Returns:
        One verdict for each that was measured, in order.

    Raises:
        BadInput: as :func:`judge`.
    """
    measured = [(contrast, _by_seed(contrast, difference)) for contrast, difference in measured]
    contrasts = load() if contrasts is None else tuple(contrasts)
    adjusted: dict[int, tuple[float, int]] = {}
    for paper in {contrast.paper for contrast, _ in measured}:
        places = [k for k, (c, _) in enumerate(measured) if c.primary and c.paper == paper]
        done = {measured[k][0].name for k in places}
        lost = sum(c.primary and c.paper == paper and c.name not in done for c in contrasts)
        p = [_p(*measured[k]) for k in places] + [1.0] * lost
        adjusted |= {k: (float(q), len(p)) for k, q in zip(places, holm(p), strict=False)}
    not_judged = (float("nan"), 0)
    return [_verdict(*both, profile, *adjusted.get(k, not_judged)) for k, both in enumerate(measured)]


def margin() -> float:
    """The difference within which two arms are on par, a share: the protocol's ``metrics.on_par``."""
    return float(_metrics()["on_par"])


def _verdict(contrast: Contrast, by_seed: dict, profile: str, p_holm: float, family: int) -> Verdict:
    if profile not in ("quick", "full", "paper"):
        raise BadInput(f"unknown profile {profile!r}; choose one of quick, full, paper")
    every = list(by_seed.values())
    low, high = min(d.low for d in every), max(d.high for d in every)
    alpha, power = 1 - every[0].confidence, _metrics()["power"]
    if profile == "quick":
        said = NO_VERDICT
    elif not family:
        said = DESCRIBED
    else:
        said = _direction(contrast.sign, low, high) if p_holm <= alpha else UNDETERMINED
    return Verdict(
        name=contrast.name, value=sum(d.value for d in every) / len(every), low=low, high=high,
        p=_p(contrast, by_seed), p_holm=p_holm if family else float("nan"), n=every[0].n, patients=every[0].patients,
        seeds=tuple(by_seed), sign=contrast.sign, verdict=said,
        detectable=max(smallest_detectable_difference(d.differences, power, alpha / max(1, family)) for d in every),
        family=family, margin=float("nan") if contrast.sign else margin(),
    )  # fmt: skip


def _direction(sign: int, low: float, high: float) -> str:
    """The verdict of an interval; one of a single patient is NaN and compares with nothing."""
    if sign == 0:
        within, beyond = -margin() <= low and high <= margin(), low > margin() or high < -margin()
        return SAME if within else OPPOSITE if beyond else UNDETERMINED
    above, below = low > 0, high < 0
    return (SAME if above == (sign > 0) else OPPOSITE) if above or below else UNDETERMINED


def _p(contrast: Contrast, by_seed: dict) -> float:
    """The claim has to hold for every seed, so the largest p of the seeds counts (an intersection–union test)."""
    if contrast.sign:
        return max(d.p for d in by_seed.values())
    tests = [margin_tests(d.differences, margin()) for d in by_seed.values()]
    return min(max(within for within, _ in tests), max(beyond for _, beyond in tests))


def _by_seed(contrast: Contrast, difference: Differences) -> dict[int, PairedDifference]:
    by_seed = {0: difference} if isinstance(difference, PairedDifference) else dict(sorted(difference.items()))
    if not by_seed:
        raise BadInput(f"contrast {contrast.name!r} has no difference to judge; give at least one seed's")
    if len({(d.n, d.patients, d.confidence) for d in by_seed.values()}) > 1:
        raise BadInput(f"the seeds of {contrast.name!r} have other questions or patients; score all on the same split")
    return by_seed


def _metrics() -> dict:
    from ctvlm_lib.records import protocol

    return protocol.load().content["metrics"]


def _contrast(row: dict[str, str]) -> Contrast:
    name = row.get("name")
    allowed = {"metric": METRICS, "kind": KINDS, "stratum": ("named", "unnamed", ""), "sign": ("1", "-1", "0"),
               "primary": ("true", "false")}  # fmt: skip
    for column, values in allowed.items():
        if row.get(column) not in values:
            raise BadInput(f"contrast {name!r} has {column} {row.get(column)!r}; give one of {', '.join(values)}")
    parse_side(row["left"]), parse_side(row["right"])
    numbers = {key: float(row[key]) if row[key] else None for key in ("paper_left", "paper_right")}
    return Contrast(**row | numbers | {"sign": int(row["sign"]), "primary": row["primary"] == "true"})
