"""The table of answers and its file."""

import numpy as np
import pandas as pd
import pytest
from helpers_questions import asked, cohort  # noqa: F401

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import answers


@pytest.fixture
def records(asked):  # noqa: F811
    return [r for r in asked if r.split == "test"][:60]


@pytest.fixture
def table(records):
    said = [r.choices[0] if r.choices else "naïve, 3 × 4 mm" if k % 3 else "" for k, r in enumerate(records)]
    sure = [float("nan") if k % 4 == 0 else k / 60 for k in range(len(records))]
    first = answers.answer_table(records, said, sure, condition="contour")
    second = answers.answer_table(records[:20], said[:20], condition="none", control="removed", seed=2)
    return pd.concat([first, second], ignore_index=True)


def test_rows_carry_the_question_and_the_stratum(table, records):
    row = table.iloc[0]
    assert (row["id"], row["truth"], row["choices"]) == (records[0].id, records[0].answer, records[0].choices)
    for row, record in zip(table.itertuples(), records, strict=False):
        assert row.stratum == ("" if record.region is None else "named" if record.names_region else "unnamed")
    assert set(table.loc[table["condition"] == "none", "marked"]) == {""}


def test_the_file_gives_back_what_was_answered(table, records, tmp_path):
    path = answers.save(table, records, tmp_path / "answers.npz")
    again = answers.load(path, records)
    pd.testing.assert_frame_equal(again.drop(columns="confidence"), table.drop(columns="confidence"), check_dtype=False)
    # a confidence is kept to one part in 250
    np.testing.assert_allclose(again["confidence"], table["confidence"], atol=0.5 / 250 + 1e-9)


def test_the_same_answers_are_the_same_bytes(table, records, tmp_path):
    one, two = (answers.save(table, records, tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert one == two


def test_a_file_about_other_records_is_refused(table, records, tmp_path):
    path = answers.save(table, records, tmp_path / "answers.npz")
    with pytest.raises(BadInput, match="holds answers to other records than these 59"):
        answers.load(path, records[1:])


def test_a_damaged_file_is_refused(tmp_path, records):
    (tmp_path / "answers.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match=r"answers\.npz can't be read as a table of answers"):
        answers.load(tmp_path / "answers.npz", records)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: answers.answer_table(r, ["a"], condition="none"), "60 questions got 1 answers"),
        (lambda r: answers.answer_table(r, [""] * 60, [0.5], condition="none"), "60 questions got 1 confidences"),
        (lambda r: answers.answer_table(r, [""] * 60, [7.0] * 60, condition="none"), "lies between 0 and 1, got 7"),
    ],
)
def test_answers_that_do_not_fit_the_questions_are_refused(records, call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call(records)


def test_a_table_about_unknown_records_is_not_saved(table, records, tmp_path):
    with pytest.raises(BadInput, match="is none of the 10 records"):
        answers.save(table, records[:10], tmp_path / "answers.npz")
    assert not list(tmp_path.iterdir())
