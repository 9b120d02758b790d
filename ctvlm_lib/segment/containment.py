"""Which structure is part of which: what makes a coarse class anatomy, and a check of any table that merges classes.

:mod:`ctvlm_lib.anatomy` knows the groups (a lung and its lobes) and what lies within what; ``class_maps.toml`` adds
what it doesn't say (a liver segment is part of the liver). A coarse class may hold the parts of its organ, and nothing
else: a gallbladder that is taught as liver is a wrong liver.

The released coarse tables of U-VLM do merge neighbours, as :func:`misplaced` shows. How wrong the chest's is depends on
which of the release's two lists of label names is right. By its configuration, the humerus is lung and the thyroid
stomach; by the list beside its example data (bowel where the other has the thyroid, pulmonary artery where it has the
humerus) bowel is stomach and the pulmonary artery lung. The table and the paper's sources of labels (airways, pulmonary
vessels) fit the second list; nothing in the release says so.

Sources: uvlm.txt §2.1, §3.1; U-VLM at 5d7fde9, ``preprocessing/configs``, ``examples/datasets``.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput

BACKGROUND = "background"


@cache
def content() -> dict:
    """The tables of ``class_maps.toml``."""
    return tomllib.loads((Path(__file__).parent / "class_maps.toml").read_text(encoding="utf-8"))


@cache
def canonical(name: str) -> str:
    """The name in :mod:`ctvlm_lib.anatomy`, or the words as they stand if it isn't there."""
    try:
        return anatomy.structure(name).name
    except BadInput:
        return " ".join(name.replace("_", " ").lower().split())


def contains(whole: str, part: str) -> bool:
    """Whether one structure is the other, or has it as a part; names as in :func:`canonical`'s sources."""
    return canonical(whole) in {canonical(part), *wholes(part)}


@cache
def wholes(name: str) -> frozenset[str]:
    """Everything that a structure is a part of: a rib of ``rib``, ``left rib`` and ``bone``; canonical names."""
    found: set[str] = set()
    ahead = [canonical(name)]
    while ahead:
        above = _directly_above(ahead.pop()) - found
        found |= above
        ahead += above
    return frozenset(found)


def misplaced(merges: Mapping[str, str]) -> dict[str, str]:
    """Find the structures of a merging table that lie in a class which they are no part of.

    Args:
        merges: structure → coarse class, or ``background``, in any vocabulary that ``anatomy`` knows.

    Returns:
        The wrong entries, as they were given. Findings whose organ differs from case to case aren't judged.
    """
    return {
        structure: whole
        for structure, whole in merges.items()
        if whole != BACKGROUND and canonical(structure) not in _placeless() and not contains(whole, structure)
    }


def released(scope: str, names: str = "config") -> dict[str, str]:
    """U-VLM's released table for coarse anatomy: structure → coarse class, lesions included.

    Args:
        scope: "chest" or "abdomen".
        names: which of the release's lists names the labels: "config", or for the chest also "example".

    Raises:
        BadInput: no such table or list.
    """
    tables = content()["released"]
    if scope not in tables or names not in ("config", "example") or names not in tables[scope]:
        raise BadInput(
            f"U-VLM released no list {names!r} for {scope!r}; there are config and example for chest,"
            " config for abdomen"
        )
    table = tables[scope]
    merges = {name: table["coarse"][at] for name, at in zip(table[names], table["merge"], strict=True)}
    if "lesions" in table:
        merges |= {lesion: table["coarse"][table["lesions"]] for lesion in content()[scope]["lesions"]}
    return merges


def _directly_above(name: str) -> set[str]:
    """What one step of any source says: the file's parts, the table's ``within``, the table's groups."""
    above = {whole for part, whole in _stated_parts() if part == name}
    known = anatomy.structures().get(name)
    if known is None:
        return above
    if known.within:
        above.add(known.within)
    own = set(known.parts or (name,))
    return above | {s.name for s in anatomy.structures().values() if s.name != name and own <= set(s.parts)}


@cache
def _stated_parts() -> tuple[tuple[str, str], ...]:
    """(part, whole) of the file, lesions within their organ included; canonical names."""
    stated = list(content()["part_of"].items())
    for table in content().values():
        stated += [(lesion, facts["within"]) for lesion, facts in table.get("lesions", {}).items() if facts["within"]]
    return tuple((canonical(part), canonical(whole)) for part, whole in stated)


@cache
def _placeless() -> frozenset[str]:
    """Lesions that may lie in one organ or another; canonical names."""
    placed = {part for part, _ in _stated_parts()}
    lesions = (canonical(lesion) for table in content().values() for lesion in table.get("lesions", ()))
    return frozenset(lesion for lesion in lesions if lesion not in placed)
