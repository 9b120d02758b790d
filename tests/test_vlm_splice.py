"""Image vectors among the words: which position gets what, which word is lost, and what a loss is taken on."""

import helpers_vlm
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.splice import (
    IGNORED,
    answer_labels,
    image_positions,
    lost_positions,
    released_row,
    sequence_table,
    splice_embeddings,
)

IMAGE, N = 99, 4


def row(before: int, words: int, image: int = N) -> torch.Tensor:
    """(1, length): ids 1…, then placeholders, then ids 11…"""
    return torch.tensor([[*range(1, 1 + before), *[IMAGE] * image, *range(11, 11 + words)]])


def as_the_released_code_splices(embeddings, image):
    """Keep the first embedding, insert the image, go on behind N + 1."""
    return torch.cat([embeddings[:, :1], image, embeddings[:, 1 + image.shape[1] :]], dim=1)


def test_each_placeholder_gets_its_own_vector_and_each_word_stays():
    ids = row(before=1, words=3)
    embeddings, image = torch.randn(1, 8, 6), torch.randn(1, N, 6)
    out = splice_embeddings(embeddings, image_positions(ids, IMAGE, N), image)
    assert torch.equal(out, torch.cat([embeddings[:, :1], image, embeddings[:, 5:]], dim=1))


@given(st.data())
def test_splicing_equals_a_loop_over_positions(data):
    length, rows = data.draw(st.integers(N, 12)), data.draw(st.integers(1, 3))
    ids = torch.ones(rows, length, dtype=torch.long)
    for k in range(rows):
        ids[k, data.draw(st.permutations(range(length)))[:N]] = IMAGE
    embeddings, image = torch.rand(rows, length, 2), torch.rand(rows, N, 2) + 1
    expected = embeddings.clone()
    for k in range(rows):
        vectors = iter(image[k])
        for place in range(length):
            if ids[k, place] == IMAGE:
                expected[k, place] = next(vectors)
    assert torch.equal(splice_embeddings(embeddings, image_positions(ids, IMAGE, N), image), expected)


def test_gradient_reaches_the_image_and_the_words_but_no_placeholder():
    ids = row(before=0, words=2)
    embeddings, image = torch.rand(1, 6, 3, requires_grad=True), torch.rand(1, N, 3, requires_grad=True)
    splice_embeddings(embeddings, image_positions(ids, IMAGE, N), image).sum().backward()
    assert image.grad.eq(1).all()
    assert embeddings.grad[0, :, 0].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("before", [0, 1])
def test_released_splice_equals_the_slices_of_the_released_code(before):
    ids = row(before, words=3)
    embeddings, image = torch.randn(1, ids.shape[1], 6), torch.randn(1, N, 6)
    positions = image_positions(ids, IMAGE, N, "as released")
    assert torch.equal(splice_embeddings(embeddings, positions, image), as_the_released_code_splices(embeddings, image))


def test_released_splice_loses_nothing_behind_bos():
    ids = row(before=1, words=3)
    positions = image_positions(ids, IMAGE, N, "as released")
    assert torch.equal(positions, image_positions(ids, IMAGE, N))
    assert not lost_positions(ids, positions, IMAGE).any()


def test_released_splice_without_bos_loses_exactly_the_first_word_and_keeps_one_placeholder():
    ids = row(before=0, words=3)
    positions = image_positions(ids, IMAGE, N, "as released")
    assert positions[0].tolist() == [False, True, True, True, True, False, False]
    assert ids[lost_positions(ids, positions, IMAGE)].tolist() == [11]
    assert ids[0][~positions[0]].tolist() == [IMAGE, 12, 13]


def test_released_splice_counts_from_the_first_attended_position():
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), row(before=0, words=3)], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    positions = image_positions(padded, IMAGE, N, "as released", mask)
    assert torch.equal(positions[:, 2:], image_positions(row(0, 3), IMAGE, N, "as released"))
    assert not positions[:, :2].any()


@pytest.mark.parametrize("image", [0, N - 1, N + 1])
def test_another_number_of_placeholders_is_refused(image):
    with pytest.raises(BadInput, match=f"row 0 holds {image} placeholders .* gives 4 vectors"):
        image_positions(row(1, 3, image), IMAGE, N)


def test_bad_splices_are_refused():
    with pytest.raises(BadInput, match="choose one of 'placeholders', 'as released'"):
        image_positions(row(1, 3), IMAGE, N, "prepend")
    with pytest.raises(BadInput, match="a question must follow"):
        image_positions(row(0, 0), IMAGE, N, "as released")
    with pytest.raises(BadInput, match="one image a row"):
        splice_embeddings(torch.zeros(2, 8, 6), torch.zeros(2, 8, dtype=bool), torch.zeros(1, N, 6))


def test_labels_hold_the_answer_and_its_eos_alone():
    ids = torch.tensor([[IMAGE, 5, 6, 7, 0, 0, 0], [IMAGE, 5, 8, 9, 9, 9, 0]])  # EOS and padding are both 0
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    labels = answer_labels(ids, torch.tensor([3, 2]), mask)
    assert labels[0].tolist() == [IGNORED, IGNORED, IGNORED, 7, 0, IGNORED, IGNORED]
    assert labels[1].tolist() == [IGNORED, IGNORED, 8, 9, 9, 9, 0]


def test_released_row_writes_eos_into_the_padding():
    made = released_row(prompt_ids=[5, 6], text_ids=[5, 6, 7], eos_token_id=2, pad_token_id=0, max_length=6)
    assert made.input_ids.tolist() == [5, 6, 7, 2, 0, 0]
    assert made.attention_mask.tolist() == [1, 1, 1, 0, 0, 0]
    assert made.labels.tolist() == [IGNORED, IGNORED, 7, 2, IGNORED, IGNORED]
    assert made.cut == 0


def test_released_row_cuts_a_long_answer_and_its_eos():
    made = released_row(prompt_ids=[5], text_ids=[5, *range(10, 20)], eos_token_id=2, pad_token_id=0, max_length=6)
    assert made.labels.tolist() == [IGNORED, 10, 11, 12, 13, 14]
    assert made.cut == 5
    assert 2 not in made.labels


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_released_row_has_the_same_loss_as_ours(kind):
    """The mask's 0 at EOS and the padding behind it change nothing that is learnt."""
    model, processor = helpers_vlm.tiny(kind)
    question, answer = helpers_vlm.QUESTIONS[0], helpers_vlm.ANSWERS[0]
    images = helpers_vlm.volumes(1)
    ours = processor(images.numpy(), [question], [answer])
    theirs = processor.released_sequence(question, answer, max_length=90)
    length = ours["input_ids"].shape[1]
    assert torch.equal(theirs.input_ids[:length], ours["input_ids"][0])
    assert torch.equal(theirs.labels[:length], ours["labels"][0])
    with torch.no_grad():
        loss = model(**ours).loss
        released = model(theirs.input_ids[None], theirs.attention_mask[None], images, labels=theirs.labels[None]).loss
    torch.testing.assert_close(released, loss, rtol=1e-5, atol=1e-6)


def test_table_shows_the_lost_word_of_a_question():
    _, processor = helpers_vlm.tiny()
    ids = processor.sequence("Which organ is it?")[0]
    first_word = processor.tokenizer.convert_ids_to_tokens(ids[processor.image_tokens])
    settings = (torch.tensor(ids), processor.tokenizer, processor.image_token_id, processor.image_tokens)
    ours = sequence_table(*settings, shown=0)
    assert ours["lost"].eq("").all()
    count = processor.image_tokens
    assert ours["source"].tolist() == [f"image {k + 1}" for k in range(count)] + ["text"] * (len(ids) - count)
    released = sequence_table(*settings, "as released", shown=0)
    assert released["source"][0] == "text" and released["token"][0] == "<im_patch>"
    assert released["lost"][released["lost"] != ""].to_dict() == {count: first_word}
    assert released["source"][count] == f"image {count}"


def test_table_folds_image_vectors_and_shows_labels_and_padding():
    _, processor = helpers_vlm.tiny()
    batch = processor(None, helpers_vlm.QUESTIONS[:2], helpers_vlm.ANSWERS[:2])
    table = sequence_table(
        batch["input_ids"][1], processor.tokenizer, processor.image_token_id, processor.image_tokens,
        attention_mask=batch["attention_mask"][1], labels=batch["labels"][1],
    )  # fmt: skip
    last = processor.image_tokens
    ends = ["image 1", "image 2", f"… {last - 4} more", f"image {last - 1}", f"image {last}"]
    assert table["source"][:5].tolist() == ends
    learnt = processor.tokenizer.convert_tokens_to_string([t for t in table["label"] if t])
    assert learnt == " no<|endoftext|>"
    assert (table["source"] == "padding").sum() == int((batch["attention_mask"][1] == 0).sum()) > 0
