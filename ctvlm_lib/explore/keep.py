"""What a person can take along: the prompted volume, slices, the record, a page, and the view itself.

Everything is made in memory or in a private folder that is removed. Names and contents hold no file name, no date of
an examination and no DICOM field; a NIfTI that is written has a new header with geometry only.
"""

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctvlm_lib import __version__
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore.cases import Case
from ctvlm_lib.explore.prompts import Prompt
from ctvlm_lib.prompt import render
from ctvlm_lib.prompt.overlay import COLOURS
from ctvlm_lib.records.record import Record

if TYPE_CHECKING:
    from ctvlm_lib.explore.ask import Answer

NOTICE = "Research and teaching, not a medical device."
VIEW = "ctvlm-view/1"


@dataclass(frozen=True)
class File:
    """A file to be downloaded."""

    name: str
    mime: str
    content: bytes


def rgb_nifti(case: Case, prompt: Prompt, window) -> File:
    """The windowed CT with the prompt's lines in colour, RGB24, in the axes of the file that the CT came from."""
    with _written(case, prompt, "rgb", "kept.nii.gz", window) as path:
        return File(f"{_stem(case)}-prompt.nii.gz", "application/gzip", path.read_bytes())


def label_nifti(case: Case, prompt: Prompt) -> File:
    """The lines alone: 1 is the region's, 2 the distractor's.

    Raises:
        BadInput: there is no prompt.
    """
    if not prompt.marks:
        raise BadInput("there is no prompt whose lines could be written; choose a contour or a box")
    with _written(case, prompt, "label", "kept.nii.gz") as path:
        return File(f"{_stem(case)}-lines.nii.gz", "application/gzip", path.read_bytes())


def png_stack(case: Case, prompt: Prompt, window) -> File:
    """A ZIP of one PNG for each axial slice with the prompt in it, ``slice_000.png`` the lowest of the CT."""
    packed = io.BytesIO()
    with _written(case, prompt, "png", "slices", window) as folder:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as target:
            for path in sorted(folder.iterdir()):
                target.writestr(zipfile.ZipInfo(path.name), path.read_bytes())  # without the hour that write() adds
    return File(f"{_stem(case)}-slices.zip", "application/zip", packed.getvalue())


def record_lines(case: Case, record: Record, answers: Sequence["Answer"], model: str) -> File:
    """The question and every answer as JSON lines, the record's own fields first."""
    rows = [
        record.to_dict() | {"model": model, "control": one.how, "marked": one.marked or None, "said": one.text,
                            "confidence": None if np.isnan(one.confidence) else round(one.confidence, 4),
                            "refused": one.refused}
        for one in answers
    ]  # fmt: skip
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows or [record.to_dict()])
    return File(f"{_stem(case)}-record.jsonl", "application/jsonl", text.encode())


def view_json(state: Mapping) -> File:
    """The view as JSON; :func:`read_view` restores it."""
    return File("view.json", "application/json", json.dumps({"format": VIEW} | dict(state), indent=1).encode())


def read_view(content: bytes | str) -> dict:
    """Read a view.

    Raises:
        BadInput: no JSON, or no view of this explorer.
    """
    try:
        found = json.loads(content)
    except NOT_JSON as error:
        raise BadInput(f"the view isn't JSON ({type(error).__name__}); give one that was saved here") from None
    if not isinstance(found, dict) or found.get("format") != VIEW:
        raise BadInput(f"the file isn't a view of this explorer; its format should be {VIEW!r}")
    return {name: value for name, value in found.items() if name != "format"}


def view_link(state: Mapping) -> str:
    """The view as the query of a link."""
    content = json.dumps({"format": VIEW} | dict(state), separators=(",", ":"))
    return "?view=" + base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def view_of_link(query: str) -> dict | None:
    """The view that a link's query holds, None for none.

    Raises:
        BadInput: a damaged one.
    """
    from urllib.parse import parse_qs

    given = parse_qs(query.lstrip("?")).get("view")
    if not given:
        return None
    try:
        content = base64.urlsafe_b64decode(given[0] + "=" * (-len(given[0]) % 4))
    except (ValueError, TypeError):
        raise BadInput("the link's view is damaged; copy the link again") from None
    return read_view(content)


def summary(
    case: Case, prompt: Prompt, picture: bytes, question: str, answers: Sequence["Answer"], verdict: str, model: str,
    shown: Sequence[str],
) -> File:  # fmt: skip
    """One page to print or to keep: picture, prompt, question, answers, and what they may be used for.

    Args:
        case, prompt: what is shown. picture: PNG.
        question: as it was sent. answers, verdict, model: what came back.
        shown: each answer as it was shown on the page, so that one that was withheld stays so.
    """
    rows = "".join(
        f"<tr><td>{escape(one.how)}</td><td>{escape(one.marked or '–')}</td><td>{escape(text)}</td></tr>"
        for one, text in zip(answers, shown, strict=True)
    )
    table = f"<table><tr><th>asked</th><th>prompt on</th><th>answer</th></tr>{rows}</table>" if rows else ""
    asked = f"<h2>Question</h2><p>{escape(question)}</p>{table}<p>{escape(verdict)}</p>" if question else ""
    source = base64.b64encode(picture).decode()
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(case.name)}: visual prompt</title>
<style>
@page {{ size: A4; margin: 14mm }}
body {{ font: 14px system-ui, sans-serif; max-width: 720px; margin: 16px auto; color: #1c1c1f; background: #fff }}
h1 {{ font-size: 20px }} h2 {{ font-size: 15px; margin-bottom: 4px }} img {{ max-width: 100% }}
table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid #ccc; padding: 3px 14px 3px 0; text-align: left }}
.notice {{ border: 2px solid #b35900; padding: 6px 10px }}
</style>
<h1>{escape(case.name)}</h1>
<p class="notice"><b>{NOTICE}</b> Answers are a model's, trained on phantom patients; nobody has checked them.</p>
<img alt="three planes with the prompt; the patient's right is on the left" src="data:image/png;base64,{source}">
<p>{escape(prompt.sentence)}</p>
{asked}
<p>{escape(" · ".join(case.notes))}</p>
<p><small>ctvlm {escape(__version__)}{f", model {escape(model)}" if model else ""}; radiological display:
the patient's right on the left.</small></p>
</html>
"""
    return File(f"{_stem(case)}-summary.html", "text/html", page.encode())


@contextmanager
def _written(case: Case, prompt: Prompt, kind: str, name: str, window="soft tissue") -> Iterator[Path]:
    """What ``ctvlm render`` would write, in a private folder that is removed."""
    lines = render.Prompt([(mark.mask, _rgb(mark.colour), mark.label) for mark in prompt.marks])
    with tempfile.TemporaryDirectory(prefix="ctvlm-") as folder:
        yield render.write(lines, case.volume, Path(folder) / name, kind, window)


def _rgb(colour: str) -> tuple[int, int, int]:
    """The papers' pure colours; others as they are shown."""
    from matplotlib.colors import to_rgb

    from ctvlm_lib.view import COLOURS as SHOWN

    return COLOURS[colour] if colour in COLOURS else tuple(round(255 * value) for value in to_rgb(SHOWN[colour]))


def _stem(case: Case) -> str:
    """A case's name as the beginning of a file's name."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in case.name.lower()).split())
