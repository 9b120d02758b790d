"""Real CTs asked for what their masks can answer: which structure, which side, how large, larger than which, in view?

The kinds and wording are the phantom cohort's (:mod:`ctvlm_lib.records.questions`): where a structure is named, the
same question is asked again of "the marked region", as a stratum of its own. Nothing is asked that a mask doesn't hold
for certain (:mod:`ctvlm_lib.records.measured_survey`): no volume of what the field cuts, no side that the geometry
doesn't confirm, no absence of what may have been missed.

One CT can't balance answers as a cohort does. What can be is balanced in itself: each set of four choices is asked for
each of its four members, each letter being right once; both sides of a pair; each comparison in both orders; as many
structures in view as out of it. A named volume isn't: a liver is larger than an adrenal gland in anybody.

The answers are the masks', and the masks are a model's: they are as right as these are.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.balance import drawn, pick
from ctvlm_lib.records.measured_oracle import answers_from_masks
from ctvlm_lib.records.measured_survey import Box, Survey, partner, survey
from ctvlm_lib.records.measured_wording import ASKED, CLASSES, LIMITS_ML, SIDES, about_ml, called
from ctvlm_lib.records.questions import UNNAMED
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume

__all__ = ["answers_from_masks", "ask_about", "survey"]

SIZE_MARGIN = 1.30  # two volumes that are compared differ by at least this factor
LIMIT_MARGIN = 1.10  # nearer to a limit than this factor, a volume's class isn't asked for
Question = tuple[str, str, str | None, str, str, str, tuple[str, ...], bool]  # id, kind, region … as _record takes them


def ask_about(
    volume: Volume,
    labels: LabelMap,
    *,
    patient: str,
    dataset: str,
    volume_path: str,
    mask_path: str | Mapping[str, str | None],
    regions: Collection[str] | None = None,
    boxes: Mapping[str, Box] | None = None,
    split: str = "test",
    seed: int = 0,
    found: Survey | None = None,
) -> list[Record]:
    """Make records of one CT that its masks can answer.

    Args:
        volume: the CT.
        labels: its masks, on its grid.
        patient: also the beginning of the records' ids.
        dataset: e.g. "real-abdomen".
        volume_path: of the CT's file, below the data set's folder.
        mask_path: of the masks' file or folder, likewise; or one for each structure.
        regions: the structures to ask about; by default all (:func:`ctvlm_lib.records.measured_survey.survey`).
        boxes: structure → the part of the grid that its mask was drawn on, where that isn't all of it.
        split: of all records.
        seed: of the wording, the sets of choices and the order in them.
        found: what ``survey`` says of these arguments, where it was asked before.

    Returns:
        The records, by kind; the same for the same arguments. ``survey(…).notes`` says what isn't asked and why.

    Raises:
        BadInput: masks on another grid, a region without voxels, or nothing that could be asked.
    """
    found = found or survey(volume, labels, regions, boxes)
    nearest = _nearest(labels, found)
    shared = {"dataset": dataset, "patient": patient, "split": split, "volume": volume_path, "style": "plain"}
    made = []
    for asking in (_organs, _sides, _volumes, _comparisons, _presence):
        for name, kind, region, form, question, answer, choices, named in asking(found, seed, patient):
            there = region in found.volume_ml
            mask = mask_path.get(region) if isinstance(mask_path, Mapping) else mask_path
            made.append(Record(
                **shared, id=f"{patient}:{name}", mask=mask if there else None, region=region,
                distractor=nearest.get(region) if there else None, kind=kind, form=form, question=question,
                answer=answer, choices=choices, names_region=named,
            ))  # fmt: skip
    if not made:
        raise BadInput(f"the masks of {patient} hold nothing to ask about: {'; '.join(found.notes) or 'no structure'}")
    return made


def _organs(found: Survey, seed: int, patient: str) -> Iterator[Question]:
    """Which structure is marked: sets of four, each asked for all four; and open, once each."""
    for number, members in enumerate(_fours(found, seed, patient)):
        members = sorted(members, key=lambda name: drawn(seed, patient, number, name))
        choices = tuple(called(name) for name in members)  # the same for all four: each letter is right once
        words = pick(ASKED["organ"], seed, patient, number)
        for region in members:
            yield f"{region}:organ:{number}", "organ", region, "closed", words, called(region), choices, False
    for region in found.volume_ml:
        words = pick(ASKED["organ"], seed, patient, "open")
        yield f"{region}:organ:open", "organ", region, "open", words, called(region), (), False


def _fours(found: Survey, seed: int, patient: str) -> list[list[str]]:
    """Deal the structures into sets of four without two ribs, two vertebrae or both of a pair in one."""
    families = Counter(_family(name) for name in found.volume_ml)
    order = sorted(found.volume_ml, key=lambda n: (-families[_family(n)], _family(n), drawn(seed, patient, n)))
    count = max(1, -(-len(order) // 4))
    sets = [order[start::count] for start in range(count)]
    for members in sets:  # a set of three is filled up with one that is then asked for twice
        others = sorted(order, key=lambda n: drawn(seed, patient, *members, n))
        for name in others:
            if len(members) < 4 and _family(name) not in {_family(member) for member in members}:
                members.append(name)
    return [s for s in sets if len(s) == 4 and len({_family(name) for name in s}) == 4]


def _family(name: str) -> str:
    return re.sub(r"\b(left|right)\b |\b(rib|vertebrae) \w+", r"\2", name)


def _sides(found: Survey, seed: int, patient: str) -> Iterator[Question]:
    """Which side: both of each pair, under the same words and choices, so that neither tells."""
    for region, side in found.side.items():
        pair = sorted((region, partner(region)))
        where = pick(UNNAMED, seed, patient, *pair, "where")
        words = pick(ASKED["side"], seed, patient, *pair).format(where=where)
        choices = SIDES if drawn(seed, patient, *pair, "order") % 2 else SIDES[::-1]
        yield f"{region}:side:closed", "location", region, "closed", words, side, choices, False
        yield f"{region}:side:open", "location", region, "open", words, f"on the {side}", (), False


def _volumes(found: Survey, seed: int, patient: str) -> Iterator[Question]:
    for region in found.whole:
        ml = found.volume_ml[region]
        clear = all(max(ml / limit, limit / ml) >= LIMIT_MARGIN for limit in LIMITS_ML)
        size = CLASSES[sum(ml > limit for limit in LIMITS_ML)]
        for named in (True, False):
            stratum = "named" if named else "unnamed"
            where = f"the {called(region)}" if named else pick(UNNAMED, seed, patient, "volume")
            words = pick(ASKED["volume"], seed, patient, region if named else "").format(where=where)
            if clear:
                yield f"{region}:volume:closed:{stratum}", "size", region, "closed", words, size, CLASSES, named
            yield f"{region}:volume:open:{stratum}", "size", region, "open", words, about_ml(ml), (), named


def _comparisons(found: Survey, seed: int, patient: str) -> Iterator[Question]:
    """Is one larger, and which; in both orders, so that neither yes nor the first is right more often."""
    for pair in _pairs(found):
        than = pick(("larger", "smaller"), seed, patient, *pair)
        most = max if than == "larger" else min
        answer = most(pair, key=found.volume_ml.get)
        for region, other in (pair, pair[::-1]):
            two = called(region), called(other)
            yes_no = "Yes" if region == answer else "No"
            texts = {"than": than, "name": two[0], "other": two[1]}
            words = pick(ASKED["of two"], seed, patient, *pair).format(**texts)
            yield f"{region}:of two:{other}", "size", region, "closed", words, called(answer), two, True
            for named in (True, False):
                where = f"the {two[0]}" if named else pick(UNNAMED, seed, patient, *pair)
                words = pick(ASKED["than"], seed, patient, *pair).format(**texts, where=where)
                stratum = "named" if named else "unnamed"
                yield f"{region}:than:{other}:{stratum}", "size", region, "closed", words, yes_no, (), named


def _pairs(found: Survey) -> list[tuple[str, str]]:
    """Each whole structure and the one of its sort that is nearest in volume beyond the margin."""
    pairs = set()
    for name in found.whole:
        others = [other for other in found.whole if other != name and _sort(other) == _sort(name)]
        ratios = {other: abs(np.log(found.volume_ml[name] / found.volume_ml[other])) for other in others}
        beyond = {other: ratio for other, ratio in ratios.items() if ratio >= np.log(SIZE_MARGIN)}
        if beyond:
            pairs.add(tuple(sorted((name, min(beyond, key=lambda n: (beyond[n], n))))))
    return sorted(pairs)


def _sort(name: str) -> str:
    """Bones are compared with bones, muscles with muscles, organs with organs."""
    group = anatomy.structure(name).group
    return group if group in ("bone", "muscle") else "organ"


def _presence(found: Survey, seed: int, patient: str) -> Iterator[Question]:
    """As many structures that are in view as that aren't."""
    lots = [sorted(names, key=lambda n: drawn(seed, patient, n)) for names in (found.volume_ml, found.absent)]
    count = min(len(names) for names in lots)
    for answer, names in zip(("Yes", "No"), lots, strict=True):
        for name in names[:count]:
            words = pick(ASKED["presence"], seed, patient, name).format(name=called(name))
            yield f"{name}:presence", "presence", name, "closed", words, answer, (), True


def _nearest(labels: LabelMap, found: Survey) -> dict[str, str]:
    """Structure → the one whose centre is nearest among those that share no voxel with it, as in the cohort."""
    nearest = {}
    for region, middle in found.middle_mm.items():
        mask = labels.binary(region)
        gaps = {n: float(np.linalg.norm(mm - middle)) for n, mm in found.middle_mm.items() if n != region}
        for name in sorted(gaps, key=gaps.get):
            if not (labels.binary(name) & mask).any():
                nearest[region] = name
                break
    return nearest
