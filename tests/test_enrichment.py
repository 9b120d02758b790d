"""Enriched texts say what their originals say, on the whole cohort; the guard refuses what doesn't."""

import pytest

from ctvlm_lib.alignment.enrichment import (
    DENIAL,
    EMPTY,
    FINDING,
    NUMBER,
    PLACE,
    REPEATED,
    absent,
    guarded,
    present,
    refused,
    region_statement,
    report_statement,
)
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import affirmed_findings, labels_of_report
from ctvlm_lib.records import protocol
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.report import abnormality_labels, report


@pytest.fixture(scope="module")
def patients():
    return list(protocol.load().patients("validation", "quick", n=60))


def test_the_cohort_s_reports_keep_their_labels(patients):
    for patient in patients:
        text = report_statement(report(patient).text)
        assert labels_of_report(text) == abnormality_labels(patient)
        assert affirmed_findings(text) == affirmed_findings(report(patient).text)


def test_the_cohort_s_region_sentences_keep_their_findings(patients):
    for patient in patients:
        for region, text in report(patient).regions.items():
            if region in REGIONS:
                assert refused(text, region_statement(text, region), region) == ""


def test_wording_size_and_hedges_are_gone():
    said = ("There is a solid mass in the liver, measuring 3.2 cm.", "The liver shows a mass (32 mm).",
            "In the liver there is a 32 mm abnormality, most likely a fluid-filled mass.")  # fmt: skip
    assert {region_statement(text, "liver") for text in said} == {"There is a mass in the liver."}
    denied = ("The liver is unremarkable.", "Normal appearance of the liver. No suspicious lesion there.")
    assert {region_statement(text, "liver") for text in denied} == {
        "There is no mass, cyst or calcification in the liver."
    }
    assert region_statement("The heart is enlarged. No mass.", "heart").endswith("There is cardiomegaly.")


def test_a_report_ends_with_what_is_nowhere():
    text = report_statement("A moderate pleural effusion is seen on the right. There is a cyst in the spleen.")
    assert text == (
        "There is a cyst in the spleen. There is pleural effusion. There is no nodule, mass, calcification,"
        " consolidation, ground-glass opacity, emphysema or cardiomegaly."
    )


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        ("A cyst is present in the liver.", ""),
        ("Cyst of 12 mm in the liver.", ""),
        ("There is a mass in the liver.", FINDING),  # another kind
        ("There is a cyst in the spleen.", FINDING),  # another place
        ("There is no cyst in the liver.", FINDING),  # denied
        ("There is a cyst in the liver. There is a mass in the liver.", FINDING),  # invented
        ("A cyst of 21 mm in the liver.", NUMBER),
        ("  ", EMPTY),
        ("There is a cyst in the liver. " * 20, REPEATED),
    ],
)
def test_the_guard(rewrite, reason):
    assert refused("The liver shows a cyst (12 mm).", rewrite, "liver") == reason


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        ("The left kidney shows no abnormality.", ""),
        ("The left kidney looks normal.", ""),
        ("The left kidney is not unremarkable.", DENIAL),  # what SmolLM2 made of it
        ("The left kidney is an organ.", DENIAL),
        ("You have provided no finding.", PLACE),
    ],
)
def test_a_healthy_region_stays_healthy(rewrite, reason):
    assert refused("The left kidney is unremarkable.", rewrite, "left kidney") == reason


def test_refused_rewrites_are_replaced_and_counted():
    texts = ["The liver shows a cyst (12 mm).", "The spleen is unremarkable.", "There is a mass in the liver."]
    answers = ["A cyst is present in the liver.", "A mass is seen in the spleen.", ""]
    found = guarded(texts, lambda _: answers, ["liver", "spleen", "liver"])
    assert found.texts == (answers[0], "There is no mass, cyst or calcification in the spleen.", texts[2])
    assert found.reasons == ("", FINDING, EMPTY) and found.counts == {FINDING: 1, EMPTY: 1}
    assert found.rewrites == tuple(answers)


def test_statements_in_good_english():
    assert present("emphysema", "left lung upper lobe") == "There is emphysema in the left lung upper lobe."
    assert absent("cyst") == "There is no cyst." and absent(["mass", "cyst"]) == "There is no mass or cyst."


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: region_statement("A cyst.", "pancreas"), "no region is called 'pancreas'"),
        (lambda: region_statement(" ", "liver"), "give a text"),
        (lambda: guarded([], list), "0 texts and 0 regions"),
        (lambda: guarded(["A cyst."], list, ["liver", "liver"]), "1 texts and 2 regions"),
        (lambda: guarded(["A cyst."], lambda _: []), "gave 0 texts for 1"),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
