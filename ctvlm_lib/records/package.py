"""Records as models read them: the contour paper's four roles, chat messages, and the PNG prompt stack."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.prompt.wording import STYLES
from ctvlm_lib.records.record import Record

if TYPE_CHECKING:
    from ctvlm_lib.prompt.render import Style

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VISION = re.compile(r"nifti:(?P<nifti>.*); prompt_png:(?P<png>\[.*\])", re.DOTALL)


def user_text(record: Record) -> str:
    """The question as a model gets it: with its choices behind it, if there are any.

    Source: Med3DVLM's released code, "{question} Choices: A. {} B. {} C. {} D. {}"; the contour and dual-box papers say
        nothing of choices.
    """
    if not record.choices:
        return record.question
    listed = " ".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, record.choices, strict=False))
    return f"{record.question} Choices: {listed}"


def target_text(record: Record) -> str:
    """The answer as a model shall give it: "B. spleen" where there are choices, else as it stands."""
    if not record.choices:
        return record.answer
    return f"{LETTERS[record.choices.index(record.answer)]}. {record.answer}"


def four_role(record: Record, sys_prompt: str | None = None, png: Sequence[str | Path] = ()) -> list[dict[str, str]]:
    """Package a record as the contour paper does.

    The list of pictures is a JSON array, so that any file name can be read back with :func:`read_vision`.

    Args:
        record: in the style that the model shall read.
        sys_prompt: by default the one of the record's style; it is "" where the papers state none, and the entry still
            has its four roles.
        png: the prompt stack, lowest slice first, as it shall be named in the entry; see :func:`png_stack`.

    Returns:
        Four ``{"role": …, "content": …}``: system, user, vision, assistant.

    Source: contour.txt §3.3.
    """
    pictures = json.dumps([Path(name).as_posix() for name in png], ensure_ascii=False)
    return [
        {"role": "system", "content": STYLES[record.style].system if sys_prompt is None else sys_prompt},
        {"role": "user", "content": user_text(record)},
        {"role": "vision", "content": f"nifti:{record.volume}; prompt_png:{pictures}"},
        {"role": "assistant", "content": target_text(record)},
    ]


def read_vision(content: str) -> tuple[str, list[str]]:
    """Read the content of a vision role: path of the NIfTI, and paths of the pictures.

    Raises:
        BadInput: it isn't of the form ``nifti:PATH; prompt_png:["PATH", …]``.
    """
    found = _VISION.fullmatch(content)
    try:
        names = json.loads(found["png"]) if found else None
    except NOT_JSON:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f'the vision content is {content[:80]!r}; expected nifti:PATH; prompt_png:["PATH", …]')
    return found["nifti"], names


def write_entries(entries: Iterable[list[dict[str, str]]], path: str | Path) -> Path:
    """Write four-role entries as JSON lines, one conversation a line, whole or not at all."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return Path(path)


def chat_messages(record: Record, answer: bool = True, sys_prompt: str | None = None) -> list[dict]:
    """Package a record as messages for ``apply_chat_template`` of a transformers processor.

    Each content is a list of parts; the volume's place is the part ``{"type": "image"}`` before the question.

    Args:
        record: in the style that the model shall read.
        answer: False leaves the assistant's message out, for generation with ``add_generation_prompt=True``.
        sys_prompt: by default the one of the record's style; no system message is made from "".
    """
    system = STYLES[record.style].system if sys_prompt is None else sys_prompt
    messages = [{"role": "system", "content": [_text(system)]}] if system else []
    messages.append({"role": "user", "content": [{"type": "image"}, _text(user_text(record))]})
    if answer:
        messages.append({"role": "assistant", "content": [_text(target_text(record))]})
    return messages


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def png_stack(
    record: Record, root: str | Path, out: str | Path, drawing: "Style | None" = None, *, names=None, force=False
) -> list[Path]:
    """Draw the prompt that a record's words speak of, one picture for each axial slice.

    Args:
        record: in a style with a picture; a plain one needs ``drawing``.
        root: the data set's folder, which the record's paths start from.
        out: a folder for the pictures.
        drawing: how to draw; by default as the record's style says, with its distractor (the nearest structure if it
            names none). A contour or box of the record's own kind has the colours that its words name: red, not
            blue, for the red style.
        names: of the labels, see :func:`ctvlm_lib.mask.load`.
        force: replace an existing stack.

    Returns:
        The pictures' paths, lowest slice first.

    Raises:
        BadInput: no region or mask in the record, nothing to draw, or a file that can't be used.
    """
    from ctvlm_lib import mask as masks
    from ctvlm_lib import volume as volumes
    from ctvlm_lib.prompt.render import check_output, draw, write

    out, drawing = Path(out), drawing or _drawing(record)
    for field in ("region", "mask"):
        if getattr(record, field) is None:
            raise BadInput(f"record {record.id} has no {field}, so no prompt can be drawn; choose one that has")
    check_output(out, "png", force)
    volume = volumes.load(Path(root) / record.volume)
    labels = masks.load(Path(root) / record.mask, like=volume, names=names)
    prompt = draw(labels, record.region, drawing, volume)
    if drawing.style == STYLES[record.style].drawing:
        coloured = zip(prompt.lines, STYLES[record.style].colours, strict=True)
        prompt = replace(prompt, lines=[(line, colour, what) for (line, _, what), colour in coloured])
    write(prompt, volume, out, "png", drawing.window)
    return sorted(out.glob("slice_*.png"))


def _drawing(record: Record) -> "Style":
    """How the picture of the record's style is drawn."""
    from ctvlm_lib.prompt.render import Style

    style = STYLES[record.style]
    if not style.drawing:
        raise BadInput(f"record {record.id} is plain and speaks of no prompt; word it in a style, or give drawing=")
    return Style(style.drawing, thickness=style.thickness, distractor=record.distractor or "auto")
