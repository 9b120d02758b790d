"""Which quantity stands beside a published number once a user has the real data: profile ``paper``."""

import re
from dataclasses import replace

from ctvlm_lib.evaluate.text_papers import variant_for
from ctvlm_lib.experiments.vlm_tables import pooled_kinds
from ctvlm_lib.ledger import local_global, uvlm
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Aligned, RealScore, Recall, Staged
from ctvlm_lib.records import protocol
from ctvlm_lib.records.m3d import QUESTION_TYPES

PROMPTS = {
    "no prompt": "none", "contour (VISTA-Prompt)": "contour", "positive box only": "box", "dual-polarity boxes": "dual",
}  # fmt: skip
ABDOMEN = "AbdomenAtlas"  # begins the name of U-VLM's second data set
ALIGNED = ("T1", "T4", "T5")  # of MedVista3D; T2 asks about Rad-ChestCT
RETRIEVAL = {"ViT3D CLIP": "vit3d-clip-m3d", "DCFormer CLIP": "dcformer-clip-m3d", "Med3DVLM": "dcformer-siglip-m3d"}


def quantity(cell: Published) -> RealScore | Recall | Aligned | Staged | None:
    """What stands beside a number if the real data are there; None where this workbook can't have it even then."""
    if cell.value is None:
        return None
    if cell.paper in ("contour", "dualbox"):
        return _prompts(cell)
    if cell.paper == "medvista3d":
        return local_global.quantity(cell) if cell.table in ALIGNED else None
    if cell.paper == "uvlm":
        return _uvlm(cell)
    return _med3dvlm(cell) if cell.paper == "med3dvlm" else None


def command(found: RealScore | Recall | Aligned | Staged | None) -> str:
    """What makes it, "" for nothing."""
    if found is None:
        return ""
    where = "--data DIR" if isinstance(found, Recall) else "--sources FILE"
    return f"ctvlm arm {found.arm} --profile paper {where}"


def _prompts(cell: Published) -> RealScore | None:
    """What was measured on RadGenome-ChestCT; PMC-VQA has no masks, so nothing can be drawn."""
    if "RadGenome" not in cell.group:
        return None
    form = "closed" if cell.column == "accuracy" else "open"
    kinds = pooled_kinds(protocol.load().content["tables"][f"{cell.paper}-{cell.table}"], form)
    if cell.row.startswith("Med3DVLM-7B"):
        return RealScore("radgenome-none-released", form, cell.column, kinds)
    size, prompt = re.fullmatch(r"Qwen2\.5-(\S+) \+ (.+)", cell.row).groups()
    return RealScore(f"radgenome-{PROMPTS[prompt]}-{size}", form, cell.column, kinds)


def _med3dvlm(cell: Published) -> RealScore | Recall | None:
    if cell.table in ("T1", "T5"):
        arm = next((arm for name, arm in RETRIEVAL.items() if cell.row.startswith(name)), None)
        gallery, k = int(cell.condition.split()[-1]), int(cell.column.removeprefix("R@"))
        direction = "text→image" if "text-to-image" in cell.group else "image→text"
        return None if arm is None else Recall(arm, direction, gallery, k)
    if cell.table in ("T2", "T3", "T4"):
        arm = "m3d-none-released" if cell.row == "Med3DVLM (Ours)" else ""
    else:
        arm = f"m3d-none-7B-{cell.row}"
    if not arm:
        return None
    form = "report" if cell.group.endswith("report generation") else "closed" if "closed" in cell.group else "open"
    kind = cell.condition.removeprefix("question type ").lower()
    kinds = (kind,) if kind in QUESTION_TYPES.values() else ("report",) if form == "report" else (
        tuple(QUESTION_TYPES.values()))  # fmt: skip
    metric = "accuracy" if form == "closed" else variant_for("med3dvlm")[cell.column]
    return RealScore(arm, form, metric, kinds, mean=kind == "mean")


def _uvlm(cell: Published) -> Staged | None:
    """The cohort's arm and measure on the data set that the number is of; none where all of Qwen3-4B is tuned."""
    abdomen = cell.group.startswith(ABDOMEN)
    reports = abdomen and cell.column.startswith("BLEU")  # the cohort's reports stand beside CT-RATE's alone
    found = uvlm.quantity(replace(cell, group="") if reports else cell)
    if found is None or not abdomen:
        return found
    measure = found.measure.replace("spleen", "pancreas")  # in whose place the cohort has the spleen
    return replace(found, arm=f"{found.arm}-abdomen", measure=measure)
