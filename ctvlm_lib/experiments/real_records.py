"""What the two real CTs can be asked in the cohort's own words: which structure is marked, and which contrast phase?

These are the kinds of question that have the same words in both. A finding isn't asked for, as nobody has read these
scans for us; which side, how many millilitres, larger than which, is it in view: the cohort has no such questions.
"Which structure?" is asked openly and with the cohort's own sets of four, in which each structure stands once at each
letter: who always says the same letter is right one time in four.
"""

from dataclasses import dataclass, replace

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.real_field import Field, in_field
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import real_cases
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import ORGAN_SETS, PHASES
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume

BESIDE = ("left lung", "right lung")  # can't be asked for, as the cohort names lobes; can be distractors
PHASE_QUESTION = "In which contrast phase was this scan taken?"
# median HU of the aorta: far from where the cohort's portal venous and delayed phases lie, 105 to 165
NATIVE_BELOW_HU, ARTERIAL_ABOVE_HU = 80, 230


@dataclass(frozen=True, eq=False)
class SeenCase:
    """A real CT as the cohort's models see it, and what they can be asked about it.

    Attributes:
        name: "real-abdomen" or "real-chest".
        field: HU and masks on the cohort's grid.
        records: the questions.
        note: how much of the body is in the field, what is asked about, and whose the masks are.
    """

    name: str
    field: Field
    records: tuple[Record, ...]
    note: str


def cases(seed: int = 0) -> list[SeenCase]:
    """The two real CTs.

    Args:
        seed: of the questions' wording.

    Raises:
        BadInput: the assets aren't there and can't be fetched.
    """
    return [seen(case) for case in real_cases.real_cases(seed)]


def seen(case: real_cases.RealCase) -> SeenCase:
    """Put a CT into the cohort's field, and choose and complete its questions.

    Raises:
        BadInput: it shows no structure that the cohort names.
    """
    there = [name for name in (*REGIONS, *BESIDE) if name in case.labels.present]
    field = in_field(case.volume, case.labels, there)
    asked = [r for r in case.records if r.kind == "organ" and r.form == "open" and r.region in field.masks]
    opened = [record for record in asked if record.region in REGIONS]
    if not opened:
        raise BadInput(f"{case.name} shows none of {', '.join(REGIONS)}; give a CT of the chest or upper abdomen")
    records = [*opened, *(one for record in opened for one in _with_choices(record))]
    phase = phase_of(case.volume, case.labels)
    if phase:
        records.append(_about_phase(opened[0], phase))
    note = (
        f"{field.body_share:.0%} of the scanned body lies in the field, and the scan fills {field.scan_share:.0%} of"
        f" its height; asked about: {', '.join(record.region for record in opened)}; masks by models, not checked by a"
        " radiologist"
    )
    return SeenCase(case.name, field, tuple(records), note)


def phase_of(volume: Volume, labels: LabelMap) -> str | None:
    """The contrast phase, where the aorta's median leaves no doubt; else None."""
    if "aorta" not in labels.present:
        return None
    median = float(np.median(volume.hu[labels.binary("aorta")]))
    return "non-contrast" if median < NATIVE_BELOW_HU else "arterial" if median > ARTERIAL_ABOVE_HU else None


def _with_choices(record: Record) -> list[Record]:
    """The same question with each of the cohort's sets that hold the structure: four, one for each letter."""
    sets = [choices for choices in ORGAN_SETS if record.region in choices]
    return [
        replace(record, id=f"{record.patient}:{record.region}:organ:cohort {number}", form="closed", choices=choices)
        for number, choices in enumerate(sets)
    ]


def _about_phase(record: Record, phase: str) -> Record:
    return replace(
        record, id=f"{record.patient}:phase", mask=None, region=None, distractor=None, kind="phase", form="closed",
        question=PHASE_QUESTION, answer=phase, choices=PHASES,
    )  # fmt: skip
