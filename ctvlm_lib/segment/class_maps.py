"""Stage 1's targets at three granularities: C, coarse anatomy; C+L, with lesions; F+L, fine anatomy with lesions.

A map doesn't list what is merged into what: a structure belongs to the class that contains it
(:func:`ctvlm_lib.segment.containment.contains`), to the narrowest if there are several, and to the background if none
does. So the coarse classes are anatomy, which the released ones are not. There are as many as released: 16, 30 and 49
for the chest, 13, 16 and 42 for the abdomen, background counted.

Where masks overlap, the class with the higher number wins: organs, then vessels and ducts, then lesions. The released
code paints AbdomenAtlas's masks in the order in which the file system lists them, so that a lesion may vanish below its
organ on one machine and not on another.

In C a lesion's voxels are its organ's, if it lies in one: liver lesion → liver, consolidation → lung, but a pleural
effusion is no lung.

Sources: uvlm.txt §2.1, §3.1; U-VLM at 5d7fde9, ``preprocessing/common_utils.py`` and ``preprocess_abdomen_seg.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.segment.containment import BACKGROUND, canonical, contains, content, wholes

SCOPES = ("chest", "abdomen", "phantom")
GRANULARITIES = ("C", "C+L", "F+L")
REX_CATEGORIES = {facts["code"]: lesion for lesion, facts in content()["chest"]["lesions"].items()}
NO_LESION = "cardiomegaly"  # a finding of the phantom whose mask is the heart
_LEFT_OVER = 0.5  # share of a whole organ that its parts may leave uncovered
_WHOLE, _UNKNOWN = 254, 255  # in a look-up table: wider than several classes; nothing that the scope knows


@dataclass(frozen=True)
class ClassMap:
    """The classes of one scope at one granularity, and how masks become one array of their numbers.

    Attributes:
        scope: "chest", "abdomen" or "phantom".
        granularity: "C", "C+L" or "F+L".
        names: of the classes, index = number; "background" first, lesions last.
        lesions: those of ``names`` that are lesions; () for C.
    """

    scope: str
    granularity: str
    names: tuple[str, ...]
    lesions: tuple[str, ...]

    def __repr__(self) -> str:
        of_them = f"{len(self.names)} classes, {len(self.lesions)} of them lesions"
        return f"ClassMap({self.scope} {self.granularity}: {of_them})"

    @classmethod
    def of(cls, scope: str, granularity: str) -> "ClassMap":
        """The map of a scope at a granularity.

        Raises:
            BadInput: no such scope or granularity.
        """
        if scope not in SCOPES or granularity not in GRANULARITIES:
            raise BadInput(
                f"there is no class map {scope!r} {granularity!r}; choose one of {', '.join(SCOPES)}"
                f" and one of {', '.join(GRANULARITIES)}"
            )
        anatomical = _fine(scope) if granularity == "F+L" else _coarse(scope)
        lesions = () if granularity == "C" else _lesions(scope)
        return cls(scope, granularity, (BACKGROUND, *anatomical, *lesions), lesions)

    def class_of(self, structure: str) -> str:
        """The class that a structure's or lesion's voxels get, which may be "background".

        Raises:
            BadInput: the scope doesn't know it, or it is wider than several classes (a liver, where its segments are).
        """
        number = _number(self, canonical(structure))
        if number >= _WHOLE:
            raise BadInput(self._refusal([structure]))
        return self.names[number]

    def of_labels(self, labels: LabelMap, lesions: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Paint a patient's masks into one array.

        Args:
            labels: structures, and lesions where the data set has masks of them (AbdomenAtlas).
            lesions: lesion of the scope → bool ``(D, H, W)``; {} if the patient has none.

        Returns:
            uint8 ``(D, H, W)``, indices into ``names``.

        Raises:
            BadInput: a structure or lesion that the scope doesn't know has voxels here, or one is wider than several
                classes and its parts don't cover it; lesions on another grid; nothing said of lesions.
        """
        self._check_lesions(labels, lesions)
        table = np.full(np.iinfo(np.uint16).max + 1, _UNKNOWN, np.uint8)
        table[0] = 0
        for key, name in labels.names.items():
            table[key] = _number(self, name)
        target = table[labels.labels]
        apart = [*labels.overlapping.items(), *(lesions or {}).items()]
        numbers = self._unpainted(labels, table, target) | {name: _number(self, canonical(name)) for name, _ in apart}
        if unknown := [name for name, number in numbers.items() if number == _UNKNOWN]:
            raise BadInput(self._refusal(unknown))
        target[target == _WHOLE] = 0  # its parts, painted from their own masks, say more
        for name, mask in apart:
            if numbers[name] < _WHOLE:
                np.maximum(target, np.uint8(numbers[name]), out=target, where=mask)
        self._check_wholes(labels, target, [name for name, number in numbers.items() if number == _WHOLE])
        return target

    def _unpainted(self, labels: LabelMap, table: np.ndarray, target: np.ndarray) -> dict[str, int]:
        """The labels with voxels that have no class: name → ``_WHOLE`` or ``_UNKNOWN``; {} at nearly every call."""
        if target.max(initial=0) < _WHOLE:
            return {}
        keys = np.unique(labels.labels[target >= _WHOLE]).tolist()
        return {labels.names.get(key, f"label {key}, which has no name"): int(table[key]) for key in keys}

    def _check_wholes(self, labels: LabelMap, target: np.ndarray, names: list[str]) -> None:
        """A structure that is wider than several classes may stand beside its parts, not in their place."""
        for name in names:
            if np.mean(target[labels.binary(name)] == 0) > _LEFT_OVER:
                raise BadInput(self._refusal([name]))

    def _refusal(self, names: list[str]) -> str:
        parts = [part for part in self.names[1:] if contains(names[0], part)]
        if parts:
            return (
                f"the classes of {self.scope} {self.granularity} are finer than {names[0]!r}: give masks of"
                f" {_some(parts)}, or take a coarser granularity"
            )
        return (
            f"the classes of {self.scope} {self.granularity} have no place for {_some(names)}; leave"
            f" {'them' if len(names) > 1 else 'it'} out, or choose another scope ({', '.join(SCOPES)})"
        )

    def _check_lesions(self, labels: LabelMap, lesions: Mapping[str, np.ndarray] | None) -> None:
        known = _lesions(self.scope)
        if lesions is None and self.lesions and not {*known} & {*labels.names.values()}:
            raise BadInput(
                f"{self.scope} {self.granularity} learns lesions, and nothing says where they are or that there are"
                " none; give lesions=, {} for a patient without any"
            )
        for name, mask in (lesions or {}).items():
            if name not in known:
                raise BadInput(f"{name!r} is no lesion of {self.scope}; it has {_some(known, len(known))}")
            if mask.shape != labels.shape or mask.dtype != bool:
                raise BadInput(
                    f"the mask of {name} is {mask.dtype} {mask.shape} and the labels are {labels.shape}; give a bool"
                    " mask on their grid"
                )


def phantom_target(patient: Patient, granularity: str) -> np.ndarray:
    """What a network shall find in a phantom patient: uint8 ``(D, H, W)``, indices into the phantom map's names.

    Lesions have a class for each kind, as ReXGroundingCT's have. An enlarged heart stays the heart.

    Raises:
        BadInput: no such granularity.
    """
    lesions: dict[str, np.ndarray] = {}
    for finding in patient.findings:
        if finding.kind != NO_LESION:
            lesions[finding.kind] = lesions.get(finding.kind, False) | finding.mask
    return ClassMap.of("phantom", granularity).of_labels(patient.labels, lesions)


@cache
def _number(classes: ClassMap, name: str) -> int:
    """A structure's class: that which contains it, the narrowest first; 0, ``_WHOLE`` or ``_UNKNOWN`` if none does."""
    if name in classes.lesions:
        return classes.names.index(name)
    anatomical = classes.names[1 : len(classes.names) - len(classes.lesions)]
    around = [one for one in anatomical if contains(one, name)]
    if around:
        return classes.names.index(max(around, key=lambda one: len(wholes(one))))
    if any(contains(name, one) for one in anatomical):
        return _WHOLE
    return 0 if name in _lesions(classes.scope) or _is_known(classes.scope, name) else _UNKNOWN


@cache
def _is_known(scope: str, name: str) -> bool:
    """Whether a structure belongs to the scope, with a class of its own or not."""
    listed = content()[scope].get("vocabulary")
    known = [*_fine(scope), *(anatomy.vocabulary(listed).values() if listed else ())]
    return any(contains(one, name) or contains(name, one) for one in known)


def _coarse(scope: str) -> tuple[str, ...]:
    table = content()[scope]
    return tuple(content()[table["coarse_of"]]["coarse"] if "coarse_of" in table else table["coarse"])


def _fine(scope: str) -> tuple[str, ...]:
    table = content()[scope]
    ids = anatomy.vocabulary("vista3d")
    parts = (ids[number] for group in table.get("each", ()) for number in anatomy.expand(group))
    return (*table["fine"], *parts)


def _lesions(scope: str) -> tuple[str, ...]:
    return tuple(content()[scope]["lesions"])


def _some(items, limit: int = 6) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" … ({len(items)} in all)" if len(items) > limit else "")
