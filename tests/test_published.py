"""The papers' numbers: how many, that none stands twice, and the sums that the papers themselves promise."""

import numpy as np
import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import published

TYPES = ("Plane", "Phase", "Organ", "Abnormality", "Location")


def test_there_are_973_cells_of_21_tables_and_965_have_a_value():
    cells = published.load()
    assert len(cells) == 973
    assert len(published.names()) == 21
    assert sum(cell.value is not None for cell in cells) == 965


@pytest.mark.parametrize("name", ["med3dvlm.T3", "med3dvlm.T4", "med3dvlm.T7", "med3dvlm.T8"])
def test_the_printed_means_are_the_means_of_their_question_types(name):
    cells = {(c.row, c.column, c.condition.removeprefix("question type ")): c.value for c in published.table(name)}
    for (row, column, kind), value in cells.items():
        if kind == "Mean":
            assert value == pytest.approx(np.mean([cells[row, column, one] for one in TYPES]), abs=0.0061)  # rounding


def test_recall_never_falls_with_k():
    for name in ("med3dvlm.T1", "med3dvlm.T5"):
        cells = {(c.row, c.group, c.condition, c.column): c.value for c in published.table(name)}
        for row, group, condition, column in cells:
            if column == "R@5":
                one, five, ten = (cells[row, group, condition, f"R@{k}"] for k in (1, 5, 10))
                assert one <= five <= ten


@pytest.mark.parametrize("asked", ["contour.T1", "CONTOUR.t1", "contour-T1"])
def test_a_table_is_found_however_it_is_written(asked):
    assert len(published.table(asked)) == 42


@pytest.mark.parametrize(
    ("asked", "offered"), [("contour.T2", "contour.T1"), ("dualbx.T1", "dualbox.T1"), ("uvlm", "uvlm.T1")]
)
def test_an_unknown_table_is_answered_with_those_that_are_like_it(asked, offered):
    with pytest.raises(BadInput, match=offered):
        published.table(asked)


def test_a_cell_that_stands_twice_is_told(tmp_path):
    lines = published.PATH.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "twice.csv"
    path.write_text("\n".join([*lines[:3], lines[2]]), encoding="utf-8")
    with pytest.raises(BadInput, match="twice"):
        published.load(path)


def test_a_damaged_file_is_a_sentence(tmp_path):
    path = tmp_path / "damaged.csv"
    path.write_text("paper,table\ncontour,T1\n", encoding="utf-8")
    with pytest.raises(BadInput, match="restore it"):
        published.load(path)
