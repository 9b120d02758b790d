"""Reports: true of the patient, worded in many ways, the same on every run."""

import re

import pytest

from ctvlm_lib.records import phantom
from ctvlm_lib.records.ct_rate import LABELS as CT_RATE_LABELS
from ctvlm_lib.records.phantom import FindingRange
from ctvlm_lib.records.report import LABELS, SEVERITIES, abnormality_labels, focal_findings, report, severity

KINDS = "nodule|mass|cyst|calcification|consolidation|ground-glass opacity|emphysema"
POINTS = {"mild": 1, "moderate": 2, "severe": 3}


@pytest.fixture(scope="module")
def thirty():
    return list(phantom.cohort(30, seed=31))


@pytest.fixture(scope="module")
def healthy():
    return phantom.patient(3, seed=31, findings=FindingRange(prevalence=0, effusion=0, cardiomegaly=0))


def test_each_region_has_its_sentences(thirty):
    for one in thirty:
        regions = report(one).regions
        assert list(regions) == [*phantom.REGIONS, "pleura"]
        for region, text in regions.items():
            assert text.endswith(".") and "{" not in text and "  " not in text
            if region != "pleura":
                assert region in text


def test_a_region_s_sentences_say_its_finding_and_no_other(thirty):
    for one in thirty:
        lesions = focal_findings(one)
        for region, text in report(one).regions.items():
            if region == "pleura":
                continue
            affirmed = " ".join(s for s in re.split(r"(?<=\.)\s", text) if "No " not in s and ", no " not in s)
            said = set(re.findall(KINDS, affirmed))
            assert said == ({lesions[region].kind} if region in lesions else set()), text
            if region in lesions:
                number, unit = re.search(r"([\d.]+) (mm|cm)", text).groups()
                assert float(number) * (10 if unit == "cm" else 1) == pytest.approx(lesions[region].size_mm, abs=0.51)


def test_an_absent_sentence_never_denies_what_is_there(thirty):
    """What is denied without a place of its own: no calcification, mass or lesion of a region that has one."""
    for one in thirty:
        lesions = focal_findings(one)
        for region, text in report(one).regions.items():
            if region in lesions:
                assert "unremarkable" not in text and "Normal" not in text and "Specifically" not in text
                assert not re.search(r"(shows no focal|No focal abnormality|No mass|No suspicious)", text)


def test_fluid_and_an_enlarged_heart_are_told_as_they_are(thirty):
    sides = set()
    for one in thirty:
        made = report(one)
        fluid = [finding for finding in one.findings if finding.kind == "pleural effusion"]
        told = set(re.findall(r"left|right", made.regions["pleura"]))
        assert told == {finding.side for finding in fluid}
        for finding in fluid:
            assert finding.severity in made.regions["pleura"]
        enlarged = one.attributes["cardiomegaly"]
        heart = made.regions["heart"]
        denied = re.search(r"not enlarged|within normal limits|No cardiomegaly", heart)
        assert bool(denied) != enlarged
        assert not (enlarged and re.search("unremarkable|Normal", heart))
        assert enlarged or "Cardiomegaly" not in made.impression
        sides.add(len(fluid))
    assert {0, 1} <= sides


def test_the_impression_says_every_severe_finding(thirty):
    for one in thirty:
        impression = report(one).impression.lower()
        for finding in (finding for finding in one.findings if finding.severity == "severe"):
            if finding.kind == "pleural effusion":
                assert f"severe {finding.side} pleural effusion" in impression
            elif finding.kind == "cardiomegaly":
                assert "cardiomegaly" in impression
            else:
                assert f"{finding.kind} in the {finding.region}" in impression


def test_a_healthy_patient_has_nothing(healthy):
    made = report(healthy)
    assert not re.search(r"\d", made.findings + made.impression)
    assert not any(abnormality_labels(healthy).values())
    assert severity(healthy) == 0 and SEVERITIES[0] == "none"


def test_wording_varies_and_is_the_patient_s_own(thirty):
    assert [report(one).text for one in thirty] == [report(one).text for one in thirty]
    spleens = {re.sub(r"[\d.]+ (mm|cm)", "", report(one).regions["spleen"]) for one in thirty}
    assert len(spleens) >= 10
    texts = " ".join(report(one).text for one in thirty)
    for words in ("most likely", "in keeping with", " cm", " mm", "This is the only focal finding"):
        assert words in texts


def test_labels_are_the_findings(thirty):
    assert len(LABELS) == len(set(LABELS)) == 18
    assert {"Cardiomegaly", "Emphysema", "Lung nodule", "Lung opacity", "Pleural effusion", "Consolidation"} == set(
        LABELS
    ) & set(CT_RATE_LABELS)
    seen = set()
    for one in thirty:
        labels = abnormality_labels(one)
        assert tuple(labels) == LABELS
        there = {(f.kind, f.region) for f in one.findings}
        kinds = {kind for kind, _ in there}
        assert labels["Lung nodule"] == ("nodule" in kinds)
        assert labels["Lung opacity"] == (labels["Consolidation"] or labels["Ground-glass opacity"])
        assert labels["Liver cyst"] == (("cyst", "liver") in there)
        assert labels["Kidney mass"] == bool(there & {("mass", "left kidney"), ("mass", "right kidney")})
        assert labels["Lung calcification"] == any(k == "calcification" and "lung" in r for k, r in there)
        assert labels["Cardiac lesion"] == ("heart" in focal_findings(one))
        assert labels["Cardiomegaly"] == one.attributes["cardiomegaly"]
        seen |= {label for label, is_true in labels.items() if is_true}
    assert seen == set(LABELS)


def test_severity_follows_its_rule(thirty):
    grades = set()
    for one in thirty:
        burden = sum(POINTS[finding.severity] for finding in one.findings)
        expected = 0 if burden == 0 else 1 if burden <= 9 else 2 if burden <= 13 else 3
        assert severity(one) == expected
        grades.add(expected)
    assert {1, 2, 3} <= grades
