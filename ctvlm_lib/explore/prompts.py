"""The prompt that a person has chosen: its lines, the sentence that states it, and what an encoder reads of it."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib import prompt
from ctvlm_lib.encoder import seen_by_stem
from ctvlm_lib.mask import LabelMap, largest_component
from ctvlm_lib.prompt import wording
from ctvlm_lib.prompt.distractor import Distractor
from ctvlm_lib.volume import RECIPES

STYLES = {"none": "none", "contour": "contour", "box": "box", "dual box": "dual"}
PAPERS, SAFE = "as in the papers", "colour-blind safe"
COLOURS = {  # what is marked: colour
    PAPERS: {"contour": "blue", "region": "green", "distractor": "red"},
    SAFE: {"contour": "sky", "region": "sky", "distractor": "orange"},  # Okabe–Ito
}
MED3DVLM_SIZE = RECIPES["Med3DVLM"].shape


@dataclass(frozen=True, eq=False)
class Mark:
    """One line of a prompt: bool ``(D, H, W)``, its colour's name, what it outlines, and whether it is dashed."""

    mask: np.ndarray
    colour: str
    label: str
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Prompt:
    """The lines, and the sentence that states them."""

    marks: tuple[Mark, ...] = ()
    sentence: str = ""


def make(
    labels: LabelMap, structure: str, style: str, thickness: int = 3, side: str = "inner",
    distractor: Distractor | None = None, colours: str = PAPERS,
) -> Prompt:  # fmt: skip
    """Draw a prompt as the papers do: a contour, a box, or a box with another one around a distractor.

    Args:
        labels: the patient's structures.
        structure: the region asked about.
        style: "none", "contour", "box" or "dual".
        thickness: of the line, pixels, odd.
        side: of the contour, "inner" or "both".
        distractor: of a dual box.
        colours: key of ``COLOURS``; models have seen the papers' only.

    Returns:
        The lines, and a sentence with the share of axial slices that they are on.

    Source: contour.txt §3.1; dualbox.txt §3.1.
    """
    name = structure.replace("_", " ")
    if style == "none":
        return Prompt((), f"No prompt: the CT as it is. Chosen structure: {name}.")
    mask = largest_component(labels.binary(structure))  # as ctvlm render: box and contour mean the same part
    colour, reason = COLOURS[colours], ""
    if style == "contour":
        line = prompt.contour(mask, thickness, side, largest_component=False)
        marks = [Mark(line, colour["contour"], f"contour: {name}")]
        edge = "both sides of the edge" if side == "both" else "from the edge's inner side"
        words = f"{colour['contour']} contour around the {name}, {thickness} px, {edge}"
    else:
        marks = [Mark(prompt.box_outline(mask, thickness), colour["region"], f"region: {name}")]
        words = f"{colour['region']} box around the {name}, {thickness} px"
    if style == "dual":
        other = distractor.name.replace("_", " ")
        line = prompt.box_outline(largest_component(distractor.mask), thickness)
        marks.append(Mark(line, colour["distractor"], f"distractor: {other}", dashed=True))
        words += f"; dashed {colour['distractor']} box around the {other}"
        reason = f" Distractor: {distractor.reason.replace('_', ' ')}."
    met = int(sum(mark.mask.any(axis=(1, 2)) for mark in marks).astype(bool).sum())
    on = f"On {met} of {len(mask)} axial slices ({met / len(mask):.0%})"
    return Prompt(tuple(marks), f"Prompt: {words}. {on}.{reason}")


def share_read(lines: np.ndarray, size: tuple[int, int, int] = MED3DVLM_SIZE) -> float:
    """Share of a prompt's voxels that the first layer of Med3DVLM's encoder reads, 0…1; NaN if none is left.

    The lines of the whole scan are brought to the encoder's size by nearest neighbour; the recipe crops a little first.

    Args:
        lines: bool ``(D, H, W)``.
        size: of the encoder's input.

    Source: :func:`ctvlm_lib.encoder.seen_by_stem`: stride 4, kernels of one voxel across their own axis.
    """
    places = [((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(lines.shape, size, strict=True)]
    there = lines[np.ix_(*places)]
    return float(seen_by_stem(size)[there].mean()) if there.any() else float("nan")


def wordings(question: str, form: str) -> list[tuple[str, str, str]]:
    """A plain question in every style of the papers: (style, question as it is sent, system prompt)."""
    found = []
    for style in wording.STYLES:
        made = wording.rewrite(question, "", style, form=form)
        found.append((style, made.question, made.system))
    return found
