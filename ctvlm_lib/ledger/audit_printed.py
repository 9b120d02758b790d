"""Arithmetic on what the papers print: the tables' cells against the prose. See :mod:`ctvlm_lib.ledger.audit_effects`.

Cells come from :mod:`ctvlm_lib.ledger.published`; what the claims compute too, from there.
"""

from statistics import mean

from ctvlm_lib.ledger import published
from ctvlm_lib.ledger.claims import said
from ctvlm_lib.ledger.claims_arithmetic import SIZES, TEXT, cell, contour_gains
from ctvlm_lib.ledger.claims_tables import organs

NO_PROMPT, GREEN, DUAL = "no prompt", "positive box only", "dual-polarity boxes"


def split_sums() -> dict[str, float]:
    """Volumes and questions of the three parts, added up, and the whole that the same section names."""
    return {
        "volumes, parts": round(_claim("sum of RadGenome volumes")),
        "volumes, whole": round(said("contour", "RadGenome-ChestCT volumes")),
        "questions, parts": round(1e6 * _claim("sum of RadGenome questions")),
        "questions, whole": round(1e6 * said("contour", "RadGenome-ChestCT grounded QA pairs (roughly)")),
    }


def gains_of_contours() -> dict[str, float]:
    """Points that the outline adds in contour.T1: open answers (mean of three scores), closed ones, reports."""
    found = {}
    for part, columns in (("open", TEXT), ("closed", ("accuracy",)), ("report", TEXT)):
        found |= {f"{part}, {size}": round(mean(contour_gains(part, columns, (size,))), 2) for size in SIZES}
        found[f"{part}, mean of sizes"] = round(mean(contour_gains(part, columns)), 2)
    return found


def same_numbers() -> dict[str, int]:
    """Of contour.T1's numbers without a prompt, how many dualbox.T1 prints too, and under how many other data sets."""
    ours, theirs = _cells("contour.T1"), _cells("dualbox.T1")
    same = other = total = 0
    for size in SIZES:
        row = f"Qwen2.5-{size} + {NO_PROMPT}"
        there = _row(theirs, row)
        for (group, column), value in _row(ours, row).items():
            total += 1
            home = [g for (g, c), v in there.items() if (c, v) == (column, value)]
            same, other = same + bool(home), other + bool(home and home[0] not in group)
    return {"numbers without a prompt": total, "printed in both": same, "of these under another data set": other}


def against_7b() -> dict[str, object]:
    """Columns of dualbox.T1 in which each size with both boxes is above the 7B row, and 1.5B's largest difference."""
    cells = _cells("dualbox.T1")
    best = _row(cells, "Med3DVLM-7B")
    gaps = {size: [v - best[k] for k, v in _row(cells, f"Qwen2.5-{size} + {DUAL}").items()] for size in SIZES}
    above = {f"{size} above 7B, columns of {len(best)}": sum(gap > 0 for gap in gaps[size]) for size in SIZES}
    return above | {f"{size}, accuracy": round(gaps[size][0], 1) for size in SIZES}


def negative_box_gains() -> dict[str, float]:
    """Points that the red box adds to the green one in dualbox.T1, column by column, mean of the three sizes."""
    cells = _cells("dualbox.T1")
    rows = [[_row(cells, f"Qwen2.5-{size} + {prompt}") for prompt in (GREEN, DUAL)] for size in SIZES]
    places = sorted(rows[0][0], key=lambda place: -mean(dual[place] - green[place] for green, dual in rows))
    return {
        f"{group}, {column}": round(mean(dual[group, column] - green[group, column] for green, dual in rows), 2)
        for group, column in places
    }


def closed_mean() -> dict[str, float]:
    """Closed accuracy of Med3DVLM: in the abstract, in med3dvlm.T4, and as the mean of T4's five kinds of question."""
    return {
        "abstract": said("med3dvlm", "closed-ended VQA accuracy"),
        "table, mean": cell("med3dvlm.T4", "Med3DVLM (Ours)", "accuracy", condition="Mean"),
        "mean of five kinds": round(_claim("Med3DVLM, closed, mean of types"), 3),
    }


def gains_over_ct_clip() -> dict[str, float]:
    """Points over CT-CLIP on global zero-shot detection in medvista3d.T1, for both backbones."""
    return {
        f"MedVista3D-{name}, {column}": round(_claim(f"{name} over CT-CLIP, {column}"), 1)
        for name in ("ViT", "UniMISS")
        for column in ("AUC", "F1 (weighted)")
    }


def segmentation_baselines() -> dict[str, float]:
    """Mean F1 over three organs in uvlm.T3, as a share: both segmentation baselines, and U-VLM."""
    return {row: round(organs(row).value, 3) for row in ("nnU-Net Seg(C+L)", "nnU-Net Seg(F+L)", "U-VLM Seg(C+L)")}


def qwen3_rows() -> dict[str, float]:
    """Best F1 on CT-RATE in uvlm.T5 of the 0.1B decoder, and of the 4B one by pretraining."""
    found: dict[str, float] = {}
    for one in published.table("uvlm.T5"):
        if one.column == "F1 (macro)" and one.group.startswith("CT-RATE"):
            name = f"4B, {one.row.split(' →')[0]}" if "Q4B" in one.condition else "0.1B"
            found[name] = max(found.get(name, 0.0), one.value)
    return found


def ct_chat_cells() -> dict[str, float]:
    """CT-CHAT's BLEU-1 on CT-RATE reports as each paper prints it."""
    return {
        name: next(v for (group, c), v in _row(_cells(name), "CT-CHAT", "report").items() if c == "BLEU-1")
        for name in ("medvista3d.T3", "uvlm.T2")
    }


def _cells(name: str) -> list[published.Published]:
    return [one for one in published.table(name) if one.value is not None]


def _row(cells: list[published.Published], row: str, part: str = "") -> dict[tuple[str, str], float]:
    """(group, column) → value of a row, in the groups whose name contains ``part``."""
    return {(c.group, c.column): c.value for c in cells if c.row == row and part in c.group}


def _claim(name: str) -> float:
    from ctvlm_lib.ledger.claims_exact import compute  # it needs torch

    return compute(name).value


PRINTED = (
    split_sums, gains_of_contours, same_numbers, against_7b, negative_box_gains, closed_mean, gains_over_ct_clip,
    segmentation_baselines, qwen3_rows, ct_chat_cells,
)  # fmt: skip
