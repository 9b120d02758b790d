"""Labels from reports: the rules agree with the truth on every report of the cohort, whichever way it is worded."""

from dataclasses import replace

import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import COHORT, CT_RATE, NOT_SHOWN, SETS, labels_of_report, shown_table
from ctvlm_lib.records.phantom import cohort
from ctvlm_lib.records.report import abnormality_labels, report

PATIENTS, WORDINGS = 48, 10


@pytest.fixture(scope="module")
def reported():
    """480 reports: a report's wording is drawn from the patient's name, so each patient is told in ten ways."""
    return [
        (report(named), abnormality_labels(one))
        for one in cohort(PATIENTS, seed=71, shape=(24, 48, 48))
        for named in (replace(one, name=f"{one.name} {k}") for k in range(WORDINGS))
    ]


def test_rules_agree_with_the_truth_on_every_report(reported):
    assert len(reported) == PATIENTS * WORDINGS and len({made.text for made, _ in reported}) == len(reported)
    for made, truth in reported:
        assert labels_of_report(made.text) == truth, made.text
    for label in COHORT:
        assert 0 < sum(truth[label] for _, truth in reported) < len(reported), label


def test_the_findings_alone_say_every_label(reported):
    for made, truth in reported:
        assert labels_of_report(made.findings) == truth


def test_the_impression_says_nothing_that_is_not_true(reported):
    short = [(labels_of_report(made.impression), truth) for made, truth in reported]
    assert all(truth[label] for said, truth in short for label, there in said.items() if there)
    assert any(said != truth for said, truth in short)  # mild findings may be left out


@pytest.mark.parametrize(
    ("sentence", "true"),
    [
        ("No mass, cyst or calcification is identified in the liver.", set()),
        ("In the spleen there is a 12 mm abnormality, most likely a cyst.", {"Spleen lesion"}),
        ("A mass of 3.1 cm is seen in the left kidney. No other lesion of the left kidney.", {"Kidney mass"}),
        ("This is the only focal finding of the heart. Specifically, no calcification.", set()),
        ("The heart is not enlarged. The heart shows an air-filled cyst (9 mm).", {"Cardiac lesion"}),
        ("There is cardiomegaly, cardiothoracic ratio 0.56.", {"Cardiomegaly"}),
        ("Pleural fluid is present on the left (mild, 8 mm deep).", {"Pleural effusion"}),
        ("The pleural spaces are clear.", set()),
        ("1. Emphysema in the right lung upper lobe. 2. Cardiomegaly.", {"Emphysema", "Cardiomegaly"}),
        ("1. Ground-glass opacity in the left lung lower lobe.", {"Ground-glass opacity", "Lung opacity"}),
        ("Findings: No pleural effusion. Impression: 1. Calcification in the heart.", {"Cardiac lesion"}),
    ],
)
def test_denials_hedges_sizes_and_numbers_are_read(sentence, true):
    assert {label for label, there in labels_of_report(sentence).items() if there} == true
    assert tuple(labels_of_report(sentence)) == COHORT


def test_ct_rate_s_names_are_in_their_published_order():
    assert len(CT_RATE) == len(set(CT_RATE)) == 18 and SETS == {"CT-RATE": CT_RATE, "cohort": COHORT}
    assert CT_RATE[0] == "Medical material" and CT_RATE[9] == "Lung nodule" and CT_RATE[-1].startswith("Interlobular")


def test_the_table_says_of_each_label_of_ct_rate_whether_and_why_not():
    table = shown_table()
    assert tuple(table["label"]) == CT_RATE
    assert set(table["label"][table["shown"]]) == set(CT_RATE) & set(COHORT)
    assert ((table["why not"] == "") == table["shown"]).all() and set(NOT_SHOWN) == set(CT_RATE) - set(COHORT)


@pytest.mark.parametrize("text", ["", " \n", None, 3])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(BadInput, match="give a text with at least one sentence"):
        labels_of_report(text)
