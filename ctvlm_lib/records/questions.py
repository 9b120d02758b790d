"""Grounded questions on phantom patients, balanced so that their words alone don't tell the answer.

The kinds are RadGenome-ChestCT's (presence, abnormality, location, size) and those of M3D-VQA that a phantom can answer
(phase, organ, abnormality, location, with four choices). There is no plane question: all volumes are axial, so that its
answer would never change. Each question on a region stands twice: once its words name the region, once they say "the
marked region" only, and a prompt is the only way to know which. "Which structure?" exists in the second form alone.

The questions are balanced (:mod:`ctvlm_lib.records.balance`) among those of exactly the same words and choices. So the
wording depends on nothing but the region where that is named, and on nothing but the patient where it isn't. Each
question is to be asked by itself: one on a finding's size or place tells that there is a finding.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.balance import balance, drawn, pick
from ctvlm_lib.records.phantom import LOBES, REGIONS, Finding, Patient
from ctvlm_lib.records.record import Record
from ctvlm_lib.records.report import focal_findings, report
from ctvlm_lib.records.split import assign_splits

NONE = "no focal finding"
LUNG_KINDS = ("nodule", "mass", "cyst", "calcification", "consolidation", "ground-glass opacity", "emphysema")
ORGAN_KINDS = ("mass", "cyst", "calcification")
# Choices are fixed sets: sets drawn at random would need a cohort of many thousands before each is balanced.
LUNG_CHOICES = (
    ("nodule", "mass", "calcification", NONE),
    ("cyst", "ground-glass opacity", "emphysema", NONE),
    ("nodule", "cyst", "consolidation", NONE),
)
ORGAN_CHOICES = ((*ORGAN_KINDS, NONE),)
ORGAN_SETS = tuple(tuple(REGIONS[(k + step) % len(REGIONS)] for step in (0, 1, 3, 7)) for k in range(len(REGIONS)))
PARTS = ("upper anterior", "upper posterior", "lower anterior", "lower posterior")
PART_MARGIN_MM = 4.0  # nearer to the middle than this, a part isn't asked for
LUNG_SIZES_MM, ORGAN_SIZES_MM = (30, 45, 60), (30, 36, 42)  # upper limits of the first three size classes
PHASES = ("non-contrast", "arterial", "portal venous", "delayed")
REPORT_QUESTION = "Describe the findings of this CT."
UNNAMED = ("the marked region", "this region")
ASKED = {
    "presence": ("Is there a focal finding in {where}?", "Does {where} show a focal finding?"),
    "kind": ("Is there {kind} in {where}?", "Does {where} show {kind}?"),
    "abnormality": ("What kind of finding does {where} show?", "Which abnormality is present in {where}, if any?"),
    "location": ("Where in {where} does the focal finding lie?", "Which part of {where} holds the focal finding?"),
    "size": ("How large is the focal finding in {where}?", "What is the longest diameter of the finding in {where}?"),
    "organ": ("Which structure is marked?", "What anatomical structure is this?"),
    "phase": ("In which contrast phase was this scan taken?", "Which contrast phase does this CT show?"),
}


def ask(
    patients: Iterable[Patient], split: str | None = None, *, fractions: str | dict = "70/10/20", seed: int = 0
) -> list[Record]:
    """Ask about every patient of a cohort, split by patient, and balance.

    Args:
        patients: read one at a time.
        split: of all of them, for cohorts that are split by their seeds; None splits these patients. Then balance the
            cohorts' records together once more, so that open questions have the same answers in all.
        fractions: of :func:`ctvlm_lib.records.split.assign_splits`.
        seed: of the split, the wording, the surplus that is dropped and the order of the choices.

    Raises:
        BadInput: no patient, a patient given twice, or a split left without patients.
    """
    records, seen = [], set()
    for patient in patients:
        if patient.name in seen:
            raise BadInput(f"patient {patient.name} is given twice; ask about each one once")
        seen.add(patient.name)
        records += candidates(patient, split or "train", seed)
    if not records:
        raise BadInput("there are no patients to ask about; give at least one")
    if split is None:
        records = assign_splits(records, fractions, seed=seed)
    return balance(records, seed)


def candidates(patient: Patient, split: str = "train", seed: int = 0) -> list[Record]:
    """All records of one patient before balancing: the report, the phase, and each region in both strata."""
    folder = case_folder(patient)
    common = {"dataset": "phantom", "patient": patient.name, "split": split, "style": "plain"}
    common |= {"volume": f"{folder}/ct.nii.gz", "mask": f"{folder}/labels.nii.gz"}
    blank = {"region": None, "distractor": None, "choices": (), "names_region": False}
    made = [common | blank | {"id": f"{folder}:report", "kind": "report", "form": "open", "question": REPORT_QUESTION,
                              "answer": report(patient).text}]  # fmt: skip
    phase = {"kind": "phase", "question": pick(ASKED["phase"], seed, patient.name), "answer": _phase(patient)}
    made.append(common | blank | phase | {"id": f"{folder}:phase:closed", "form": "closed", "choices": PHASES})
    made.append(common | blank | phase | {"id": f"{folder}:phase:open", "form": "open"})
    lesions, middles = focal_findings(patient), _middles(patient)
    for region, middle in middles.items():
        about = {"region": region, "distractor": _distractor(region, middles, lesions)}
        asked = list(_asked(patient, region, middle, lesions.get(region), seed))
        for named in (True, False):
            for name, kind, form, words, answer, choices in asked:
                if named and kind == "organ":
                    continue
                question = _question(words, name, region if named else None, patient.name, seed)
                stratum = "named" if named else "unnamed"
                record = {"id": f"{folder}:{region}:{name}:{form}:{stratum}", "kind": kind, "form": form,
                          "question": question, "answer": answer, "choices": choices}  # fmt: skip
                made.append(common | about | record | {"names_region": named})
    return [Record(**contents) for contents in made]


def save_case(patient: Patient, folder: str | Path) -> Path:
    """Write CT and label map below the data set's folder, where the records of the patient say that they lie."""
    home = Path(folder) / case_folder(patient)
    home.mkdir(parents=True, exist_ok=True)
    patient.volume.save(home / "ct.nii.gz")
    patient.labels.save(home / "labels.nii.gz")
    return home


def case_folder(patient: Patient) -> str:
    """Name of a patient's folder: one patient may have been scanned on both scanners."""
    return f"{patient.name}-{patient.attributes['scanner']}"


def size_class(size_mm: float, limits: tuple[int, int, int]) -> tuple[str, tuple[str, ...]]:
    """The class that a size belongs to, and all four; a limit itself belongs to the smaller class."""
    low, middle, high = limits
    names = (f"up to {low} mm", f"{low} to {middle} mm", f"{middle} to {high} mm", f"more than {high} mm")
    return names[sum(size_mm > limit for limit in limits)], names


def _asked(patient: Patient, region: str, middle, lesion: Finding | None, seed: int) -> Iterator[tuple]:
    """(name, kind, form, kind of finding asked for, answer, choices) of one region."""
    kinds, sets, limits = (
        (LUNG_KINDS, LUNG_CHOICES, LUNG_SIZES_MM) if region in LOBES else (ORGAN_KINDS, ORGAN_CHOICES, ORGAN_SIZES_MM)
    )
    draw = (seed, patient.name, region)
    found = lesion.kind if lesion else NONE
    yield "presence", "presence", "closed", "", "Yes" if lesion else "No", ()
    others = tuple(kind for kind in kinds if kind != found)
    asked = found if lesion and drawn(*draw, "asked") % 2 else pick(others, *draw, "other")
    yield "kind", "presence", "closed", asked, "Yes" if asked == found else "No", ()
    choices = pick(tuple(names for names in sets if found in names), *draw, "choices")
    yield "abnormality", "abnormality", "closed", "", found, choices
    yield "abnormality", "abnormality", "open", "", found, ()
    yield "organ", "organ", "closed", "", region, pick(tuple(s for s in ORGAN_SETS if region in s), *draw, "organs")
    yield "organ", "organ", "open", "", region, ()
    if lesion is None:
        return
    yield "size", "size", "closed", "", *size_class(lesion.size_mm, limits)
    yield "size", "size", "open", "", f"about {round(lesion.size_mm, -1):.0f} mm", ()
    part = _part(patient, middle, lesion)
    if part:
        yield "location", "location", "closed", "", part, PARTS
        yield "location", "location", "open", "", f"in its {part} part", ()


def _question(asked: str, name: str, region: str | None, patient: str, seed: int) -> str:
    who = (seed, region or patient, name)  # never the answer, and never an unnamed region
    where = f"the {region}" if region else pick(UNNAMED, *who, "where")
    return pick(ASKED[name], *who).format(where=where, kind=with_article(asked))


def with_article(kind: str) -> str:
    """A kind of finding as a question names it: "a nodule", "emphysema"."""
    return kind if kind == "emphysema" else f"a {kind}"


def _middles(patient: Patient) -> dict[str, np.ndarray]:
    """Region → middle of its mask, LPS mm; regions outside the field are left out."""
    present = set(patient.labels.present)
    return {
        region: patient.volume.mm_of(np.argwhere(patient.labels.binary(region)).mean(axis=0))
        for region in REGIONS
        if region in present
    }


def _part(patient: Patient, middle: np.ndarray, lesion: Finding) -> str | None:
    """Which quarter of its region a lesion lies in, by the scanner's axes; None if too near to the middle."""
    start = [pair[0] for pair in lesion.box]
    _, back, up = patient.volume.mm_of(np.argwhere(lesion.inside).mean(axis=0) + start) - middle
    if min(abs(back), abs(up)) < PART_MARGIN_MM:
        return None
    return f"{'upper' if up > 0 else 'lower'} {'posterior' if back > 0 else 'anterior'}"


def _distractor(region: str, middles: dict, lesions: dict[str, Finding]) -> str | None:
    """The nearest other region, of those with a finding if there are any; what the region itself has plays no part."""
    others = [name for name in middles if name != region]
    candidates = [name for name in others if name in lesions] or others
    return min(candidates, key=lambda name: float(np.linalg.norm(middles[name] - middles[region])), default=None)


def _phase(patient: Patient) -> str:
    return str(patient.attributes["phase"])
