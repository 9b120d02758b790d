"""The ladder's tokenizer and training: lossless on every text, the processor's layout, packing, resumed training."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt.wording import STYLES, style_of
from ctvlm_lib.records import protocol
from ctvlm_lib.records.questions import candidates
from ctvlm_lib.training import Training
from ctvlm_lib.vlm import ladder, ladder_text, ladder_tokenizer, ladder_training
from ctvlm_lib.vlm.ladder_text import Corpus, Text, packed, sequence, strings
from ctvlm_lib.vlm.ladder_tokenizer import EOS_ID, PAD_ID, PLACEHOLDER_ID, load_tokenizer, train_tokenizer
from ctvlm_lib.vlm.processor import PLACEHOLDER, CtvlmProcessor


def corpus_of(split: str, n: int) -> Corpus:
    return Corpus.of(r for one in protocol.load().patients(split, n=n) for r in candidates(one, split))


@pytest.fixture(scope="module")
def corpus():
    return corpus_of("train", 6)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_every_text_of_test_patients_comes_back_whole(tokenizer):
    parts = {part for text in corpus_of("test", 6).every_text for part in strings(text)}
    assert len(parts) > 500
    for part in parts:
        ids = tokenizer(part)["input_ids"]
        assert tokenizer.decode(ids) == part
        assert not set(ids) & {PAD_ID, EOS_ID, PLACEHOLDER_ID}


@settings(max_examples=60)
@given(text=st.text(max_size=40))
def test_no_text_has_an_unknown_token(tokenizer, text):
    if not any(name in text for name in ladder_tokenizer.SPECIAL):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_and_units_are_single_tokens_and_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize(" about 36 mm") == ["Ġabout", "Ġ", "3", "6", "Ġmm"]
    for word in ("Yes", "No", "A", "B", "C", "D", "calcification", "consolidation", "spleen", "posterior", "cm"):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1, word


def test_special_tokens_are_apart_and_there_is_no_bos(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, EOS_ID)
    assert tokenizer.convert_tokens_to_ids(PLACEHOLDER) == PLACEHOLDER_ID
    assert len({PAD_ID, EOS_ID, PLACEHOLDER_ID}) == 3 and tokenizer.bos_token_id is None
    assert tokenizer("")["input_ids"] == [] and tokenizer(PLACEHOLDER)["input_ids"] == [PLACEHOLDER_ID]
    made = ladder.config("small")
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (None, EOS_ID, PAD_ID)


def test_the_same_texts_give_the_same_tokenizer_in_any_order(corpus):
    parts = [part for text in corpus.every_text for part in strings(text)]
    shuffled = random.Random(0).sample(parts, len(parts))
    first, second = (train_tokenizer(those, 500).backend_tokenizer.to_str() for those in (parts, shuffled))
    assert first == second


def test_a_saved_tokenizer_is_the_same_bytes_each_time(tmp_path, corpus):
    parts = [part for text in corpus.every_text for part in strings(text)]
    for name in ("a", "b"):
        ladder_tokenizer.save_tokenizer(train_tokenizer(parts, 400), {"what": "a test"}, tmp_path / name)
    for file in (tmp_path / "a" / ladder_tokenizer.NAME).iterdir():
        assert file.read_bytes() == (tmp_path / "b" / ladder_tokenizer.NAME / file.name).read_bytes()
    ids = load_tokenizer(tmp_path / "a")(" Yes, 36 mm")["input_ids"]
    assert ids == train_tokenizer(parts, 400)(" Yes, 36 mm")["input_ids"]


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(corpus):
    with pytest.raises(BadInput, match="can't hold all bytes; give at least 259"):
        train_tokenizer(["a"], 200)


def test_a_text_is_laid_out_as_the_processor_does_behind_the_image(corpus, tokenizer):
    processor = CtvlmProcessor(tokenizer, image_tokens=5, size_dhw_vox=(32, 64, 64), scale="cohort")
    for text in corpus.draw(np.random.default_rng(0), 72):
        ids, start = processor.sequence(text.question, text.answer, text.choices)
        assert sequence(tokenizer, text) == (ids[5:], start - 5)
    assert processor.image_token_id == PLACEHOLDER_ID and len(processor.tokenizer) == len(tokenizer)


def test_styles_have_equal_shares_and_every_twelfth_text_is_a_report(corpus):
    drawn = corpus.draw(np.random.default_rng(0), 720)
    assert set(Counter(style_of(text.question) for text in drawn).values()) == {120}
    reports = Counter(style_of(text.question) for text in drawn if ladder_training.is_report(text))
    assert set(reports) == set(STYLES) and set(reports.values()) == {10}


def test_the_words_are_those_that_a_record_gets(corpus):
    record = corpus.questions[0]
    worded = {record.worded(style).question for style in STYLES}
    assert worded <= {text.question for text in corpus.every_text}


def test_records_of_two_splits_or_without_reports_are_refused(corpus):
    record = corpus.questions[0]
    with pytest.raises(BadInput, match="several splits"):
        Corpus.of([*corpus.reports, record, dataclasses.replace(record, split="test")])
    with pytest.raises(BadInput, match="1 questions and 0 reports"):
        Corpus.of([record])
    with pytest.raises(BadInput, match="isn't plain"):
        Corpus.of([record.worded("box")])


def test_packed_texts_have_the_losses_of_each_text_alone(corpus, tokenizer):
    model = ladder.build("small", 1)
    texts = corpus.draw(np.random.default_rng(2), 24)
    with torch.no_grad():
        together, answers = ladder_training._losses(model, tokenizer, texts)
        alone = []
        for ids, _ in (sequence(tokenizer, text) for text in texts):
            row = torch.tensor([ids])
            logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1]
            alone.append(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none"))
    # the packed losses are in the order of rows, the others in that of texts
    torch.testing.assert_close(together.sort().values, torch.cat(alone).sort().values, atol=1e-4, rtol=1e-4)
    rows = [sequence(tokenizer, text) for text in texts]
    assert int(answers.sum()) == sum(len(ids) - start for ids, start in rows)


def test_every_token_of_every_text_is_packed_once(corpus, tokenizer):
    rows = [sequence(tokenizer, text) for text in corpus.draw(np.random.default_rng(3), 60)]
    batch = packed(rows, PAD_ID)
    assert int((batch["input_ids"] != PAD_ID).sum()) == sum(len(ids) for ids, _ in rows)
    assert int((batch["labels"] != ladder_text.IGNORED).sum()) == sum(len(ids) - 1 for ids, _ in rows)
    with pytest.raises(BadInput, match="and a row 8; make the rows longer"):
        packed(rows, PAD_ID, 8)


def test_perplexity_is_of_the_mean_loss(corpus, tokenizer):
    model, texts = ladder.build("small", 1), [Text("Is there a cyst in the liver?", "No")]
    with torch.no_grad():
        losses, answers = ladder_training._losses(model, tokenizer, texts)
    found = ladder_training.perplexity(model, tokenizer, texts)
    assert found["all"] == pytest.approx(float(losses.mean().exp()), rel=1e-4)
    assert found["answers"] == pytest.approx(float(losses[answers].mean().exp()), rel=1e-4)
    assert "reports" not in found and int(answers.sum()) == 2  # the answer and EOS


def test_a_few_steps_lower_the_loss(corpus, tokenizer):
    few = Training(8, lr=5e-3)
    _, curve = ladder_training.pretrain("small", corpus, tokenizer, few, batch=12, progress=False)
    assert curve[-1]["loss"] < curve[0]["loss"] - 1


def test_a_run_that_was_killed_gives_the_same_curve(corpus, tokenizer, tmp_path, monkeypatch):
    few = Training(4, lr=5e-3, checkpoint_every=1)

    def run(folder):
        model, curve = ladder_training.pretrain("small", corpus, tokenizer, few, batch=6, folder=folder, progress=False)
        return model, [row["loss"] for row in curve]

    whole, wanted = run(tmp_path / "whole")
    draw, calls = Corpus.draw, []

    def killed(self, rng, count):
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, rng, count)

    monkeypatch.setattr(Corpus, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    resumed, curve = run(tmp_path / "killed")
    assert curve == wanted and len(calls) == 5  # two steps, the one that was killed, and the last two
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
