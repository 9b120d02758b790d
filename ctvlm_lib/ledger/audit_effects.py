"""What the choices of the paper audit change, computed by the functions that the workbook itself uses.

Each function takes nothing, needs well under a second once its modules are imported, and returns a few named numbers.
No result is typed in. Here are those on prompts and metrics; :mod:`ctvlm_lib.ledger.audit_models` has those on models
and losses, :mod:`ctvlm_lib.ledger.audit_printed` the arithmetic of the printed tables. ``EFFECTS`` names all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ctvlm_lib.ledger import audit_models, audit_printed

RADIUS = 12  # voxels, of the ball that lines are drawn around


def outline_share() -> dict[str, float]:
    """Voxels of the line around a ball as a share of the ball, by thickness and side."""
    from ctvlm_lib.prompt import contour

    ball = _ball()
    return {
        f"{thickness} px, {side}": round(float(contour(ball, thickness, side).sum() / ball.sum()), 3)
        for thickness in (1, 3)
        for side in ("inner", "both")
    }


def largest_part() -> dict[str, float]:
    """Share of two equal balls that is outlined: the largest part alone, and all parts."""
    from ctvlm_lib.prompt import contour

    pair = np.concatenate([_ball(), _ball()], axis=2)
    lines = {keep: int(contour(pair, largest_component=keep).sum()) for keep in (True, False)}
    return {"largest part": round(lines[True] / lines[False], 3), "all parts": 1.0}


def box_per_slice() -> dict[str, float]:
    """Box lines around a ball: voxels on all slices, and on the highest slice, for both readings."""
    from ctvlm_lib.prompt import box_outline

    lines = {box: box_outline(_ball(), 1, box) for box in ("slice", "volume")}
    top = np.flatnonzero(_ball().any(axis=(1, 2)))[-1]
    found = {f"box of the {box}": int(line.sum()) for box, line in lines.items()}
    return found | {f"box of the {box}, highest slice": int(line[top].sum()) for box, line in lines.items()}


def colour_as_grey() -> dict[str, float]:
    """Brightness of each colour to an encoder of grey volumes: 0 is black, 1 is white."""
    from ctvlm_lib.vlm.colour import luminance

    return {colour: round(luminance(colour, (0.0, 1.0)), 3) for colour in ("blue", "red", "green")}


def line_seen_by_stem() -> dict[str, float]:
    """Share of a line's voxels that the released stem reads, by thickness; and of all voxels."""
    from ctvlm_lib.encoder import seen_by_stem
    from ctvlm_lib.prompt import contour

    ball = _ball()
    seen = seen_by_stem(ball.shape)
    return {f"{n} px": round(float(seen[contour(ball, n)].mean()), 3) for n in (1, 3)} | {
        "all voxels": round(float(seen.mean()), 3)
    }


def answer_prefix() -> dict[str, float]:
    """BLEU of an answer that shares no word with the reference, with and without the words put before both."""
    from ctvlm_lib.evaluate import text_scores
    from ctvlm_lib.prompt.wording import rewrite

    found = {}
    for how, prefix in (("without prefix", False), ("with prefix", True)):
        said, truth = (
            rewrite("What is seen?", answer, "red", form="open", answer_prefix=prefix).answer
            for answer in ("no finding there", "a large renal cyst")
        )
        scores = text_scores([said], [truth], metrics=["BLEU-1", "BLEU-4"])
        found |= {f"{name}, {how}": round(score, 1) for name, score in scores.items()}
    return found


def bleu_order() -> dict[str, float]:
    """The same two answers scored as both papers do: over words of all, and word by word in each."""
    from ctvlm_lib.evaluate import text_scores

    said = ["a nodule in the right upper lobe", "liver"]
    truth = ["there is a nodule in the upper lobe of the right lung", "liver"]
    found = text_scores(said, truth, metrics=["BLEU-4", "BLEU-1", "BLEU-1 (sentence mean)"])
    return {name: round(score, 1) for name, score in found.items()}


def letter_rule() -> dict[str, object]:
    """One answer by the released rule, which letters it counts for, and by the grammar that is used here."""
    from ctvlm_lib.evaluate.answers import parse, released_rule

    said, choices = "B. spleen, not A. liver", ("liver", "spleen")
    counted = [letter for letter in "AB" if released_rule(said, letter)]
    return {"answer": said, "released rule counts": counted, "read here as": parse(said, choices).choice}


def equal_texts() -> dict[str, float]:
    """R@1 of features that can't tell equal reports apart: equal texts as one, and the diagonal alone."""
    from ctvlm_lib.evaluate.retrieval import recalls

    texts = ["a", "a", "b", "b"]
    alike = np.array([[float(one == other) for other in texts] for one in texts])
    found = {}
    for how, named in (("equal texts count", texts), ("only the diagonal counts", range(4))):
        found[how] = recalls(alike, list(map(str, named)), (4,), (1,), resamples=2)[0].recall
    return found


def f1_average() -> dict[str, float]:
    """Three averages of F1 over the same answers to two labels, one frequent and one rare."""
    from ctvlm_lib.evaluate.labels import flattered

    rng = np.random.default_rng(0)
    truth = (rng.random((400, 2)) < (0.4, 0.04)).astype(int)
    scored = flattered(truth + rng.normal(0, 0.7, truth.shape), truth, ("frequent", "rare"))
    return {
        "macro": round(scored.macro["F1"], 3), "weighted by positives": round(scored.weighted["F1"], 3),
        "both classes of a label": round(scored.macro["F1 of both classes"], 3),
    }  # fmt: skip


def _ball() -> np.ndarray:
    """bool ``(D, H, W)``: a ball in a cube with room for every line."""
    axis = np.arange(-RADIUS - 4, RADIUS + 4)
    return (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= RADIUS**2


EFFECTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        outline_share, largest_part, box_per_slice, colour_as_grey, line_seen_by_stem, answer_prefix, bleu_order,
        letter_rule, equal_texts, f1_average, *audit_models.OF_MODELS, *audit_printed.PRINTED,
    )
}  # fmt: skip
