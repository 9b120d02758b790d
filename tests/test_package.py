"""Packaging: the contour paper's JSONL entry, chat messages, PNG prompt stacks."""

import json

import jinja2
import numpy as np
import pytest
from helpers_ct import SYNTHETIC
from PIL import Image
from test_record import record

from ctvlm_lib import mask as masks
from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.prompt.render import Style
from ctvlm_lib.prompt.wording import SYS_PROMPT
from ctvlm_lib.records import chat_messages, four_role, png_stack
from ctvlm_lib.records.package import read_vision, target_text, user_text, write_entries

OPEN = record(form="open", choices=(), answer="a cyst")
CASE = {"volume": "ct.nii.gz", "mask": "labels.nii.gz", "region": "liver"}
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_the_entry_has_the_papers_four_roles_and_its_vision_content():
    """contour.txt §3.3: {"role": "vision", "content": "nifti:...; prompt_png:[...]"}"""
    entry = four_role(OPEN.worded("red"), png=["png/slice_000.png", "png/slice_001.png"])
    assert entry == [
        {"role": "system", "content": SYS_PROMPT},
        {"role": "user", "content": "Within the red-outlined area of the CT volume, what is in the liver?"},
        {
            "role": "vision",
            "content": 'nifti:ct/p1.nii.gz; prompt_png:["png/slice_000.png", "png/slice_001.png"]',
        },
        {"role": "assistant", "content": "Within the red boundary, a cyst"},
    ]


def test_a_style_without_system_prompt_still_has_four_roles():
    assert [part["role"] for part in four_role(OPEN)] == ["system", "user", "vision", "assistant"]
    assert four_role(OPEN)[0]["content"] == ""
    assert four_role(OPEN, "Be brief.")[0]["content"] == "Be brief."
    assert four_role(OPEN)[2]["content"] == "nifti:ct/p1.nii.gz; prompt_png:[]"


@pytest.mark.parametrize("names", [[], ["a.png"], ["a, b.png", 'c"d].png', "e;f.png"]])
def test_the_vision_content_can_be_read_back(names):
    content = four_role(record(volume="a; b/ct.nii.gz"), png=names)[2]["content"]
    assert read_vision(content) == ("a; b/ct.nii.gz", names)


@pytest.mark.parametrize("content", ["", "nifti:a", "nifti:a; prompt_png:[a.png]", "nifti:a; prompt_png:[1]"])
def test_another_vision_content_is_refused(content):
    with pytest.raises(BadInput, match="expected nifti:PATH; prompt_png:"):
        read_vision(content)


def test_choices_stand_behind_the_question_and_the_answer_has_its_letter():
    assert user_text(record()) == "What is in the liver? Choices: A. a cyst B. a mass"
    assert target_text(record(answer="a mass")) == "B. a mass"
    assert (user_text(OPEN), target_text(OPEN)) == ("What is in the liver?", "a cyst")


def test_entries_are_written_one_conversation_a_line(tmp_path):
    entries = [four_role(OPEN), four_role(record())]
    path = write_entries(entries, tmp_path / "out" / "entries.jsonl")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == entries


def test_chat_messages_have_the_image_before_the_question():
    assert chat_messages(OPEN) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the liver?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cyst"}]},
    ]
    assert [m["role"] for m in chat_messages(OPEN.worded("red"), answer=False)] == ["system", "user"]
    assert chat_messages(OPEN, sys_prompt="Be brief.")[0]["content"] == [{"type": "text", "text": "Be brief."}]


def test_a_chat_template_of_the_usual_kind_renders_them():
    template = jinja2.Template(
        "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    assert template.render(messages=chat_messages(OPEN)) == "<user><image>What is in the liver?<assistant>a cyst"


@pytest.mark.parametrize(
    ("style", "colour", "line"),
    [
        ("red", RED, lambda mask: contour(mask, 1)),  # its system prompt says one-pixel-wide
        ("blue-suffix", BLUE, lambda mask: contour(mask, 3)),
        ("box", GREEN, lambda mask: box_outline(mask, 3)),
    ],
)
def test_the_stack_shows_the_line_that_the_words_speak_of(tmp_path, style, colour, line):
    case = record(**CASE, form="open", choices=()).worded(style)
    files = png_stack(case, SYNTHETIC, tmp_path / "png", names="vista3d")
    volume = volumes.load(SYNTHETIC / "ct.nii.gz")
    assert [file.name for file in files] == [f"slice_{k:03d}.png" for k in range(volume.shape[0])]
    picture = np.stack([np.asarray(Image.open(file)) for file in files])
    liver = masks.load(SYNTHETIC / "labels.nii.gz", like=volume, names="vista3d").binary("liver")
    np.testing.assert_array_equal((picture == colour).all(-1), line(liver))


def test_the_dual_stack_has_the_records_own_distractor(tmp_path):
    case = record(**CASE, distractor="spleen", form="open", choices=()).worded("dual")
    files = png_stack(case, SYNTHETIC, tmp_path / "png", names="vista3d")
    picture = np.stack([np.asarray(Image.open(file)) for file in files])
    volume = volumes.load(SYNTHETIC / "ct.nii.gz")
    spleen = masks.load(SYNTHETIC / "labels.nii.gz", like=volume, names="vista3d").binary("spleen")
    np.testing.assert_array_equal((picture == RED).all(-1), box_outline(spleen, 3))
    assert (picture == GREEN).all(-1).any()


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(BadInput, match="record r1 is plain and speaks of no prompt"):
        png_stack(record(**CASE), SYNTHETIC, tmp_path / "png")
    with pytest.raises(BadInput, match="record r1 has no mask"):
        png_stack(record(mask=None).worded("red"), SYNTHETIC, tmp_path / "png")
    whole = record(region=None, distractor=None, names_region=False)
    with pytest.raises(BadInput, match="record r1 has no region"):
        png_stack(whole.worded("red"), SYNTHETIC, tmp_path / "png")
    assert not list(tmp_path.iterdir())


def test_a_plain_record_can_be_drawn_if_it_is_said_how_and_a_stack_is_not_replaced_unasked(tmp_path):
    box = Style("box", thickness=1)
    files = png_stack(record(**CASE), SYNTHETIC, tmp_path / "png", box, names="vista3d")
    assert any((np.asarray(Image.open(file)) == GREEN).all(-1).any() for file in files)
    with pytest.raises(BadInput, match="exists already"):
        png_stack(record(**CASE), SYNTHETIC, tmp_path / "png", box, names="vista3d")
    assert png_stack(record(**CASE), SYNTHETIC, tmp_path / "png", box, names="vista3d", force=True) == files
