"""What a reader is told about an answer to an exercise."""

import numpy as np
import pytest

from ctvlm_lib.exercise import check


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        (0.5000000001, 0.5, "ok"),
        (0.4, 0.5, "expected 0.5, got 0.4"),
        (None, 0.5, "returns None"),
        ("spleen", "liver", "expected 'liver', got 'spleen'"),
        ([1, 2], [1, 3], "expected [1, 3], got [1, 2]"),
        (np.zeros((3, 4)), np.eye(3, 4), "3 of 12 values differ"),
        (np.zeros(3), np.zeros(4), "expected shape (4,), got (3,)"),
        ("seven", 7, "got str"),
        (np.ones(5, dtype=bool), np.ones(5, dtype=bool), "ok"),
        (float("nan"), 1.0, "expected 1, got nan"),
    ],
)
def test_an_answer_is_ok_or_the_difference_is_told(given, expected, said, capsys):
    assert check("case", given, expected) == (said == "ok")
    line = capsys.readouterr().out
    assert said in line and line.count("\n") == 1
