"""Abnormality labels: their names, and what a report in the phantom cohort's language says of each.

The rules know the cohort's sentences and no others: one sentence says one thing, a denial is said by the words below, a
place by a region's name. They are exact there and nowhere else. Reports by people ("no change of the known nodule",
"cannot exclude effusion", "status after lobectomy") need a classifier that was trained on them, such as the one in
:mod:`ctvlm_lib.evaluate.radbert`, whose errors are then part of every score.
"""

import re

import pandas as pd

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.ct_rate import LABELS as CT_RATE
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.report import LABELS as COHORT

__all__ = [
    "COHORT", "CT_RATE", "NOT_SHOWN", "SETS", "affirmed_findings", "denies", "labels_of_report", "shown_table",
]  # fmt: skip

SETS: dict[str, tuple[str, ...]] = {"CT-RATE": CT_RATE, "cohort": COHORT}  # each in its published order
NOT_SHOWN = {  # why the cohort can't show a label of CT-RATE
    "Medical material": "no device is drawn",
    "Arterial wall calcification": "calcifications lie in lungs and organs, never in a vessel's wall",
    "Pericardial effusion": "fluid is drawn in the pleura only",
    "Coronary artery wall calcification": "no coronary artery is drawn",
    "Hiatal hernia": "no stomach or oesophagus is drawn",
    "Lymphadenopathy": "no lymph node is drawn",
    "Atelectasis": "no lobe loses volume",
    "Pulmonary fibrotic sequela": "no scar is drawn",
    "Mosaic attenuation pattern": "no such texture is drawn",
    "Peribronchial thickening": "no bronchus is drawn",
    "Bronchiectasis": "no bronchus is drawn",
    "Interlobular septal thickening": "no septum is drawn",
}

_SENTENCE = re.compile(r"(?<=[.!?])\s+|;\s+|\b(?:Technique|Findings|Impression):\s*")
_DENIED = re.compile(r"\b(?:no|not|without|unremarkable|normal|clear|absent)\b", re.IGNORECASE)
_DENIED_TWICE = re.compile(
    r"\b(?:no|not|without)\b[^.;]*\b(?:no|not|without|unremarkable|normal|clear)\b", re.IGNORECASE
)
_KINDS = ("nodule", "mass", "cyst", "calcification", "consolidation", "ground-glass opacity", "emphysema")
_KIND = re.compile(r"\b(" + "|".join(map(re.escape, _KINDS)) + r")\b", re.IGNORECASE)
_REGION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, REGIONS), key=len, reverse=True)) + r")\b", re.IGNORECASE)
_ENLARGED = re.compile(r"\bcardiomegaly\b|\bheart is enlarged\b|\bcardiac enlargement\b", re.IGNORECASE)
_FLUID = re.compile(r"\bpleural (?:effusion|fluid)\b", re.IGNORECASE)


def labels_of_report(text: str) -> dict[str, bool]:
    """Read the cohort's labels from a report in the cohort's language.

    A hedged finding ("most likely a cyst") counts as said. The impression may leave findings out, so what either part
    affirms is true.

    Args:
        text: a whole report, or its findings or impression.

    Returns:
        label of ``COHORT`` → whether some sentence affirms it, as
        :func:`ctvlm_lib.records.report.abnormality_labels` has it for the patient.

    Raises:
        BadInput: no text.
    """
    said = {(_place(region), kind) for region, kind in affirmed_findings(text)}
    return {label: _is_said(label, said) for label in COHORT}


def affirmed_findings(text: str, region: str = "") -> set[tuple[str, str]]:
    """Read what a text affirms, and where.

    Args:
        text: in the cohort's language.
        region: what a sentence is about that names no region; "" leaves such findings out.

    Returns:
        (region, kind), e.g. ("liver", "mass"); ("heart", "cardiomegaly") and ("pleura", "effusion").

    Raises:
        BadInput: no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"the report is {text!r}; give a text with at least one sentence")
    said: set[tuple[str, str]] = set()
    for sentence in _SENTENCE.split(text):
        if sentence and not _DENIED.search(sentence):
            said |= _affirmed(sentence, region)
    return said


def denies(text: str) -> bool:
    """Whether some sentence denies a finding or calls something healthy, and none denies that ("not unremarkable")."""
    return bool(_DENIED.search(text)) and not _DENIED_TWICE.search(text)


def shown_table() -> pd.DataFrame:
    """Which of CT-RATE's labels the cohort can show: ``label``, ``shown`` (bool) and ``why not`` ("" where it is)."""
    return pd.DataFrame(
        [{"label": label, "shown": label in COHORT, "why not": NOT_SHOWN.get(label, "")} for label in CT_RATE]
    )


def _affirmed(sentence: str, region: str) -> set[tuple[str, str]]:
    """(region, kind) of a sentence that denies nothing."""
    found = set()
    if _ENLARGED.search(sentence):
        found.add(("heart", "cardiomegaly"))
    if _FLUID.search(sentence):
        found.add(("pleura", "effusion"))
    regions = {name.lower() for name in _REGION.findall(sentence)} or ({region} if region else set())
    kinds = {kind.lower() for kind in _KIND.findall(sentence)}
    return found | {(one, kind) for one in regions for kind in kinds}


def _place(region: str) -> str:
    return "lung" if "lung" in region else region.split()[-1]


def _is_said(label: str, said: set[tuple[str, str]]) -> bool:
    kinds = {kind for _, kind in said}
    match label:
        case "Cardiomegaly" | "Emphysema" | "Consolidation" | "Ground-glass opacity":
            return label.lower() in kinds
        case "Pleural effusion":
            return "effusion" in kinds
        case "Lung opacity":
            return bool(kinds & {"consolidation", "ground-glass opacity"})
        case "Spleen lesion":
            return any(place == "spleen" for place, _ in said)
        case "Cardiac lesion":
            return any(place == "heart" and kind != "cardiomegaly" for place, kind in said)
    place, kind = label.lower().split(" ", 1)  # "Lung nodule"
    return (place, kind) in said
