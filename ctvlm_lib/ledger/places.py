"""Where each published number stands: what it would take to have it, and which quantity of ours stands beside it.

    exact           counted here: parameters, tokens, shapes; has to agree, or the note says why not
    analogue        the same quantity on phantoms: other images, other words, smaller models; levels can't be compared,
                    differences are judged as contrasts
    data            needs the real data set, and often released weights: profile ``paper``
    not computable  another group's system, or something that can't be done with what the paper says
    lost            the number is lost in the source text

An analogue whose arm isn't trained yet is still one; its status says so.
"""

import re
from dataclasses import dataclass, replace

from ctvlm_lib.alignment import arms as pretraining
from ctvlm_lib.evaluate.text_papers import variant_for
from ctvlm_lib.experiments.chat_arms import ARMS as CHATS
from ctvlm_lib.experiments.local_global import ARMS as ALIGNED
from ctvlm_lib.experiments.uvlm_arms import ARMS as STAGED
from ctvlm_lib.experiments.uvlm_arms import REP
from ctvlm_lib.experiments.vlm_arms import ARMS
from ctvlm_lib.experiments.vlm_tables import pooled_kinds
from ctvlm_lib.ledger import chat, local_global, real_places, uvlm
from ctvlm_lib.ledger.decoder_sizes import UVLM
from ctvlm_lib.ledger.published import Published
from ctvlm_lib.ledger.quantities import Quantity, Recall, Score, Size
from ctvlm_lib.records import protocol

EXACT, ANALOGUE, DATA, NOT, LOST = KINDS = ("exact", "analogue", "data", "not computable", "lost in the source text")
PROMPTS = real_places.PROMPTS
SIZES = {"0.5B": "small", "1.5B": "middle", "3B": "large"}
BATCH = 32  # of the pretraining arms that stand in the ledger; the paper's is 64 on each GPU
PROJECTOR = "2xMLP-Mixer-H"  # Med3DVLM's own
NOT_ASKED = "organ"  # without a prompt nothing tells on phantoms which structure is meant

_OTHER = "another group's system; the number is quoted, and its weights and settings aren't part of this workbook"
_PMC = "PMC-VQA's figures are two-dimensional and have no masks, so there is nothing to draw a box from"
_PLANE = "every phantom is axial, so that there is nothing to ask; needs M3D-VQA"
_ORGAN = "asks which structure is meant, and without a prompt nothing tells on phantoms; needs M3D-VQA"
_BERT = "BERTScore needs roberta-large from a hub; the workbook's MiniLM similarity is another quantity"
_NO_NUMBER = "the paper prints no number here"
_DOUBTS = ("UNCERTAIN", "condition from prose")  # how the note of a printed number begins whose cell or row is a guess


@dataclass(frozen=True)
class Place:
    """Where a published number stands.

    Attributes:
        kind: of KINDS.
        quantity: of ours that stands beside it, None if there is none or none yet.
        why: what the kind comes from, and what differs.
        notebook: where it is shown, e.g. "70"; "" if nowhere.
        command: that makes ours, or "" where there is none.
    """

    kind: str
    quantity: Quantity | None = None
    why: str = ""
    notebook: str = ""
    command: str = ""


def place(cell: Published) -> Place:
    """Where a published number stands; every cell of ``paper_tables.csv`` has exactly one place."""
    if cell.value is None:
        lost = "lost in OCR" in cell.note or cell.note.startswith(("UNVERIFIED", "UNCERTAIN"))
        missing = lost and "no number printed" not in cell.note
        return Place(LOST, why=cell.note) if missing else Place(NOT, why=_NO_NUMBER)
    made = _PAPERS[cell.paper](cell)
    if cell.note.startswith(_DOUBTS):  # what ours stands beside is a guess
        made = replace(made, why=f"{made.why}; {cell.note}")
    if made.kind == DATA:
        return replace(made, command=real_places.command(real_places.quantity(cell)))
    return _with_command(made)


def _prompts(cell: Published) -> Place:
    """The contour and the dual-box paper's tables."""
    if cell.paper == "dualbox" and cell.group == "PMC-VQA":
        return Place(NOT, why=_PMC)
    if cell.row.startswith("Med3DVLM-7B"):
        return Place(DATA, why="needs the released 7 B weights and RadGenome-ChestCT; " + cell.note)
    size, prompt = re.fullmatch(r"Qwen2\.5-(\S+) \+ (.+)", cell.row).groups()
    form = "report" if cell.group.startswith("report") else "closed" if cell.column == "accuracy" else "open"
    kinds = _pooled(f"{cell.paper}-{cell.table}", form)
    score = Score(PROMPTS[prompt], SIZES[size], form=form, metric=cell.column, kinds=kinds)
    return Place(ANALOGUE, score, f"the ladder's {SIZES[size]} decoder stands for {size}, phantoms for the data set",
                 "70")  # fmt: skip


def _med3dvlm(cell: Published) -> Place:
    if cell.table in ("T1", "T5"):
        return _retrieval(cell)
    variant = PROJECTOR if cell.row == "Med3DVLM (Ours)" else cell.row
    if cell.table in ("T2", "T3", "T4") and variant != PROJECTOR:
        return Place(NOT, why=_OTHER)
    kind = cell.condition.removeprefix("question type ").lower()
    if cell.column == "BERTScore" or kind in ("plane", "organ"):
        why = _BERT if cell.column == "BERTScore" else {"plane": _PLANE, "organ": _ORGAN}[kind]
        return Place(DATA, why=why)
    form = "report" if cell.group.endswith("report generation") else "closed" if "closed" in cell.group else "open"
    pooled = tuple(one for one in _pooled("med3dvlm", form) if one != NOT_ASKED)
    kinds = (kind,) if kind in pooled else pooled  # the mean, or reports
    metric = "accuracy" if form == "closed" else variant_for("med3dvlm")[cell.column]
    score = Score("none", "small", variant, form, metric, kinds, mean=kind == "mean")
    why = "no prompt, the ladder's smallest decoder with this projector; phantoms for M3D"
    return Place(ANALOGUE, score, why + (f": mean over {', '.join(pooled)}" if kind == "mean" else ""), "70")


def _retrieval(cell: Published) -> Place:
    encoder = {"ViT3D CLIP": "vit3d-clip", "DCFormer CLIP": "dcformer-clip"}.get(cell.row)
    encoder = "dcformer-siglip" if cell.row.startswith("Med3DVLM") else encoder
    if encoder is None:
        return Place(NOT, why=_OTHER)
    gallery, k = int(cell.condition.split()[-1]), int(cell.column.removeprefix("R@"))
    direction = "text→image" if "text-to-image" in cell.group else "image→text"
    patients = protocol.load().size("test", "full")
    if gallery > patients:
        why = f"{gallery:,} candidates are more than the cohort's {patients} test patients; needs M3D-Cap"
        return Place(DATA, why=why)
    return Place(ANALOGUE, Recall(f"{encoder}-{BATCH}", direction, gallery, k),
                 f"phantoms for M3D-Cap, batches of {BATCH}; equal reports count as one", "50")  # fmt: skip


def _medvista3d(cell: Published) -> Place:
    if "UniMISS" in cell.row:
        return Place(DATA, why="needs UniMISS's weights and CT-RATE")
    if cell.table == "T3":
        return _chat(cell)
    found = local_global.quantity(cell)
    if found is None:
        return Place(NOT, why=_OTHER)
    other = "another scanner's phantoms for Rad-ChestCT" if cell.table == "T2" else "phantoms for CT-RATE"
    why = f"{other}; a small transformer on the tokens of a frozen encoder that was trained with finding masks"
    return Place(ANALOGUE, found, why, "55")


def _chat(cell: Published) -> Place:
    found = chat.quantity(cell)
    if found is None:
        return Place(NOT, why=_OTHER)
    aligned = "reports alone" if cell.row == "CT-CHAT" else "reports and regions' sentences, as they are and enriched"
    why = (f"phantoms for CT-RATE, an encoder aligned on {aligned}, the ladder's smallest decoder; long answers are"
           " what a report says of a region")  # fmt: skip
    return Place(ANALOGUE, found, why, "55")


def _uvlm(cell: Published) -> Place:
    if cell.table == "T1":
        named = re.search(r"LD=([^;]+)", cell.note)[1]
        if cell.row.startswith("U-VLM"):
            why = "8 blocks, 512 wide, and Qwen3's words, which are three quarters of it"
            return Place(EXACT, Size(UVLM), why)
        return Place(EXACT, Size(named), f"counted from the shape of {named}; the paper prints what the name says")
    if cell.table == "T2" and not cell.row.startswith("U-VLM") or cell.row.startswith(("M3D", "RadFM")):
        return Place(NOT, why=_OTHER)
    found = uvlm.quantity(cell)
    if found is None:
        if "decoder Q4B-F" in cell.condition:
            return Place(DATA, why="needs Qwen3-4B, all of it tuned, and the real data sets")
        return Place(DATA, why="needs AbdomenAtlas 3.0; the cohort has one set of reports, scored beside CT-RATE's")
    abdomen = "AbdomenAtlas" in cell.group
    why = (
        "lesions of liver, kidney and spleen for AbdomenAtlas's" if abdomen else "the cohort's 18 labels for CT-RATE's"
    )
    why += "; structured reports, which share most of their words" if STAGED[found.arm].stage == REP else ""
    return Place(ANALOGUE, found, f"phantoms and a small U-Net; {why}", "65")


_PAPERS = {"contour": _prompts, "dualbox": _prompts, "med3dvlm": _med3dvlm, "medvista3d": _medvista3d, "uvlm": _uvlm}


def _pooled(key: str, form: str) -> tuple[str, ...]:
    """The kinds of question that a table pools, by the protocol."""
    return pooled_kinds(protocol.load().content["tables"][key], form)


def _with_command(made: Place) -> Place:
    arm = getattr(made.quantity, "arm", "")
    if not arm:
        return made
    if not any(arm in arms for arms in (ARMS, pretraining.ARMS, ALIGNED, CHATS, STAGED)):
        raise KeyError(f"{arm} is no arm of the library")
    return replace(made, command=f"ctvlm arm {arm}")
