"""How structures and questions read in the records of real CTs, after the phantom cohort's wording."""

import re

from ctvlm_lib import anatomy

ASKED = {
    "organ": ("Which structure is marked?", "What anatomical structure is this?"),
    "side": ("On which side of the patient does {where} lie?", "Does {where} lie on the patient's left or right side?"),
    "volume": ("What is the volume of {where}?", "How many millilitres does {where} measure?"),
    "than": ("Is {where} {than} than the {other}?", "Is the volume of {where} {than} than that of the {other}?"),
    "of two": ("Which of the two is {than}, the {name} or the {other}?",
               "Which has the {than} volume, the {name} or the {other}?"),
    "presence": ("Does this CT show the {name}?", "Can the {name} be seen in this CT?"),
}  # fmt: skip
SIDES = ("left", "right")
LIMITS_ML = (10, 50, 250)  # a fifth apart
CLASSES = ("up to 10 mL", "10 to 50 mL", "50 to 250 mL", "more than 250 mL")
_READS_BETTER = (
    (r"vertebrae ([CTLS]\d+)", r"\1 vertebra"),
    (r"\biliac vena\b", "iliac vein"),
    (r"\bclavicula\b", "clavicle"),
    (r"\bautochthon\b", "deep back muscle group"),
    (r"^((left |right )?)hip$", r"\1hip bone"),
    (r"^((left |right )?gluteus \w+)$", r"\1 muscle"),
    (r"^((left |right )?iliopsoas)$", r"\1 muscle"),
)


def called(name: str) -> str:
    """A structure's name as a radiologist would say it: "vertebrae L5" → "L5 vertebra"; most stay as they are."""
    if re.search(r"\brib \d+$", name):
        return anatomy.structure(name).radlex  # left twelfth rib
    for pattern, words in _READS_BETTER:
        name = re.sub(pattern, words, name)
    return name


def about_ml(volume_ml: float) -> str:
    """A volume to two significant digits: 192.6 → "about 190 mL"."""
    return f"about {float(f'{volume_ml:.2g}'):g} mL"
