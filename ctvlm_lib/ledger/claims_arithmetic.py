"""Claims that follow from the papers' own numbers: gains, means and sums of what their tables and sentences print.

Nothing here is ours: a disagreement is one of a paper with itself, or with another that it cites.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import published
from ctvlm_lib.ledger.claims import said


class Computed(NamedTuple):
    """A number for a claim, its unit, and how it was found, in one sentence."""

    value: float
    unit: str
    how: str


ARITHMETIC: dict[str, Callable[[], Computed]] = {}
SIZES = ("0.5B", "1.5B", "3B")
TEXT = ("BLEU-4", "ROUGE-L", "METEOR")
BOX_GROUPS, BOX_COLUMNS = ("RadGenome-ChestCT", "PMC-VQA"), ("accuracy", *TEXT)
POINTS = "percentage points"


def computes(name: str, registry: dict = ARITHMETIC) -> Callable:
    """Enter a function in the registry under the name that ``paper_claims.csv`` uses."""

    def enter(function: Callable[[], Computed]) -> Callable[[], Computed]:
        assert name not in registry, name
        registry[name] = function
        return function

    return enter


def cell(table: str, row: str, column: str, group: str = "", condition: str = "") -> float:
    """One printed number; ``group`` may be a part of the printed one, ``condition`` its end.

    Raises:
        BadInput: no such cell, or several.
    """
    found = [
        c.value
        for c in published.table(table)
        if (c.row, c.column) == (row, column) and group in c.group and c.condition.endswith(condition)
    ]
    if len(found) != 1 or found[0] is None:
        raise BadInput(f"{table} has {len(found)} cells of {row!r}, {column!r}, {group!r}, {condition!r}; name one")
    return found[0]


def contour(size: str, prompt: str, group: str, column: str) -> float:
    """A cell of contour.T1; prompt is "no prompt" or "contour (VISTA-Prompt)"."""
    return cell("contour.T1", f"Qwen2.5-{size} + {prompt}", column, group)


def contour_gains(group: str, columns: Iterable[str], sizes: Iterable[str] = SIZES) -> list[float]:
    """What contours add, in points, for each size and column."""
    sides = [[contour(s, p, group, c) for s, c in product(sizes, columns)]
             for p in ("contour (VISTA-Prompt)", "no prompt")]  # fmt: skip
    return [round(a - b, 6) for a, b in zip(*sides, strict=True)]


def box(size: str, prompt: str, group: str, column: str) -> float:
    """A cell of dualbox.T1."""
    return cell("dualbox.T1", f"Qwen2.5-{size} + {prompt}" if prompt else "Med3DVLM-7B", column, group)


def _sum(paper: str, parts: tuple[str, ...], scale: float, unit: str) -> Callable:
    def compute() -> Computed:
        numbers = [said(paper, part) for part in parts]
        return Computed(sum(numbers) / scale, unit, f"{paper}: {' + '.join(f'{n:,.0f}' for n in numbers)}")

    return compute


def _share(paper: str, parts: tuple[str, ...], of: float, unit: str) -> Callable:
    def compute() -> Computed:
        first, *others = (said(paper, part) for part in parts)
        total = first + sum(others)
        return Computed(of * first / total, unit, f"{paper}: {first:,.0f} of {total:,.0f}, the sum of the parts")

    return compute


# the contour paper
_SPLITS = {
    "RadGenome volumes": tuple(f"RadGenome-ChestCT {part} volumes" for part in ("train", "validation", "test")),
    "RadGenome questions": tuple(f"RadGenome-ChestCT {part} QA pairs" for part in ("train", "validation", "test")),
    "PMC-VQA questions": tuple(f"PMC-VQA {part} QA pairs" for part in ("train", "validation", "test")),
}
computes("sum of RadGenome volumes")(_sum("contour", _SPLITS["RadGenome volumes"], 1, "volumes"))
computes("sum of RadGenome questions")(_sum("contour", _SPLITS["RadGenome questions"], 1e6, "million"))
computes("sum of PMC-VQA questions")(_sum("contour", _SPLITS["PMC-VQA questions"], 1, "QA pairs"))
computes("train share of volumes")(_share("contour", _SPLITS["RadGenome volumes"], 100, "%"))
computes("train parts of questions")(_share("contour", _SPLITS["PMC-VQA questions"], 10, "parts of 10"))


@computes("contour gain, closed, smallest")
def closed_smallest() -> Computed:
    gains = contour_gains("closed", ("accuracy",))
    return Computed(min(gains), POINTS, f"contour.T1, accuracy: gains of {gains} points with 0.5B, 1.5B, 3B")


@computes("contour gain, closed, largest")
def closed_largest() -> Computed:
    return closed_smallest()._replace(value=max(contour_gains("closed", ("accuracy",))))


@computes("contour gain, open, mean")
def open_mean() -> Computed:
    gains = contour_gains("open", TEXT)
    return Computed(sum(gains) / len(gains), POINTS, "contour.T1: mean over three sizes of BLEU-4, ROUGE-L and METEOR")


@computes("contour gain, open, mean of 0.5B")
def open_mean_of_the_smallest() -> Computed:
    gains = contour_gains("open", TEXT, ("0.5B",))
    return Computed(sum(gains) / len(gains), POINTS, f"contour.T1, 0.5B alone: mean of {gains}")


@computes("contour gain, open, smallest")
def open_smallest() -> Computed:
    return Computed(min(contour_gains("open", TEXT)), POINTS, "contour.T1: smallest of nine gains in open questions")


@computes("contour gain, report, smallest")
def report_smallest() -> Computed:
    return Computed(min(contour_gains("report", TEXT)), POINTS, "contour.T1: smallest of nine gains in reports")


@computes("contour gain, BLEU-4, relative, 0.5B")
def bleu_relative() -> Computed:
    a, b = (contour("0.5B", p, "open", "BLEU-4") for p in ("contour (VISTA-Prompt)", "no prompt"))
    return Computed(100 * (a / b - 1), "%", f"contour.T1: {a:g} over {b:g}")


@computes("contour 1.5B over 3B, smallest")
def middle_over_large() -> Computed:
    where = [("closed", "accuracy"), *product(("open", "report"), TEXT)]
    gaps = [round(contour("1.5B", "contour (VISTA-Prompt)", *w) - contour("3B", "contour (VISTA-Prompt)", *w), 6)
            for w in where]  # fmt: skip
    lost = sum(gap < 0 for gap in gaps)
    return Computed(min(gaps), POINTS, f"contour.T1, with contours: 1.5B is below 3B in {lost} of {len(gaps)} columns")


# the dual-box paper
def _over_7b() -> list[float]:
    cells = product(BOX_GROUPS, BOX_COLUMNS)
    return [round(box("1.5B", "dual-polarity boxes", *c) - box("", "", *c), 6) for c in cells]


@computes("two boxes, 1.5B over 7B, accuracy")
def boxes_over_7b() -> Computed:
    return Computed(_over_7b()[0], POINTS, "dualbox.T1, accuracy on RadGenome-ChestCT: 1.5B with two boxes less 7B")


@computes("two boxes, 1.5B over 7B, best cell")
def boxes_over_7b_best() -> Computed:
    gaps = _over_7b()
    return Computed(max(gaps), POINTS, f"dualbox.T1: the best of {len(gaps)} differences of 1.5B with two boxes and 7B")


@computes("two boxes, 1.5B over 7B, cells won")
def boxes_over_7b_won() -> Computed:
    gaps = _over_7b()
    return Computed(sum(g > 0 for g in gaps), "cells", f"dualbox.T1: 1.5B with two boxes less 7B is {gaps}")


@computes("two boxes, 1.5B over 3B without")
def boxes_over_3b() -> Computed:
    a, b = box("1.5B", "dual-polarity boxes", *(w := (BOX_GROUPS[0], "accuracy"))), box("3B", "no prompt", *w)
    return Computed(round(a - b, 6), POINTS, f"dualbox.T1, accuracy on RadGenome-ChestCT: {a:g} less {b:g}")


@computes("two boxes over the other prompts, smallest")
def boxes_best() -> Computed:
    gaps = [box(s, "dual-polarity boxes", g, c) - max(box(s, p, g, c) for p in ("no prompt", "positive box only"))
            for s, g, c in product(SIZES, BOX_GROUPS, BOX_COLUMNS)]  # fmt: skip
    return Computed(round(min(gaps), 6), POINTS, f"dualbox.T1: smallest lead of two boxes in {len(gaps)} cells")


@computes("second box, METEOR on PMC-VQA over the most")
def second_box_meteor() -> Computed:
    gain = {(g, c): sum(box(s, "dual-polarity boxes", g, c) - box(s, "positive box only", g, c) for s in SIZES) / 3
            for g, c in product(BOX_GROUPS, BOX_COLUMNS)}  # fmt: skip
    here, most = gain["PMC-VQA", "METEOR"], max(gain, key=gain.get)
    how = f"dualbox.T1, mean of three sizes: {here:.2f} points there, {gain[most]:.2f} in {most[1]} on {most[0]}"
    return Computed(here - gain[most], POINTS, how)
