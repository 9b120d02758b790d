"""Claims of Med3DVLM, MedVista3D and U-VLM that follow from their own tables and sentences."""

from collections.abc import Callable
from itertools import pairwise, product

from ctvlm_lib.ledger import published
from ctvlm_lib.ledger.claims import said
from ctvlm_lib.ledger.claims_arithmetic import Computed, cell, computes

TYPES = ("Plane", "Phase", "Organ", "Abnormality", "Location")
OURS, M3D = "Med3DVLM (Ours)", "M3D-LaMed"
RETRIEVING = "Med3DVLM (DCFormer-S SigLIP)"
ORGANS = ("pancreatic", "kidney", "liver")
PIPELINES = ("Seg(C+L) → Cls → Rep", "Seg(F+L) → Cls → Rep")


def _difference(table: str, left: str, right: str, column: str, group: str, scale: float = 100) -> Callable:
    def compute() -> Computed:
        a, b = (scale * cell(table, row, column, group) for row in (left, right))
        return Computed(round(a - b, 6), "points", f"{table}, {group}, {column}: {left} {a:.4g} less {right} {b:.4g}")

    return compute


def _relative(table: str, left: str, right: str, column: str, group: str = "", condition: str = "") -> Callable:
    def compute() -> Computed:
        a, b = (cell(table, row, column, group, condition) for row in (left, right))
        return Computed(100 * (a / b - 1), "% relative", f"{table}, {column}: {left} {a:g} over {right} {b:g}")

    return compute


# Med3DVLM
def _mean(table: str, row: str, column: str) -> Callable:
    def compute() -> Computed:
        values = [cell(table, row, column, "", f"type {kind}") for kind in TYPES]
        return Computed(sum(values) / len(values), "%", f"{table}, {row}: mean of {values}, the five question types")

    return compute


for _row, _who in ((OURS, "Med3DVLM"), (M3D, "M3D-LaMed")):
    computes(f"{_who}, closed, mean of types")(_mean("med3dvlm.T4", _row, "accuracy"))
computes("Med3DVLM, open METEOR, mean of types")(_mean("med3dvlm.T3", OURS, "METEOR"))
computes("METEOR over M3D-LaMed, relative")(_relative("med3dvlm.T3", OURS, M3D, "METEOR", "", "Mean"))
computes("accuracy over M3D-LaMed, relative")(_relative("med3dvlm.T4", OURS, M3D, "accuracy", "", "Mean"))


@computes("lead in R@1 as the test set grows, smallest step")
def retrieval_gap() -> Computed:
    sizes = (100, 500, 1000, 2000)
    gaps = [cell("med3dvlm.T1", RETRIEVING, "R@1", "image retrieval", f"size {n}")
            - cell("med3dvlm.T1", M3D, "R@1", "image retrieval", f"size {n}") for n in sizes]  # fmt: skip
    steps = [round(b - a, 2) for a, b in pairwise(gaps)]
    shown = ", ".join(f"{gap:.1f}" for gap in gaps)
    return Computed(min(steps), "percentage points", f"med3dvlm.T1: the lead is {shown} with {sizes} candidates")


@computes("lead in recall, smallest")
def recall_lead() -> Computed:
    cells = {(c.row, c.group, c.column, c.condition): c.value for c in published.table("med3dvlm.T1")}
    places = {place for _, *place in map(list, cells) for place in [tuple(place)]}
    leads = [cells[RETRIEVING, *p] - max(v for k, v in cells.items() if k[1:] == p and k[0] != RETRIEVING)
             for p in places]  # fmt: skip
    behind = sum(lead < 0 for lead in leads)
    return Computed(round(min(leads), 2), "percentage points", f"med3dvlm.T1: behind in {behind} of {len(leads)} cells")


# MedVista3D
_GLOBAL = "global disease zero-shot"
for _row in ("UniMISS", "ViT"):
    for _column in ("AUC", "F1 (weighted)"):
        computes(f"{_row} over CT-CLIP, {_column}")(
            _difference("medvista3d.T1", f"MedVista3D-{_row}", "CT-CLIP", _column, _GLOBAL)
        )
for _column in ("R@5", "R@10"):
    computes(f"ViT over CT-CLIP, {_column}")(
        _difference("medvista3d.T1", "MedVista3D-ViT", "CT-CLIP", _column, "report retrieval", 1)
    )
for _group in ("long answer", "short answer", "report generation"):
    computes(f"over CT-CHAT, BLEU-1, {_group}")(
        _difference("medvista3d.T3", "MedVista3D-LLaVA", "CT-CHAT", "BLEU-1", _group)
    )
for _row in ("nnUNet", "Merlin"):
    computes(f"over {_row}, Dice")(_difference("medvista3d.T6", "MedVista3D-UniMISS", _row, "Dice", "organ"))


@computes("sum of CT-RATE volumes")
def ct_rate_volumes() -> Computed:
    parts = [said("medvista3d", f"CT-RATE {part} volumes") for part in ("training", "test")]
    return Computed(sum(parts), "volumes", f"MedVista3D's two splits: {parts[0]:,.0f} + {parts[1]:,.0f}")


# U-VLM
computes("F1 over BTB3D-16, relative")(_relative("uvlm.T2", "U-VLM (Ours)", "BTB3D-16", "F1 (macro)"))
for _group in ("CT-RATE", "AbdomenAtlas"):
    computes(f"classification by segmentation, {_group}")(
        _relative("uvlm.T4", f"Seg({'F' if _group == 'CT-RATE' else 'C'}+L) → Cls", "None → Cls", "F1 (macro)", _group)
    )


def _bleu(row: str) -> Callable:
    def compute() -> Computed:
        values = [cell("uvlm.T2", row, f"BLEU-{n}") for n in (1, 2, 3, 4)]
        return Computed(sum(values) / 4, "fraction", f"uvlm.T2, {row}: mean of {values}")

    return compute


computes("U-VLM, mean of BLEU-1 to 4")(_bleu("U-VLM (Ours)"))
computes("BTB3D-16, mean of BLEU-1 to 4")(_bleu("BTB3D-16"))


def organs(row: str) -> Computed:
    """Mean F1 over three organs of a row of uvlm.T3, as a share."""
    values = [cell("uvlm.T3", row, "F1", organ) for organ in ORGANS]
    return Computed(sum(values) / len(values) / 100, "fraction", f"uvlm.T3, {row}: mean of {values} %")


computes("U-VLM, F1 over three organs")(lambda: organs("U-VLM Seg(C+L)"))
computes("nnU-Net, F1 over three organs")(lambda: organs("nnU-Net Seg(C+L)"))


@computes("nnU-Net, F1 over three organs, the better one")
def better_nnunet() -> Computed:
    return max(organs(f"nnU-Net Seg({labels}+L)") for labels in "CF")


@computes("smallest compared decoder")
def smallest_compared() -> Computed:
    sizes = {c.row: c.value for c in published.table("uvlm.T1") if c.value and "Ours" not in c.row}
    row = min(sizes, key=sizes.get)
    return Computed(sizes[row], "B parameters", f"uvlm.T1: {row} is the smallest of {len(sizes)} with a printed size")


@computes("0.1B over Qwen3-4B, F1, smallest lead")
def small_over_4b() -> Computed:
    def best(row: str, group: str, decoders: tuple[str, ...]) -> float:
        return max(c.value for c in published.table("uvlm.T5") if c.row == row and c.column.startswith("F1")
                   and group in c.group and c.condition.endswith(decoders))  # fmt: skip

    leads = [best(r, g, ("decoder 0.1B",)) - best(r, g, ("decoder Q4B-L", "decoder Q4B-F"))
             for r, g in product(PIPELINES, ("CT-RATE", "AbdomenAtlas"))]  # fmt: skip
    return Computed(round(min(leads), 6), "fraction", "uvlm.T5, best rows: two pipelines on two data sets")
