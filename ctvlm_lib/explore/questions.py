"""Questions about a structure: a person's own, and those in the cohort's words."""

from collections.abc import Sequence

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import LOBES
from ctvlm_lib.records.questions import (
    ASKED,
    LUNG_CHOICES,
    LUNG_KINDS,
    ORGAN_CHOICES,
    ORGAN_KINDS,
    ORGAN_SETS,
    UNNAMED,
    with_article,
)
from ctvlm_lib.records.record import Record, region_name


def question(
    text: str, structure: str, *, kind: str = "other", choices: Sequence[str] = (), open_ended: bool = False
) -> Record:
    """A question of a person's own, about a structure; its answer isn't known.

    Args:
        text: plain words; "the marked region" where the structure shall not be named.
        structure: that is marked.
        kind: of question. choices: of a closed question, none for yes or no.
        open_ended: the answer is written.

    Raises:
        BadInput: no words, or choices that can't be.
    """
    text, choices = " ".join(text.split()), tuple(dict.fromkeys(c.strip() for c in choices if c.strip()))
    if not text:
        raise BadInput("the question is empty; write one, or choose one of the list")
    region = region_name(structure)
    return Record(
        id="explorer", dataset="explorer", patient="explorer", split="test", volume="ct.nii.gz", mask=None,
        region=region, distractor=None, kind=kind, form="open" if open_ended else "closed", question=text,
        answer="unknown" if open_ended else (choices or ("Yes",))[0], choices=() if open_ended else choices,
        names_region=region in text, style="plain",
    )  # fmt: skip


def templates(region: str) -> dict[str, Record]:
    """Questions in the cohort's words about a structure: shown text → record whose answer isn't known."""
    lung = region in LOBES
    kinds, choices = (LUNG_KINDS, LUNG_CHOICES[0]) if lung else (ORGAN_KINDS, ORGAN_CHOICES[0])
    named = f"the {region}"
    made = [question(ASKED["presence"][0].format(where=named), region, kind="presence")]
    for kind in kinds:
        made.append(question(ASKED["kind"][0].format(where=named, kind=with_article(kind)), region, kind="presence"))
    for where in (named, UNNAMED[0]):
        text = ASKED["abnormality"][0].format(where=where)
        made.append(question(text, region, kind="abnormality", choices=choices))
        made.append(question(text, region, kind="abnormality", open_ended=True))
    organs = next((names for names in ORGAN_SETS if region in names), ORGAN_SETS[0])
    made.append(question(ASKED["organ"][0], region, kind="organ", choices=organs))
    made.append(question(ASKED["organ"][0], region, kind="organ", open_ended=True))
    return {shown(record): record for record in made}


def shown(record: Record) -> str:
    """A question as the list shows it."""
    form = "open" if record.form == "open" else ", ".join(record.choices) or "yes or no"
    return f"{record.question} [{form}]"
