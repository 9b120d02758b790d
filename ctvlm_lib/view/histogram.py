"""How often each HU occurs in a volume."""

import numpy as np

from ctvlm_lib.view.panel import COLOURS, Picture
from ctvlm_lib.view.screen import window_text
from ctvlm_lib.volume.hu import window_levels

BANDS = {  # HU, usual textbook ranges; in nature they overlap
    "air": (-1024, -950),
    "lung": (-950, -500),
    "fat": (-150, -50),
    "soft tissue": (-10, 90),
    "contrast, spongy bone": (130, 400),
    "dense bone": (500, 1900),
}


def histogram(
    volume,
    bands: dict[str, tuple[float, float]] | None = None,
    window=None,
    *,
    title: str = "",
    width_in: float = 7,
    height_in: float = 3,
) -> Picture:
    """Draw how often each HU occurs, on a logarithmic axis, with the usual ranges of tissues behind it.

    Args:
        bands: {name: (low, high)} in HU; the textbook's by default, {} for none.
        window: preset or (level, width) whose borders are drawn, if given.
    """
    figure = Picture(width_in, height_in, page="white")
    axes = figure.place(0.65, 0.5, width_in - 0.8, height_in - 0.5 - (0.85 if title else 0.6))
    low, high = max(float(volume.hu.min()), -1100), min(float(volume.hu.max()), 2000)
    counts, borders = np.histogram(volume.hu, bins=np.arange(np.floor(low / 10) * 10, high + 20, 10))
    axes.stairs(counts, borders, color="black", lw=1.1)
    axes.set(
        yscale="log",
        ylim=(0.8, counts.max() * 1.6),
        xlim=(borders[0] - 20, borders[-1]),
        xlabel="HU",
        ylabel="voxels in 10 HU",
    )
    shades = ("sky", "deep blue", "yellow", "orange", "purple", "teal")
    for place, ((name, (left, right)), shade) in enumerate(
        zip((BANDS if bands is None else bands).items(), shades, strict=False)
    ):
        if left < borders[-1] and right > borders[0]:
            axes.axvspan(left, right, color=COLOURS[shade], alpha=0.3, lw=0)
            middle = (max(left, borders[0]) + min(right, borders[-1])) / 2
            height = 1.02 + 0.08 * (place % 3)  # neighbours' names in three rows, as narrow bands lie close
            axes.text(middle, height, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    if window is not None:
        level, width = window_levels(window)
        for border in (level - width / 2, level + width / 2):
            axes.axvline(border, color="black", ls="--", lw=1)
        note = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5}
        axes.text(
            level + width / 2 + 15,
            0.92,
            window_text(window),
            transform=axes.get_xaxis_transform(),
            fontsize=8,
            bbox=note,
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if title:
        figure.write(0.65, height_in - 0.08, title, 11, "black", va="top", weight="bold")
    return figure
