"""Checkpoints that ship with the workbook: weights and their record, or a sentence."""

import json

import pytest
import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.errors import BadInput


@pytest.fixture
def stored(tmp_path):
    tensors = {"a.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "b.count": torch.tensor(7)}
    checkpoints.save("tiny", tensors, {"steps": 3}, tmp_path)
    return tmp_path


def test_a_checkpoint_comes_back_to_16_bits(stored):
    tensors, record = checkpoints.load("tiny", stored)
    assert tensors["a.weight"].dtype == torch.float32 and tensors["b.count"] == 7
    torch.testing.assert_close(tensors["a.weight"], torch.linspace(-1, 1, 12).reshape(3, 4), atol=2**-11, rtol=0)
    assert record["steps"] == 3 and checkpoints.names(stored) == ["tiny"]


def test_weights_of_another_training_are_refused(stored):
    path = stored / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BadInput, match=r"isn't the file that record.json describes"):
        checkpoints.load("tiny", stored)


def test_a_missing_file_or_name_is_said(stored):
    with pytest.raises(BadInput, match="there is no checkpoint 'large'; there are: tiny"):
        checkpoints.load("large", stored)
    (stored / "tiny" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="can't be read"):
        checkpoints.load("tiny", stored)


@pytest.mark.parametrize("content", ["{", json.dumps({"steps": 3}), "[]"])
def test_a_damaged_record_is_refused(stored, content):
    (stored / "tiny" / "record.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match="can't be read"):
        checkpoints.load("tiny", stored)


def test_what_16_bits_cant_hold_is_refused_and_nothing_is_written(stored):
    with pytest.raises(BadInput, match="aren't finite in 16 bits"):
        checkpoints.save("tiny", {"a": torch.tensor([1e6])}, {}, stored)
    assert checkpoints.load("tiny", stored)[1]["steps"] == 3


def test_every_shipped_checkpoint_is_whole_and_says_how_it_was_made():
    for name in checkpoints.names():
        _, record = checkpoints.load(name)
        assert record["weights"]["bytes"] < 6.5e6
        assert "hardware" in record and {"seconds", "minutes"} & set(record), name
