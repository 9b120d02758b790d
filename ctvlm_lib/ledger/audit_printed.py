"""Arithmetic on what the papers print: the tables' cells against the prose. See :mod:`ctvlm_lib.ledger.audit_effects`.

Cells come from :mod:`ctvlm_lib.ledger.published`, numbers of the prose from the audit's own quotes.
"""

import re
from statistics import mean

from ctvlm_lib.ledger import published

SIZES = ("0.5B", "1.5B", "3B")
NO_PROMPT, OUTLINE, GREEN, DUAL = "no prompt", "contour (VISTA-Prompt)", "positive box only", "dual-polarity boxes"


def split_sums() -> dict[str, float]:
    """Volumes and questions of the three parts, added up, and the whole that the same section names."""
    whole, parts, questions = _words("split-sizes")
    volumes, thousands = re.fullmatch(r"yielding ([\d, ]+) volumes and (.+) QA pairs", parts).groups()
    return {
        "volumes, parts": sum(map(int, volumes.split(", "))),
        "volumes, whole": int(re.search(r"\d+ \d+", whole)[0].replace(" ", "")),
        "questions, parts": 1000 * sum(map(int, re.findall(r"\d+", thousands))),
        "questions, whole": round(1e6 * float(re.search(r"[\d.]+", questions)[0])),
    }


def contour_gains() -> dict[str, float]:
    """Points that the outline adds in contour.T1: open answers (mean of three scores), closed ones, reports."""
    cells = _cells("contour.T1")
    found = {}
    for part in ("open", "closed", "report"):
        by_size = []
        for size in SIZES:
            without, with_line = (_row(cells, f"Qwen2.5-{size} + {prompt}", part) for prompt in (NO_PROMPT, OUTLINE))
            by_size.append(mean(with_line[place] - without[place] for place in without))
            found[f"{part}, {size}"] = round(by_size[-1], 2)
        found[f"{part}, mean of sizes"] = round(mean(by_size), 2)
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
    row = {c.condition.split()[-1]: c.value for c in published.table("med3dvlm.T4") if c.row == "Med3DVLM (Ours)"}
    kinds = [value for kind, value in row.items() if kind != "Mean"]
    abstract = float(re.search(r"achieves ([\d.]+)%", _words("closed-accuracy")[0])[1])
    return {"abstract": abstract, "table, mean": row["Mean"], "mean of five kinds": round(mean(kinds), 3)}


def gains_over_ct_clip() -> dict[str, float]:
    """Points over CT-CLIP on global zero-shot detection in medvista3d.T1, for both backbones."""
    cells = _cells("medvista3d.T1")
    base = _row(cells, "CT-CLIP", "global")
    return {
        f"{name}, {column}": round(100 * (value - base[group, column]), 1)
        for name in ("MedVista3D-ViT", "MedVista3D-UniMISS")
        for (group, column), value in _row(cells, name, "global").items()
        if column in ("AUC", "F1 (weighted)")
    }


def segmentation_baselines() -> dict[str, float]:
    """Mean F1 over three organs in uvlm.T3, as a share: both segmentation baselines, and U-VLM."""
    cells = _cells("uvlm.T3")
    return {
        name: round(mean(v for (_, column), v in _row(cells, name).items() if column == "F1") / 100, 3)
        for name in ("nnU-Net Seg(C+L)", "nnU-Net Seg(F+L)", "U-VLM Seg(C+L)")
    }


def qwen3_rows() -> dict[str, float]:
    """Best F1 on CT-RATE in uvlm.T5 of the 0.1B decoder, and of the 4B one by pretraining."""
    found: dict[str, float] = {}
    for cell in published.table("uvlm.T5"):
        if cell.column == "F1 (macro)" and cell.group.startswith("CT-RATE"):
            large = "Q4B" in cell.condition
            name = f"4B, {cell.row.split(' →')[0]}" if large else "0.1B"
            found[name] = max(found.get(name, 0.0), cell.value)
    return found


def ct_chat_cells() -> dict[str, float]:
    """CT-CHAT's BLEU-1 on CT-RATE reports as each paper prints it."""
    return {
        name: next(v for (group, c), v in _row(_cells(name), "CT-CHAT", "report").items() if c == "BLEU-1")
        for name in ("medvista3d.T3", "uvlm.T2")
    }


def _cells(name: str) -> list[published.Published]:
    return [cell for cell in published.table(name) if cell.value is not None]


def _row(cells: list[published.Published], row: str, part: str = "") -> dict[tuple[str, str], float]:
    """(group, column) → value of a row, in the groups whose name contains ``part``."""
    return {(c.group, c.column): c.value for c in cells if c.row == row and part in c.group}


def _words(item: str) -> list[str]:
    from ctvlm_lib.ledger import audit  # it reads this module's list first

    return [quote.words for quote in audit.item(item).quotes]


PRINTED = (
    split_sums, contour_gains, same_numbers, against_7b, negative_box_gains, closed_mean, gains_over_ct_clip,
    segmentation_baselines, qwen3_rows, ct_chat_cells,
)  # fmt: skip
