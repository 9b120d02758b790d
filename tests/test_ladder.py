"""The ladder of small language models: sizes, what ships, what it knows of the text and what it doesn't know."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers_vlm import SIZE, tiny, volumes
from transformers import AutoModelForCausalLM

from ctvlm_lib import checkpoints
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol
from ctvlm_lib.records.balance import balance
from ctvlm_lib.records.package import user_text
from ctvlm_lib.records.questions import candidates
from ctvlm_lib.vlm import CtvlmModel, CtvlmProcessor, ladder, ladder_tokenizer
from ctvlm_lib.vlm.ladder_blind import blind_accuracy, blind_answers, options
from ctvlm_lib.vlm.ladder_text import Corpus
from ctvlm_lib.vlm.ladder_training import SETTINGS, make_tokenizer, perplexity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SHIPPED = [size for size in ladder.SIZES if ladder.name_of(size) in checkpoints.names()]


@pytest.fixture(scope="module")
def validation():
    """Eight validation patients' texts."""
    those = protocol.load().patients("validation", n=8)
    return Corpus.of(record for one in those for record in candidates(one, "validation"))


@pytest.fixture(scope="module")
def small():
    return ladder.load("small")


def test_every_size_ships():
    assert SHIPPED == ["small", "middle", "large"]


@pytest.mark.parametrize("size", ladder.SIZES)
def test_parameters_are_those_of_the_record_and_of_the_file(size):
    model, tokenizer = ladder.load(size)
    record = checkpoints.record(ladder.name_of(size))
    counted = sum(p.numel() for p in model.parameters())
    assert counted == record["model"]["parameters"] == ladder.parameters(size)["parameters"]
    assert 2 * counted < record["weights"]["bytes"] < 2 * counted + 20_000  # 16 bits each, and a header of names
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_sizes_are_as_0_5_to_1_5_to_3():
    small, middle, large = (ladder.parameters(size)["parameters"] for size in ladder.SIZES)
    # of Qwen2.5-0.5B, 1.5B and 3B: 494, 1544 and 3086 million, so that a thousandth has room for 2 %
    assert [small, middle, large] == pytest.approx([494e3, 1544e3, 3086e3], rel=0.02)


@pytest.mark.parametrize("size", ladder.SIZES)
def test_loaded_logits_are_finite_and_those_of_transformers_own_loader(size):
    model, tokenizer = ladder.load(size)
    assert not model.training and model.dtype == torch.float32
    rows = tokenizer([" Which structure is marked?"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**rows).logits
        theirs = AutoModelForCausalLM.from_pretrained(
            checkpoints.FOLDER / ladder.name_of(size), local_files_only=True, dtype="float32"
        )(**rows).logits
    assert torch.isfinite(logits).all() and torch.equal(logits, theirs)


def test_an_image_of_512_tokens_a_question_and_a_report_fit_into_the_context(small, validation):
    model, tokenizer = small
    longest = max(len(tokenizer(" " + record.answer)["input_ids"]) for record in validation.reports)
    assert 512 + 100 + longest < model.config.max_position_embeddings


def test_random_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, same, other = (ladder.build("small", seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])


def test_an_unknown_size_is_said():
    with pytest.raises(BadInput, match="no size 'huge'; choose one of small, middle, large"):
        ladder.build("huge")


def test_a_model_is_not_loaded_with_another_tokenizer(tmp_path, validation):
    shutil.copytree(checkpoints.FOLDER / "ladder-small", tmp_path / "ladder-small")
    with pytest.raises(BadInput, match="no ladder-tokenizer"):
        ladder.load("small", tmp_path)
    home = tmp_path / ladder_tokenizer.NAME
    shutil.copytree(checkpoints.FOLDER / ladder_tokenizer.NAME, home)
    ladder.load("small", tmp_path)
    content = json.loads((home / ladder_tokenizer.FILE).read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    (home / ladder_tokenizer.FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadInput, match="trained with another tokenizer"):
        ladder.load("small", tmp_path)
    with pytest.raises(BadInput, match="isn't the file that tokenizer_record.json describes"):
        ladder_tokenizer.load_tokenizer(tmp_path)


def test_the_small_one_knows_how_the_texts_go(small, validation):
    texts = validation.draw(np.random.default_rng(5), 50)
    found = perplexity(*small, texts)
    recorded = checkpoints.record("ladder-small")["perplexity"]["validation"]
    # 50 texts hold about 2,700 tokens whose losses spread by about 0.7, in texts that aren't independent of each other:
    # three standard errors of the mean loss are below 0.15. A uniform guess would be 768
    assert abs(math.log(found["all"]) - math.log(recorded["all"])) < 0.15
    assert perplexity(ladder.build("small"), small[1], texts)["all"] > 300


@pytest.mark.parametrize("size", ladder.SIZES)
def test_without_an_image_each_size_was_at_chance_on_validation(size):
    record = checkpoints.record(ladder.name_of(size))["blind_accuracy"]
    assert sum(row["n"] for row in record.values()) > 10_000
    for group, row in record.items():
        assert row["at_chance"] and row["low"] <= row["accuracy"] <= row["high"], group


def test_without_an_image_the_small_one_is_at_chance_on_a_few_patients(small, validation):
    closed = [r for r in balance(validation.questions) if r.form == "closed" and r.kind == "presence"]
    said, _ = blind_answers(*small, closed)
    right = sum(answer == record.answer for answer, record in zip(said, closed, strict=True))
    # questions on one patient are alike, so that the spread is wider than a coin's: six of its standard deviations
    assert len(closed) > 60 and abs(right / len(closed) - 0.5) < 6 * 0.5 / math.sqrt(len(closed))


def test_a_reader_of_the_answers_is_not_called_blind(validation, small, monkeypatch):
    from ctvlm_lib.vlm import ladder_blind

    closed = [record for record in balance(validation.questions) if record.form == "closed"]
    monkeypatch.setattr(ladder_blind, "blind_answers", lambda m, t, records: ([r.answer for r in records], []))
    rows = blind_accuracy(*small, closed)
    assert rows and all(row["accuracy"] == 1 and not row["at_chance"] for row in rows.values())


def test_blind_answers_are_among_the_options_and_right_by_hand(small, validation):
    model, tokenizer = small
    closed = [record for record in validation.questions if record.form == "closed"][:40]
    answers, confidence = blind_answers(model, tokenizer, closed)
    for record, answer, share in zip(closed, answers, confidence, strict=True):
        ids = tokenizer([" " + user_text(record)], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            row = model(input_ids=ids).logits[0, -1]
        offered = options(record)
        chance = row[[tokenizer(f" {o}")["input_ids"][0] for o in offered]].softmax(0)
        best = (record.choices or offered)[int(chance.argmax())]
        assert answer == best and share == pytest.approx(float(chance.max()), abs=1e-4)
    with pytest.raises(BadInput, match="open question"):
        blind_answers(model, tokenizer, [record for record in validation.questions if record.form == "open"][:1])


def test_a_rung_becomes_the_decoder_of_a_vision_language_model(small):
    decoder, tokenizer = small
    encoder = tiny()[0].encoder
    model = CtvlmModel.assemble(
        encoder, decoder, size_dhw_vox=SIZE, image_token_id=ladder_tokenizer.PLACEHOLDER_ID
    ).eval()
    processor = CtvlmProcessor.for_config(model.config, tokenizer, scale="cohort")
    assert len(processor.tokenizer) == len(tokenizer)  # the placeholder is there already
    batch = processor(volumes(2)[:, 0].numpy(), ["Which structure is marked?"] * 2)
    assert model(**batch).logits.shape[-1] == len(tokenizer)


def test_the_command_lists_the_three(capsys):
    from ctvlm_lib import __main__ as command_line

    assert command_line.main(["train"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {ladder.name_of(size) for size in ladder.SIZES} <= set(listed)


def test_the_record_says_how_it_was_trained():
    for size in ladder.SIZES:
        record = checkpoints.record(ladder.name_of(size))
        assert record["training"]["steps"] == SETTINGS[size].steps and record["training"]["lr"] == SETTINGS[size].lr
        assert record["trained_on"]["split"] == "train" and record["held_out"]["split"] == "validation"


def test_the_shipped_tokenizer_is_whole_and_another_corpus_gives_another(tmp_path, validation):
    assert len(ladder_tokenizer.load_tokenizer()) == ladder_tokenizer.VOCABULARY
    with pytest.raises(BadInput, match="tokens and 768 are wanted"):  # eight patients have too few words
        make_tokenizer(Corpus(validation.questions[:50], validation.reports[:1]), tmp_path)
