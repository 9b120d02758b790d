"""Costs against sizes on log–log axes, where a power of the size is a straight line and its exponent the slope."""

from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib.cost.exponents import VALUES, beyond_overhead
from ctvlm_lib.errors import BadInput
from ctvlm_lib.view.panel import COLOURS, Picture

if TYPE_CHECKING:
    import pandas

SHADES = ("deep blue", "vermilion", "teal", "purple", "orange", "sky")  # Okabe–Ito
MARKERS, LINES = "osD^vP", ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.2, 1.5)), "-", (0, (5, 2)))
LEFT, GAP, TOP, BELOW, PANEL, ENTRY = 0.62, 0.7, 0.32, 0.45, 1.75, 0.16  # inches


def curves(
    frame: "pandas.DataFrame", fitted: "pandas.DataFrame", value: str = VALUES[0], *, width_in: float = 7.5
) -> Picture:
    """Draw what was measured and the fitted powers, a panel a study.

    Full marks were fitted, hollow ones weren't: too much of their cost is fixed. Each legend gives the exponent and its
    interval.

    Args:
        frame: of :mod:`ctvlm_lib.cost.curves`.
        fitted: of :func:`ctvlm_lib.cost.exponents.fit`, of the same frame and value.
        value: of ``exponents.VALUES``.
        width_in: of the figure, inches.

    Raises:
        BadInput: nothing was measured.
    """
    studies = list(dict.fromkeys(frame["study"]))
    if not studies:
        raise BadInput("no measurements to draw; give the table of a study")
    exponents = fitted.set_index("stage")
    columns = min(2, len(studies))
    rows = [studies[k : k + columns] for k in range(0, len(studies), columns)]
    most = [max(frame.loc[frame["study"] == study, "stage"].nunique() for study in row) for row in rows]
    heights = [TOP + PANEL + BELOW + ENTRY * n for n in most]
    figure = Picture(width_in, sum(heights), page="white")
    width = (width_in - columns * LEFT - (columns - 1) * (GAP - LEFT) - 0.15) / columns
    top = sum(heights)
    for row, height in zip(rows, heights, strict=True):
        for column, study in enumerate(row):
            left = LEFT + column * (width + GAP)
            axes = figure.place(left, top - TOP - PANEL, width, PANEL)
            figure.write(left, top - TOP + 0.08, study, 9, "black", weight="bold")
            _panel(axes, frame[frame["study"] == study], exponents, value)
            axes.legend(
                loc="upper left", bbox_to_anchor=(-0.12, -(BELOW - 0.03) / PANEL), fontsize=7, frameon=False,
                borderaxespad=0, labelspacing=ENTRY * 72 / 7 - 1.2, handlelength=2.4,
            )  # fmt: skip
        top -= height
    return figure


def _panel(axes, part: "pandas.DataFrame", exponents: "pandas.DataFrame", value: str) -> None:
    for place, (stage, rows) in enumerate(part.groupby("stage", sort=False)):
        x, cost = rows["x"].to_numpy(float), rows[value].to_numpy(float)
        known, row = cost > 0, exponents.loc[stage]
        chosen, _ = beyond_overhead(x, cost)
        look = {"color": COLOURS[SHADES[place % len(SHADES)]]}
        mark = MARKERS[place % len(MARKERS)]
        axes.plot(x[known], cost[known], mark, ms=4, mfc="white", mew=0.9, **look)
        axes.plot(x[chosen], cost[chosen], mark, ms=4, **look)
        line = np.exp(np.log(cost[chosen]).mean() + row["exponent"] * (np.log(x) - np.log(x[chosen]).mean()))
        shown = x >= x[chosen][0]
        slope, low, high = (f"{row[end]:.2f}".replace("-", "−") for end in ("exponent", "low", "high"))
        text = f"{stage}: {slope} ({low} to {high})"
        axes.plot(x[shown], line[shown], ls=LINES[place % len(LINES)], lw=1.1, marker=mark, ms=0, **look)
        axes.plot([], [], ls=LINES[place % len(LINES)], lw=1.1, marker=mark, ms=4, label=text, **look)
    sizes = " or ".join(dict.fromkeys(part["x name"]))
    axes.set(xscale="log", yscale="log", xlabel=sizes, ylabel=value)
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.minorticks_off()
