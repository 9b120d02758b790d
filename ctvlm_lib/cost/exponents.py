"""How fast a cost grows: exponents fitted on log–log axes, those of exact counts, and what follows for 25,000 volumes.

A cost a + b·xᵏ looks flat where its fixed part a rules. So the tiny first size of each stage is taken as that part, and
only sizes that cost at least four times as much are fitted: at most a quarter of theirs is fixed. Where fewer than
three are left, the three largest are taken, and the column "overhead" says that the rule couldn't be kept. Steps bend a
curve as well: where arrays no longer fit into a cache, or where Linux begins to hand out new pages for each (32 MiB).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib.cost.curves import as_range, counted
from ctvlm_lib.cost.exact import IMAGE_TOKENS, WORDS
from ctvlm_lib.cost.measure import operations
from ctvlm_lib.cost.stages import LAYERS, ROW, stage_named
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora_counts import qwen_config
from ctvlm_lib.volume import RECIPES

if TYPE_CHECKING:
    import pandas

OVERHEAD, FEWEST, CONFIDENCE = 4.0, 3, 0.95
NEAR = 0.1  # what a fixed tenth of the smallest fitted cost bends an exponent by, about
VALUES = ("CPU seconds", "seconds", "MB")
BY = ["study", "stage", "x name"]


@dataclass(frozen=True)
class Target:
    """A size of the papers that a stage is carried on to.

    Attributes:
        stage: its name.
        size: as the stage takes it: (D, H, W) voxels, or a width.
        times: so many of the stage's make one of the papers'.
        what: what the size is.
    """

    stage: str
    size: tuple[int, int, int] | int
    times: float
    what: str


_SCAN, _SMALL_QWEN = RECIPES["CT-CLIP"].shape, qwen_config("Qwen2.5-0.5B")
TARGETS = (
    Target("resample and scale (VISTA-3D's recipe)", _SCAN, 1, "CT-CLIP's field, 0.75×0.75×1.5 mm"),
    Target("contour", _SCAN, 1, "the same"),
    Target("overlay", _SCAN, 1, "the same"),
    Target("DCFormer, forward", RECIPES["Med3DVLM"].shape, 1, "Med3DVLM's input, our small DCFormer"),
    Target("DCFormer, forward and backward", RECIPES["Med3DVLM"].shape, 1, "the same"),
    Target("ViT3D, forward and backward", RECIPES["MedVista3D"].shape, 1, "MedVista3D's input, our small ViT"),
    Target(
        "decoder of any width, forward and backward", _SMALL_QWEN.hidden_size,
        _SMALL_QWEN.num_hidden_layers / LAYERS * (IMAGE_TOKENS + WORDS) / ROW,
        f"width and layers of Qwen2.5-0.5B, {IMAGE_TOKENS} image vectors and {WORDS} words, few different words",
    ),
)  # fmt: skip


def fit(frame: "pandas.DataFrame", value: str = VALUES[0], confidence: float = CONFIDENCE) -> "pandas.DataFrame":
    """Exponents of what was measured, by least squares on logarithms.

    Args:
        frame: of :mod:`ctvlm_lib.cost.curves`; rows of a stage in rising order of x, the tiny size first.
        value: ``"CPU seconds"``, which other work on the same core disturbs least, ``"seconds"``, or ``"MB"``.
        confidence: of the intervals, which are t's: they tell how well a power of x fits, not how a repetition differs.

    Returns:
        A row a stage: study, stage, x name, exponent, low, high, expected, agrees (the interval comes
        within 0.1 of what is expected), sizes (how many were fitted), overhead (the rule was kept: "small", else
        "large"), x and cost (the largest size and what it took).

    Raises:
        BadInput: a stage with fewer than three sizes, or an unknown value.
    """
    import pandas as pd

    if value not in VALUES:
        raise BadInput(f"value is {value!r}; an exponent is fitted of one of {', '.join(map(repr, VALUES))}")
    rows = []
    for names, part in frame.groupby(BY, sort=False):
        x, cost = part["x"].to_numpy(float), part[value].to_numpy(float)
        chosen, kept = beyond_overhead(x, cost)
        exponent, low, high = power(x[chosen], cost[chosen], confidence)
        stage = stage_named(names[1])
        ends = stage.memory if value == "MB" else stage.seconds
        rows.append(
            dict(zip(BY, names, strict=True))
            | {"exponent": exponent, "low": low, "high": high, "expected": as_range(ends)}
            | {"agrees": bool(low <= ends[1] + NEAR and high >= ends[0] - NEAR), "sizes": len(chosen)}
            | {"overhead": "small" if kept else "large", "x": int(x[-1]), "cost": cost[-1]}
        )
    return pd.DataFrame(rows)


def beyond_overhead(x: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which sizes are fitted, and whether all of them cost at least ``OVERHEAD`` times the first.

    Raises:
        BadInput: fewer than three sizes beside the first.
    """
    if len(x) <= FEWEST:
        raise BadInput(f"{len(x)} sizes were measured; an exponent needs a tiny one and {FEWEST} more")
    far = np.flatnonzero(cost >= OVERHEAD * cost[0])
    return (far, True) if len(far) >= FEWEST else (np.arange(len(x))[-FEWEST:], False)


def power(x: np.ndarray, cost: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Exponent k of cost ∝ xᵏ and its interval; NaN where a cost is nought."""
    from scipy import stats

    if (cost <= 0).any():
        return (float("nan"),) * 3
    line = stats.linregress(np.log(x), np.log(cost))
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 2) * line.stderr
    return float(line.slope), float(line.slope - half), float(line.slope + half)


def counted_exponent(counts: "pandas.DataFrame | None" = None) -> "pandas.DataFrame":
    """Exponents of exact counts of operations, over the sizes that are measured: the same on every machine.

    Args:
        counts: of :func:`ctvlm_lib.cost.curves.counted`; None counts all that can be, which takes some seconds.

    Returns:
        A row a stage: study, stage, x name, exponent (all sizes but the tiny one), at_largest (between the two largest:
        where it is higher, the exponent still rises), expected.
    """
    import pandas as pd

    rows = []
    for names, part in (counted() if counts is None else counts).groupby(BY, sort=False):
        x, cost = (part[name].to_numpy(float)[1:] for name in ("x", "operations"))
        last = np.log(cost[-1] / cost[-2]) / np.log(x[-1] / x[-2])
        found = {"exponent": round(power(x, cost)[0], 3), "at_largest": round(float(last), 3)}
        rows.append(dict(zip(BY, names, strict=True)) | found | {"expected": as_range(stage_named(names[1]).seconds)})
    return pd.DataFrame(rows)


def whole_run(
    fitted: "pandas.DataFrame", volumes: int = 25_000, targets: tuple[Target, ...] = TARGETS
) -> "pandas.DataFrame":
    """What a pass over a whole data set would take one core of this machine: an extrapolation.

    It goes beyond what was measured: from the largest size, t·(X/x)ᵏ with the fitted exponent k, and with both ends of
    its interval. As a check that doesn't trust the exponent, operations counted at X, at the rate of the largest
    measured size. Left out are reading files, texts, and the time in which processes wait for each other.

    Args:
        fitted: of :func:`fit`, of CPU seconds or seconds; stages that it lacks are left out.
        volumes: of the data set; each is one row of the decoder.
        targets: what is carried on to which size.

    Returns:
        A row a target: stage, to, x measured, x there, seconds (a volume), hours (all volumes), low, high (hours), and
        "hours by operations" (NaN where they aren't counted).

    Raises:
        BadInput: no volumes.
    """
    import pandas as pd

    if volumes < 1:
        raise BadInput(f"{volumes} volumes take no time; give 1 or more")
    there = fitted.set_index("stage")
    return pd.DataFrame(
        [_carried_on(there.loc[one.stage], one, volumes) for one in targets if one.stage in there.index]
    )


def _carried_on(row: "pandas.Series", target: Target, volumes: int) -> dict:
    stage = stage_named(target.stage)
    x = stage.x(target.size)
    each, low, high = (target.times * row["cost"] * (x / row["x"]) ** row[end] for end in ("exponent", "low", "high"))
    hours = {name: volumes * seconds / 3600 for name, seconds in (("hours", each), ("low", low), ("high", high))}
    by_operations = float("nan")
    if stage.counted:
        largest = next(size for size in stage.sizes if stage.x(size) == row["x"])
        rate = operations(stage.prepare(largest, "meta")) / row["cost"]
        by_operations = target.times * operations(stage.prepare(target.size, "meta")) / rate * volumes / 3600
    where = {"stage": stage.name, "to": target.what, "x measured": row["x"], "x there": x}
    return where | {"seconds": each} | hours | {"hours by operations": by_operations}
