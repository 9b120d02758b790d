"""The reader of PMC-VQA and its filter for CT."""

from pathlib import Path

import pytest
from helpers_data import CHOICES, write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import pmc_vqa

PMC = ("Figure_path", "Question", "Anwser", *CHOICES, "Answer_label", "Caption")


def figure_row(question="What does the CT show?", answer="Cyst", letter="B", caption="", article="PMC12_Fig1.jpg"):
    return (article, question, answer, " A:Mass", " B:Cyst", " C:Stone", " D:Nothing", letter, caption)


@pytest.fixture
def figures(tmp_path) -> Path:
    rows = [
        figure_row(),
        figure_row("What is shown?", caption="Computed tomography of the liver"),
        figure_row("Is this a fact?", caption="An octagon; X-ray"),
        figure_row(answer="Stone"),
        figure_row(article="PMC77_Fig2.jpg"),
        figure_row(article="Fig2.jpg"),
    ]
    write_csv(tmp_path / "train.csv", PMC, rows)
    write_csv(tmp_path / "test.csv", PMC, [figure_row()])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/PMC12_Fig1.jpg").write_bytes(b"jpeg")
    return tmp_path


def test_pmc_vqa_says_what_its_key_words_keep(figures):
    reading = pmc_vqa.read(figures)
    asked = "What does the CT show?"
    assert [r.question for r in reading.records] == [asked, "What is shown?", asked]
    assert {(r.answer, r.choices, r.patient) for r in reading.records} == {
        ("Cyst", ("Mass", "Cyst", "Stone", "Nothing"), "PMC12")
    }
    text = repr(reading)
    assert "keep 6 of 7 questions: CT in the question 5, computed tomography in the caption 1" in text
    assert reading.missing == {"images/PMC77_Fig2.jpg": 1} and "the published splits share 1 patient (PMC12)" in text
    assert "1 question whose answer isn't one of its choices" in text and "1 question whose figure names no" in text
    assert len(pmc_vqa.read(figures, ct_only=False).records) == 4


def test_pmc_vqa_reads_both_spellings_and_prefers_the_second_version(figures):
    columns = tuple("Answer" if name == "Anwser" else name for name in PMC)
    write_csv(figures / "train_2.csv", columns, [figure_row(answer="B", letter="")])
    reading = pmc_vqa.read(figures)
    assert [(r.id, r.answer) for r in reading.records] == [("pmc-vqa:train_2:2", "Cyst")]
    assert "tables not there: test_2.csv" in repr(reading) and len(pmc_vqa.read(figures, version="v1").records) == 3
    write_csv(figures / "train_2.csv", [name for name in columns if name != "Answer"], [figure_row()[:-1]])
    with pytest.raises(BadInput, match="train_2.csv has no column Answer"):
        pmc_vqa.read(figures)


def test_ct_is_found_as_a_word_of_its_own():
    assert pmc_vqa.words_for_ct("A CT-guided biopsy; Computed Tomography") == ("CT", "computed tomography")
    assert not pmc_vqa.words_for_ct("The ct value of the qPCR, a FACT and an ECTOPIC")
