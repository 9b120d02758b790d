"""A CT, a prompt and a question as tensors: the words, the padding, the colours, and what is refused."""

import numpy as np
import pytest
import torch
from helpers_vlm import ANSWERS, QUESTIONS, SIZE, tiny, tokenizer, volumes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ctvlm_lib.alignment.prompted import as_picture, draw_prompt
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.prompt.overlay import COLOURS
from ctvlm_lib.records.package import target_text, user_text
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.colour import WAYS, as_luminance, as_out_of_window, as_rgb, beyond, coloured, line_on_grid, luminance
from ctvlm_lib.vlm.config import CtvlmConfig
from ctvlm_lib.vlm.image import ImageInput
from ctvlm_lib.vlm.processor import CtvlmProcessor
from ctvlm_lib.volume import RECIPES, Volume

CHOICES = ("mass", "cyst", "calcification", "no focal finding")


def record(**fields):
    """A closed question with choices about one region."""
    facts = {
        "id": "1", "dataset": "phantom", "patient": "p", "split": "train", "volume": "a.nii.gz", "mask": "m.nii.gz",
        "region": "liver", "distractor": None, "kind": "abnormality", "form": "closed",
        "question": "Which finding does the liver show?", "answer": "cyst", "choices": CHOICES, "names_region": True,
        "style": "plain",
    }  # fmt: skip
    return Record(**facts | fields)


@pytest.fixture(scope="module")
def processor():
    return tiny()[1]


@pytest.fixture
def lines():
    """A contour and a box in the tiny volume, crossing each other."""
    mask = np.zeros(SIZE, bool)
    mask[4:9, 8:20, 10:22] = True
    return [(contour(mask, thickness=1), "blue"), (box_outline(np.roll(mask, 6, axis=2), thickness=1), "red")]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_sequence_reads_as_the_released_wording(kind):
    _, processor = tiny(kind)
    ids, start = processor.sequence("Which finding does the liver show?", "cyst", CHOICES)
    bos = "<s>" if kind == "llama" else ""
    image = "<im_patch>" * processor.image_tokens
    asked = "Which finding does the liver show? Choices: A. mass B. cyst C. calcification D. no focal finding"
    assert processor.tokenizer.decode(ids) == f"{bos}{image} {asked} B. cyst<|endoftext|>"
    assert processor.tokenizer.decode(ids[start:]) == " B. cyst<|endoftext|>"
    assert ids[:start] == processor.sequence("Which finding does the liver show?", None, CHOICES)[0]


def test_words_are_those_of_the_records(processor):
    one = record()
    asked, said = processor.texts(one.question, one.answer, one.choices)
    assert (asked, said) == (" " + user_text(one), " " + target_text(one))


def test_records_are_worded_in_a_style(processor):
    batch = processor.of_records([record(), record(id="2")], None, style="blue-suffix")
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert "Which finding does the liver show within the blue-outlined area? Choices: A. mass" in text
    plain = processor.of_records([record()], None, answers=False)
    assert "labels" not in plain and "outlined" not in processor.tokenizer.decode(plain["input_ids"][0])


@pytest.mark.parametrize("answers", [None, ANSWERS])
def test_a_batch_is_its_rows_padded_left_to_generate_and_right_to_learn(processor, answers):
    batch = processor(None, QUESTIONS, answers)
    for k, question in enumerate(QUESTIONS):
        ids, start = processor.sequence(question, None if answers is None else answers[k])
        mask = batch["attention_mask"][k]
        assert batch["input_ids"][k][mask == 1].tolist() == ids
        edge = mask[-1] if answers is None else mask[0]
        assert edge == 1 and (mask.diff() != 0).sum() <= 1
        if answers is not None:
            learnt = batch["labels"][k] != -100
            assert learnt.nonzero().flatten().tolist() == list(range(start, len(ids)))
            assert torch.equal(batch["labels"][k][learnt], batch["input_ids"][k][learnt])
    assert (batch["attention_mask"] == 0).any()


def test_answers_come_back_as_they_were_learnt(processor):
    batch = processor(None, QUESTIONS, ANSWERS)
    assert processor.decode(batch["labels"].masked_fill(batch["labels"] == -100, 0)) == ANSWERS


def test_a_saved_processor_makes_the_same_batch(tmp_path):
    model, processor = tiny("llama", channels=3)
    processor = CtvlmProcessor.for_config(
        model.config, processor.tokenizer, scale=(40, 400), colour="out of window", joint=""
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    back = CtvlmProcessor.from_pretrained(tmp_path)
    back.check(CtvlmConfig.from_pretrained(tmp_path))
    images = [np.random.default_rng(0).integers(-1000, 1000, SIZE) for _ in QUESTIONS]
    before, after = processor(images, QUESTIONS, ANSWERS), back(images, QUESTIONS, ANSWERS)
    assert all(torch.equal(before[name], after[name]) for name in before) and len(before) == 4


def test_a_processor_leaves_the_given_tokenizer_alone():
    words = tokenizer()
    size = len(words)
    made = CtvlmProcessor(words, 48, SIZE)
    assert len(words) == size and len(made.tokenizer) == size + 1 == made.image_token_id + 1
    again = CtvlmProcessor(made.tokenizer, 48, SIZE)
    assert again.tokenizer is made.tokenizer


# --- volumes and colours


def test_integers_are_scaled_and_floats_are_not(processor):
    hu = np.random.default_rng(0).integers(-1000, 1000, SIZE).astype(np.int16)
    assert np.array_equal(processor.image_input(hu)[0], as_input(hu))
    ready = volumes(1)[0].numpy()
    assert np.array_equal(processor.image_input(ready), ready)
    assert np.array_equal(processor.image_input(ready[0]), ready)


def test_a_volume_is_resized_and_its_lines_go_with_it(synthetic_case):
    volume, liver = synthetic_case.volume, synthetic_case.labels.binary("liver")
    made = ImageInput(SIZE, 1, "soft tissue", "out of window")
    line = contour(liver, thickness=1)
    drawn, plain = made(volume, [(line, "green")])[0], made(volume)[0]
    assert plain.shape == SIZE and plain.min() == 0 and plain.max() == 1
    on_line = drawn > 1
    assert np.array_equal(on_line, line_on_grid(line, SIZE))
    assert np.array_equal(drawn[~on_line], plain[~on_line])


def test_med3dvlm_scale_is_its_recipe(synthetic_case):
    """Cropped to what is above the scan's minimum, stretched to 128×256×256, minimum to maximum."""
    hu = synthetic_case.volume.hu.copy()
    hu[:3], hu[:, :4], hu[:, :, -5:] = hu.min(), hu.min(), hu.min()
    volume = Volume(hu, synthetic_case.volume.affine)
    made = ImageInput((128, 256, 256), 1, "Med3DVLM")(volume)
    assert np.array_equal(made, RECIPES["Med3DVLM"](volume)[0])


@given(st.data())
def test_a_line_is_neither_lost_nor_broken_by_another_grid(data):
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    size = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    line = data.draw(arrays.arrays(bool, shape))
    carried = line_on_grid(line, size)
    for place in np.argwhere(line):
        assert carried[tuple(((place + 0.5) * size / np.array(shape)).astype(int))]
    for place in np.argwhere(carried):  # and it doesn't grow beyond the voxels that it touches
        low = np.floor(place * np.array(shape) / size).astype(int)
        high = np.ceil((place + 1) * np.array(shape) / size).astype(int)
        assert line[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].any()
    assert np.array_equal(line_on_grid(line, shape), line)


def test_rgb_is_what_prompt_aware_pretraining_draws():
    """The same voxels and values as the encoders saw that are meant to read them."""
    region = np.zeros(SIZE, np.uint8)
    region[4:9, 8:20, 10:22], region[3:8, 8:14, 24:30] = 3, 6
    grey = volumes(1).numpy()
    for style in ("contour", "box", "dual"):
        expected = as_picture(grey)[0]
        draw_prompt(expected, region, 2, style, 5)
        if style == "contour":
            drawn = [(contour(region == 3, thickness=1), "blue")]
        else:
            drawn = [(box_outline(region == 3, thickness=1), "green"), (box_outline(region == 6, thickness=1), "red")]
            drawn = drawn if style == "dual" else drawn[:1]
        assert np.array_equal(as_rgb(grey[0, 0], drawn), expected)


def test_rgb_in_a_window_from_0_to_1_is_the_colour_itself(lines):
    picture = as_rgb(np.full(SIZE, 0.5, np.float32), lines, (0.0, 1.0))
    for line, colour in reversed(lines):
        others = [other for other, name in lines if name != colour and colour == "blue"]
        alone = line & ~np.any(others, axis=0) if others else line
        assert np.array_equal(picture[:, alone].T, np.tile(np.array(COLOURS[colour]) / 255, (alone.sum(), 1)))
    off = ~(lines[0][0] | lines[1][0])
    assert (picture[:, off] == 0.5).all()


def test_luminance_is_that_of_a_picture_turned_grey(lines):
    for colour, rgb in COLOURS.items():
        pillow = Image.new("RGB", (1, 1), rgb).convert("L").getpixel((0, 0)) / 255
        assert abs(luminance(colour, (0.0, 1.0)) - pillow) < 1 / 255
    drawn = as_luminance(np.zeros(SIZE), lines)
    assert drawn[lines[1][0]] == pytest.approx(2 * 0.299 - 1)


def test_out_of_window_values_are_above_all_tissue_and_differ(lines):
    values = [beyond(colour, (-1.0, 1.0)) for colour in COLOURS]
    assert min(values) > 1 and len(set(values)) == len(COLOURS)
    drawn = as_out_of_window(volumes(1)[0, 0].numpy(), lines)
    assert set(np.unique(drawn[drawn > 1])) == {beyond("blue"), beyond("red")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_way_leaves_the_volume_alone_off_the_lines(way, channels, lines):
    grey = volumes(1)[0, 0].numpy()
    before = grey.copy()
    assert np.array_equal(coloured(grey, [], way, channels), np.repeat(grey[None], channels, axis=0))
    if way == "rgb" and channels == 1:
        with pytest.raises(BadInput, match="3 channels and this one has 1; inflate it"):
            coloured(grey, lines, way, channels)
        return
    drawn = coloured(grey, lines, way, channels)
    on = lines[0][0] | lines[1][0]
    assert drawn.shape == (channels, *SIZE) and drawn.dtype == np.float32
    assert (drawn[:, ~on] == grey[~on]).all() and (drawn[:, on] != grey[on]).any(axis=0).all()
    assert np.array_equal(grey, before)


# --- what is refused


def test_a_question_longer_than_the_context_is_refused_not_cut(processor):
    long = "Where? " * 80
    with pytest.raises(BadInput, match=rf"takes \d+ tokens, {processor.image_tokens} of them for the image.*holds 200"):
        processor(None, [long])
    ids, start = processor.sequence("Is it?", "no")
    short = CtvlmProcessor(processor.tokenizer, processor.image_tokens, SIZE, context=len(ids))
    assert short.sequence("Is it?", "no") == (ids, start)
    assert short.sequence("Is it?", room=len(ids) - start)
    for options in ({"room": 1, "answer": "no"}, {"room": len(ids) - start + 1}):
        with pytest.raises(BadInput, match="shorten 'Is it"):
            short.sequence("Is it?", **options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"questions": [""]}, "the question is ''"),
        ({"questions": ["  \n"]}, "the question is"),
        ({"questions": []}, "there is no question"),
        ({"questions": ["Is it?"], "answers": [" "]}, "the answer is ' '"),
        ({"questions": ["See <im_patch>?"]}, "stands for the image"),
        ({"questions": ["Is it?"], "answers": ["no", "yes"]}, "1 questions and 2 answers"),
        ({"questions": ["Is it?"], "lines": []}, "1 questions and 0 lines"),
        ({"questions": ["Is it?"], "answers": ["tumour"], "choices": [CHOICES]}, "none of the choices mass, cyst"),
    ],
)
def test_words_that_cannot_be_used_are_refused(processor, arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        processor(None, **arguments)


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (np.zeros((16, 32, 30)), r"\(16, 32, 30\) voxels .* reads \(16, 32, 32\)"),
        (np.zeros((3, *SIZE)), "has 3 channels and the encoder reads 1"),
        (np.full(SIZE, np.nan), "NaN or infinite"),
        (np.full(SIZE, -1000.0), "model-ready volume lies in -1…1 and this one in -1000…-1000; give HU"),
    ],
)
def test_volumes_that_cannot_be_used_are_refused(processor, volume, sentence):
    with pytest.raises(BadInput, match=sentence):
        processor([volume], ["Is it?"])


def test_lines_that_cannot_be_used_are_refused(processor, lines):
    grey = np.zeros(SIZE)
    with pytest.raises(BadInput, match="no colour is called 'violet'"):
        coloured(grey, [(lines[0][0], "violet")], "luminance", 1)
    with pytest.raises(BadInput, match="give a bool array on the volume's grid"):
        coloured(grey, [(lines[0][0][1:], "blue")], "luminance", 1)
    with pytest.raises(BadInput, match="inflate it"):
        processor([grey], ["Is it?"], lines=[lines])
    with pytest.raises(BadInput, match="drawn already"):
        ImageInput(SIZE, 3)(np.zeros((3, *SIZE)), lines)


@pytest.mark.parametrize(
    ("field", "value"), [("size_dhw_vox", (16, 32, 64)), ("channels", 3), ("image_tokens", 11), ("placeholder", "<im>")]
)
def test_a_processor_of_another_model_is_refused(field, value):
    model, processor = tiny()
    own = {"tokenizer": processor.tokenizer, "image_tokens": model.config.image_tokens, "size_dhw_vox": SIZE}
    CtvlmProcessor(**own).check(model.config)
    with pytest.raises(BadInput, match="and the model .*; take the processor that was saved beside the model"):
        CtvlmProcessor(**own | {field: value}).check(model.config)
    with pytest.raises(BadInput, match="allows 201 tokens and the decoder has 200"):
        CtvlmProcessor(**own | {"context": 201}).check(model.config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": "abdomen"}, "no window is called 'abdomen'"),
        ({"scale": (40, 0)}, "width must be positive"),
        ({"colour": "cmyk"}, "colour is 'cmyk'"),
        ({"channels": 2}, "channels is 2"),
        ({"size_dhw_vox": (16, 32)}, "three sides"),
    ],
)
def test_settings_that_are_none_are_refused(options, sentence):
    with pytest.raises(BadInput, match=sentence):
        CtvlmProcessor(tokenizer(), **options)


def test_folders_without_a_processor_are_refused(tmp_path, processor):
    with pytest.raises(BadInput, match="holds no ctvlm_processor.json"):
        CtvlmProcessor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "ctvlm_processor.json").write_text('{"image_tokens": 12, "sice": 3}')
    with pytest.raises(BadInput, match="can't be read as a processor"):
        CtvlmProcessor.from_pretrained(tmp_path)
