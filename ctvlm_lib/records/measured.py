"""Questions on a real CT that its masks answer: which organ, which side, how large, which is larger, is it there.

No radiologist wrote these answers: they are measured on the masks, so they are as right as the masks are, and they need
no report. They make cases from outside the training distribution out of any CT with a label map. A structure that the
image cuts off isn't asked for its size, and one whose side doesn't agree with the affine isn't asked for anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctvlm_lib import anatomy, assets, mask
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.balance import drawn, pick
from ctvlm_lib.records.measured_again import answers_from_masks, limits, said
from ctvlm_lib.records.questions import UNNAMED
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume, load

__all__ = ["Case", "answers_from_masks", "ask_about", "real_cases"]

SMALLEST_ML = 1.0
LARGER_BY = (1.25, 8.0)  # of two structures that are compared, the larger one has so many times the volume
STEP = 2.0  # each size class ends at twice the volume of the one before
ROUND_TO = 2  # digits of a volume in an open answer
SIDES = ("left", "right")
# Answers that hold on the image as it is: whoever cuts it may cut the structure.
_ASKED = {
    "organ": ("Which structure is marked?", "What anatomical structure is this?"),
    "side": ("On which side of the body does {where} lie?", "Is {where} on the patient's left or right?"),
    "volume": ("What is the volume of {where}?", "How large is {where}, by volume?"),
    "larger": ("Which has the larger volume, the {one} or the {other}?", "Which is larger, the {one} or the {other}?"),
    "presence": ("Does this CT show any part of the {one}?", "Is the {one} at least partly in this CT?"),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A CT with its masks and the questions on it.

    Attributes:
        name: e.g. ``"real-abdomen"``; also the records' patient and data set.
        volume, labels: on one grid.
        records: what is asked.
        left_out: what isn't asked, and why, a sentence each.
    """

    name: str
    volume: Volume
    labels: LabelMap
    records: tuple[Record, ...]
    left_out: tuple[str, ...] = field(default=())


def ask_about(
    volume: Volume,
    labels: LabelMap,
    name: str,
    paths: tuple[str, str],
    *,
    searched: Sequence[str] | None = None,
    cut: Iterable[str] = (),
    split: str = "test",
    seed: int = 0,
) -> Case:
    """Ask about every structure of a label map.

    Args:
        volume: the CT.
        labels: its masks, on the volume's grid, with canonical names.
        name: of the case.
        paths: of CT and masks below the data folder, for the records.
        searched: structures that whoever made the masks looked for; one of them without a voxel is known to be absent.
            None takes the names of the label map.
        cut: structures known to be incomplete, besides those that touch the image's border.
        split, seed: of the records; the seed draws wording, choices and order.

    Returns:
        The case. Closed questions have each answer, or each place among the choices, about equally often.

    Raises:
        BadInput: another grid, or no structure of at least 1 mL.
    """
    if labels.shape != volume.shape:
        raise BadInput(f"the masks are {labels.shape} but the CT is {volume.shape}; put them on one grid: to(volume)")
    found = {one: _Measured.of(labels, one) for one in labels.present}
    small = [one for one, facts in found.items() if facts.ml < SMALLEST_ML]
    wrong = _wrong_side(found)
    asked = {one: facts for one, facts in found.items() if one not in (*small, *wrong)}
    if not asked:
        raise BadInput(f"{name} has no structure of at least {SMALLEST_ML:g} mL; give masks of this CT")
    whole = {one: facts for one, facts in asked.items() if not facts.cut and one not in set(cut)}
    made = _Maker({"dataset": name, "patient": name, "split": split, "style": "plain"}, paths, asked, (seed, name))
    records = [record for one in asked for record in made.about(one, whole=one in whole)]
    records += made.larger(whole)
    records += made.presence([one for one in (searched or labels.names.values()) if one not in found])
    left_out = [f"{one}: its side isn't that of its name by the affine" for one in wrong]
    left_out += [f"{one}: only {found[one].ml:.1f} mL" for one in small]
    left_out += [f"{one}: cut off, so its size isn't asked for" for one in asked if one not in whole]
    return Case(name, volume, labels, tuple(records), tuple(left_out))


def real_cases(seed: int = 0) -> tuple[Case, Case]:
    """The two real CTs of the workbook, out of distribution for whatever is trained on phantoms.

    The abdomen's masks are a TotalSegmentator model's, which looked for everything in that vocabulary; the chest's are
    single files, some of them empty, most of them on a box that may cut a structure.
    """
    home = assets.path("abdomen_ct")
    ct = load(home / "ct.nii.gz")
    everything = [anatomy.structure(one).name for one in anatomy.vocabulary("totalsegmentator").values()]
    files = ("abdomen_ct/ct.nii.gz", "abdomen_ct/labels.nii.gz")
    abdomen = ask_about(ct, mask.load(home / "labels.nii.gz", like=ct), "real-abdomen", files, searched=everything,
                        seed=seed)  # fmt: skip
    home = assets.path("chest_cta")
    ct = load(home / "ct.nii.gz")
    cut = [one for file in sorted((home / "masks").glob("*.nii.gz")) for one in _cut_by_own_grid(file)]
    files = ("chest_cta/ct.nii.gz", "chest_cta/masks")
    chest = ask_about(ct, mask.load(home / "masks", like=ct), "real-chest", files, cut=cut, seed=seed)
    return abdomen, chest


@dataclass(frozen=True)
class _Measured:
    """Volume, middle in LPS mm, whether the image's border cuts the structure, and where its voxels are."""

    ml: float
    middle: np.ndarray
    cut: bool
    voxels: np.ndarray  # flat indices

    @classmethod
    def of(cls, labels: LabelMap, name: str) -> "_Measured":
        region = labels.binary(name)
        index = np.append(np.argwhere(region).mean(axis=0), 1.0)
        return cls(labels.volume_ml(name), (labels.affine @ index)[:3], _at_border(region), np.flatnonzero(region))

    def shares_with(self, other: "_Measured") -> bool:
        """Whether a voxel belongs to both (or both are the same structure): no distractor for each other."""
        return np.isin(self.voxels, other.voxels, assume_unique=True).any()


def _at_border(region: np.ndarray) -> bool:
    return any(np.take(region, [0, -1], axis=axis).any() for axis in range(3))


def _cut_by_own_grid(file: Path) -> list[str]:
    own = mask.load(file)
    return [name for name in own.present if _at_border(own.binary(name))]


def _pair(name: str) -> str | None:
    """The structure's counterpart on the other side."""
    for side, other in (SIDES, SIDES[::-1]):
        if name.startswith(side + " "):
            return other + name[len(side) :]
    return None


def _wrong_side(found: dict[str, _Measured]) -> list[str]:
    """Structures of a pair whose left one isn't further to the patient's left than the right one."""
    return [
        one
        for one, facts in found.items()
        if _pair(one) in found
        and (facts.middle[0] > found[_pair(one)].middle[0]) != one.startswith("left")  # LPS: x grows to the left
    ]


@dataclass(frozen=True)
class _Maker:
    """Makes the records of one case."""

    common: dict
    paths: tuple[str, str]
    asked: dict[str, _Measured]
    draw: tuple

    def about(self, one: str, whole: bool) -> list[Record]:
        """Organ, side and volume of one structure; the last in both strata."""
        middles = {other: facts.middle for other, facts in self.asked.items() if not facts.shares_with(self.asked[one])}
        near = sorted(middles, key=lambda other: float(np.linalg.norm(middles[other] - self.asked[one].middle)))
        about = {"region": one, "distractor": near[0] if near else None}
        made = []
        if len(near) >= 3:
            others = sorted(near[:8], key=lambda other: drawn(*self.draw, one, "organ", other))[:3]
            choices = self._mixed((one, *others), one, "organ")
            made.append(self._record(about, "organ", "organ", "closed", one, choices, False))
            made.append(self._record(about, "organ", "organ", "open", one, (), False))
        if _pair(one) in self.asked:
            side = one.split()[0]
            made.append(self._record(about, "side", "location", "closed", side, SIDES, False))
        if whole:
            ml = self.asked[one].ml
            answer, choices = self._volume_classes(one, ml)
            for named in (True, False):
                made.append(self._record(about, "volume", "size", "closed", answer, choices, named))
                about_ml = f"about {float(f'{ml:.{ROUND_TO}g}'):g} mL"
                made.append(self._record(about, "volume", "size", "open", about_ml, (), named))
        return made

    def larger(self, whole: dict[str, _Measured]) -> list[Record]:
        """Each whole structure against one of clearly another volume; the first named is larger half the time."""
        made, first_wins = [], 0
        for one, facts in whole.items():
            low, high = LARGER_BY
            ratio = {other: max(found.ml / facts.ml, facts.ml / found.ml) for other, found in whole.items()}
            others = tuple(other for other in whole if low <= ratio[other] <= high)
            if not others:
                continue
            other = pick(others, *self.draw, one, "larger")
            answer = max((one, other), key=lambda name: whole[name].ml)
            loser = other if answer == one else one
            pair = (answer, loser) if 2 * first_wins <= len(made) else (loser, answer)
            first_wins += pair[0] == answer
            words = pick(_ASKED["larger"], *self.draw, one, "larger words").format(
                one=said(pair[0]), other=said(pair[1])
            )
            about = {"region": pair[0], "distractor": pair[1], "question": words, "names_region": True}
            made.append(self._plain(about, f"{one}:larger", "size", "closed", answer, pair))
        return made

    def presence(self, absent: Sequence[str]) -> list[Record]:
        """As many structures that aren't in the image as structures that are."""
        there = sorted(self.asked, key=lambda one: drawn(*self.draw, one, "presence"))
        gone = sorted(set(absent), key=lambda one: drawn(*self.draw, one, "presence"))
        made = []
        count = min(len(there), len(gone))
        for one, answer in [(one, "Yes") for one in there[:count]] + [(one, "No") for one in gone[:count]]:
            words = pick(_ASKED["presence"], *self.draw, one, "presence words").format(one=said(one))
            about = {"region": None, "distractor": None, "question": words, "names_region": False}
            made.append(self._plain(about, f"{one}:presence", "presence", "closed", answer, ()))
        return made

    def _record(self, about, asked, kind, form, answer, choices, named) -> Record:
        one = about["region"]
        who = (*self.draw, one if named else "", asked)
        where = f"the {said(one)}" if named else pick(UNNAMED, *who, "where")
        question = pick(_ASKED[asked], *who).format(where=where)
        stratum = "named" if named else "unnamed"
        words = {"question": question, "names_region": named}
        return self._plain(about | words, f"{one}:{asked}:{form}:{stratum}", kind, form, answer, choices)

    def _plain(self, about, label, kind, form, answer, choices) -> Record:
        fields = {"id": f"{self.common['patient']}:{label}", "volume": self.paths[0], "mask": self.paths[1]}
        rest = {"kind": kind, "form": form, "answer": answer, "choices": tuple(choices)}
        return Record(**self.common, **fields, **about, **rest)

    def _volume_classes(self, one: str, ml: float) -> tuple[str, tuple[str, ...]]:
        """Four classes that end at a, 2a and 4a mL; the answer is each of them about equally often over structures."""
        place = drawn(*self.draw, one, "volume") % 4
        middle = ml / STEP**0.5  # the answer's class runs from here to twice it
        first = float(f"{middle / STEP ** (place - 1):.2g}")
        a, b, c = (f"{first * STEP**k:g}" for k in range(3))
        choices = (f"up to {a} mL", f"{a} to {b} mL", f"{b} to {c} mL", f"more than {c} mL")
        low_high = [limits(choice) for choice in choices]
        return next(x for x, (low, high) in zip(choices, low_high, strict=True) if low < ml <= high), choices

    def _mixed(self, choices: tuple[str, ...], *what) -> tuple[str, ...]:
        return tuple(sorted(choices, key=lambda one: drawn(*self.draw, *what, "order", one)))
