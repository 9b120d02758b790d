"""A radiology report for a phantom patient: one sentence or more for each region, an impression, labels, a severity.

Everything that a report says is true of the patient's findings. What real reports add is added: varied wording, hedges
("most likely"), a second sentence that says the same again, sizes now in mm, now in cm. The wording is drawn from the
patient's own name, so a patient has one report on any machine and in any order of the cohort.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ctvlm_lib.records.phantom import LOBES, REGIONS, Finding, Patient

# Names as CT-RATE writes them where it has the label; the others are the phantom's own.
LABELS = (
    "Cardiomegaly", "Emphysema", "Lung nodule", "Lung opacity", "Pleural effusion", "Consolidation",
    "Ground-glass opacity", "Lung mass", "Lung cyst", "Lung calcification", "Liver mass", "Liver cyst",
    "Liver calcification", "Kidney mass", "Kidney cyst", "Kidney calcification", "Spleen lesion", "Cardiac lesion",
)  # fmt: skip
SEVERITIES = ("none", "mild", "moderate", "severe")
_POINTS = {"mild": 1, "moderate": 2, "severe": 3}
_MILD_BURDEN, _MODERATE_BURDEN = 9, 13  # the largest sums of points that still count as mild, as moderate

_PRESENT = (
    "There is {article} {density}{kind} in the {region}, measuring {size}.",
    "{Article} {density}{kind} of {size} is seen in the {region}.",
    "The {region} shows {article} {density}{kind} ({size}).",
    "In the {region} there is {article} {density}{kind} with a longest diameter of {size}.",
)
_HEDGED = (
    "In the {region} there is a {size} abnormality, most likely {article} {density}{kind}.",
    "Findings in the {region} are in keeping with {article} {density}{kind} of {size}.",
)
_NO_LESION = (  # true of an enlarged heart too
    "No focal abnormality is seen in the {region}.",
    "The {region} shows no focal lesion.",
    "No mass, cyst or calcification is identified in the {region}.",
)
_ABSENT = (*_NO_LESION, "The {region} is unremarkable.", "Normal appearance of the {region}.")
_AGAIN_PRESENT = (
    "No further focal abnormality is seen there.",
    "No other lesion of the {region}.",
    "This is the only focal finding of the {region}.",
)
_AGAIN_ABSENT = ("Specifically, no calcification.", "No suspicious lesion there.", "No mass there.")
_ENLARGED = ("The heart is enlarged.", "There is cardiomegaly.", "Cardiac enlargement is noted.")
_NOT_ENLARGED = ("The heart is not enlarged.", "Heart size is within normal limits.", "No cardiomegaly.")
_EFFUSION = (
    "There is a {severity} {side} pleural effusion.",
    "A {severity} pleural effusion is seen on the {side}.",
    "Pleural fluid is present on the {side} ({severity}, {size} deep).",
)
_NO_EFFUSION = ("No pleural effusion.", "There is no pleural effusion on either side.", "The pleural spaces are clear.")
_NOTHING = ("No acute abnormality.", "Normal examination.", "No significant abnormality is identified.")
_TECHNIQUE = {True: "CT with intravenous contrast, {phase} phase.", False: "CT without intravenous contrast."}


@dataclass(frozen=True)
class Report:
    """A report in its parts.

    Attributes:
        technique: one sentence.
        regions: region → its sentences, in the order of the report; "pleura" besides the ten regions.
        impression: the findings that matter most, first the severest.
    """

    technique: str
    regions: dict[str, str]
    impression: str

    @property
    def findings(self) -> str:
        """The regions' sentences as one paragraph."""
        return " ".join(self.regions.values())

    @property
    def text(self) -> str:
        """The whole report."""
        return f"Technique: {self.technique} Findings: {self.findings} Impression: {self.impression}"


def report(patient: Patient) -> Report:
    """Write a patient's report; the same patient always gets the same words."""
    words = _Words(patient.name)
    present = set(patient.labels.present)
    regions = {region: _region(patient, region, words) for region in REGIONS if region in present}
    regions["pleura"] = _pleura(patient, words)
    technique = _TECHNIQUE[bool(patient.attributes["contrast"])].format(phase=patient.attributes["phase"])
    return Report(technique, regions, _impression(patient, words))


def abnormality_labels(patient: Patient) -> dict[str, bool]:
    """Whether each of ``LABELS`` is true of the patient.

    "Lung opacity" is a consolidation or a ground-glass opacity; a lesion of a kidney counts whichever side it is on; a
    lesion of spleen or heart is one label, whatever its kind.
    """
    found = {(_place(finding), finding.kind) for finding in patient.findings}
    kinds = {kind for _, kind in found}
    answers = {
        "Cardiomegaly": "cardiomegaly" in kinds,
        "Emphysema": "emphysema" in kinds,
        "Lung opacity": bool(kinds & {"consolidation", "ground-glass opacity"}),
        "Pleural effusion": "pleural effusion" in kinds,
        "Consolidation": "consolidation" in kinds,
        "Ground-glass opacity": "ground-glass opacity" in kinds,
        "Spleen lesion": any(place == "spleen" for place, _ in found),
        "Cardiac lesion": any(place == "heart" and kind != "cardiomegaly" for place, kind in found),
    }
    for label in LABELS:
        if label not in answers:  # "Lung nodule": a place and a kind
            place, kind = label.lower().split(" ", 1)
            answers[label] = (place, kind) in found
    return {label: answers[label] for label in LABELS}


def severity(patient: Patient) -> int:
    """Ordinal outcome 0–3, the index into ``SEVERITIES``.

    Each finding has 1 (mild), 2 (moderate) or 3 (severe) points; no points are 0, up to 9 points 1, up to 13 points 2,
    more 3. Deterministic: there is no outcome besides what the image shows.
    """
    burden = sum(_POINTS[finding.severity] for finding in patient.findings)
    return (burden > 0) + (burden > _MILD_BURDEN) + (burden > _MODERATE_BURDEN)


def focal_findings(patient: Patient) -> dict[str, Finding]:
    """Region → its lesion. An effusion and an enlarged heart aren't focal; a region has at most one lesion."""
    return {
        finding.region: finding
        for finding in patient.findings
        if finding.region in REGIONS and finding.kind != "cardiomegaly"
    }


class _Words:
    """Choices of wording from a hash of who, where and what for: independent of each other and of their order."""

    def __init__(self, name: str):
        self._name = name

    def draw(self, count: int, *what: str) -> int:
        digest = hashlib.sha256("\0".join([self._name, *what]).encode()).digest()
        return int.from_bytes(digest[:8], "big") % count

    def pick(self, options: tuple[str, ...], *what: str) -> str:
        return options[self.draw(len(options), *what)]


def _region(patient: Patient, region: str, words: _Words) -> str:
    finding = focal_findings(patient).get(region)
    sentences = [_heart_size(patient, words)] if region == "heart" else []
    if finding:
        hedged = words.draw(4, region, "hedged") == 0
        sentences.append(_told(finding, words.pick(_HEDGED if hedged else _PRESENT, region, "present"), words))
    else:
        absent = _NO_LESION if region == "heart" else _ABSENT
        sentences.append(words.pick(absent, region, "absent").format(region=region))
    if words.draw(3, region, "again") == 0:
        again = _AGAIN_PRESENT if finding else _AGAIN_ABSENT
        sentences.append(words.pick(again, region, "which").format(region=region))
    return " ".join(sentences)


def _heart_size(patient: Patient, words: _Words) -> str:
    if not any(finding.kind == "cardiomegaly" for finding in patient.findings):
        return words.pick(_NOT_ENLARGED, "heart size")
    sentence = words.pick(_ENLARGED, "heart size")
    ratio = patient.attributes["cardiothoracic_ratio"]
    if words.draw(2, "heart ratio") and ratio > 0.5:  # below, the ratio would seem to deny it
        sentence = f"{sentence[:-1]}, cardiothoracic ratio {ratio:.2f}."
    return sentence


def _pleura(patient: Patient, words: _Words) -> str:
    fluid = [finding for finding in patient.findings if finding.kind == "pleural effusion"]
    if not fluid:
        return words.pick(_NO_EFFUSION, "pleura")
    return " ".join(
        words.pick(_EFFUSION, "pleura", finding.side).format(
            severity=finding.severity, side=finding.side, size=_size(finding, words)
        )
        for finding in fluid
    )


def _told(finding: Finding, template: str, words: _Words) -> str:
    kind = finding.kind
    said = kind.startswith(("ground", "calc", "emphysema")) or not words.draw(2, finding.region, "density")
    density = "" if said else {"air": "air-filled ", "fluid": "fluid-filled "}.get(finding.density, "solid ")
    article = "an area of" if kind == "emphysema" else "an" if density.startswith("air") else "a"
    return template.format(
        article=article,
        Article=article[0].upper() + article[1:],
        density=density,
        kind=kind,
        region=finding.region,
        size=_size(finding, words),
    )


def _size(finding: Finding, words: _Words) -> str:
    if words.draw(3, finding.region, finding.side or "", "unit") == 0:
        return f"{finding.size_mm / 10:.1f} cm"
    return f"{finding.size_mm:.0f} mm"


def _impression(patient: Patient, words: _Words) -> str:
    """The findings from the severest to the mildest; the mild ones may be left out, as in reports, but never all."""
    ranked = sorted(patient.findings, key=lambda finding: -_POINTS[finding.severity])
    if not ranked:
        return words.pick(_NOTHING, "impression")
    kept = [finding for finding in ranked if finding.severity != "mild"] or ranked
    if words.draw(2, "impression", "all"):
        kept = ranked
    return " ".join(f"{number}. {_headline(finding)}." for number, finding in enumerate(_once(kept), start=1))


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list({_headline(finding): finding for finding in findings}.values())


def _headline(finding: Finding) -> str:
    if finding.kind == "cardiomegaly":
        return "Cardiomegaly"
    if finding.kind == "pleural effusion":
        return f"{finding.severity.capitalize()} {finding.side} pleural effusion"
    return f"{finding.kind[0].upper()}{finding.kind[1:]} in the {finding.region}"


def _place(finding: Finding) -> str:
    """ "lung", "kidney", or the region's own name."""
    return "lung" if finding.region in LOBES else finding.region.split()[-1]
