"""One table of anatomical structures and the names and numbers that each vocabulary gives them.

The same liver is 1 to VISTA-3D and 5 to TotalSegmentator; kidney 2 is both kidneys to the one and the right kidney to
the other. ``anatomy_table.csv`` holds one row a structure, and everything here is read from it.

Where the published lists disagree:

* *VISTA-3D* has 132 classes in the MONAI bundle (``docs/labels.json``, the names used here), 127 in the paper and 124
  in today's ``label_dict.json`` of the research repository; "segment everything" uses 117. ``label_lists`` derives the
  shorter ones. The difference between 132 and 127 is documented there: an earlier ``label_dict.json`` marks the five
  classes as deprecated. 124 lacks, besides, the three that stand for other classes (kidney, lung, bone).
* *TotalSegmentator* ids are those of the ``total`` task of version 2 (117 classes); they match VISTA-3D's 117 one to
  one, by name, not by number. Version 1 had 104 classes with other numbers (aorta 7, now 52): a version 1 map read
  with these ids looks plausible and is wrong. VISTA's own ``label_mappings.json`` numbers the same 117 a third way.
* *RadGenome-ChestCT* names are the 138 region names at the ends of the 174 distinct paths in its public subset of 2,000
  scans; "others" is no structure. The 197 mask categories behind them are not listed in public, so more may exist.
  Nothing says how "heart tissue" or "mediastinal tissue" are bounded.
* ``radlex_id`` is given where the ACR index of common anatomic locations lists the term (``RID944_RID5824`` is its way
  to write "common iliac artery" + "left"); where it is empty, the wording of ``radlex`` is ours.

Sources: Project-MONAI/model-zoo ``models/vista3d``; Project-MONAI/VISTA ``vista3d/data/jsons``; TotalSegmentator 2.18.0
``map_to_binary.py``; RadGenome-ChestCT ``subset_2000``; anatomiclocations.org ``body_parts.json`` 1.0.0-rc.1.
"""

import csv
import difflib
import re
from dataclasses import asdict, dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

VOCABULARIES = ("vista3d", "totalsegmentator", "radgenome", "radlex")
_TITLES = {"vista3d": "VISTA-3D", "totalsegmentator": "TotalSegmentator", "radgenome": "RadGenome", "radlex": "RadLex"}

DEPRECATED = frozenset({16, 18, 129, 130, 131})  # VISTA-3D: prostate or uterus, rectum, kidney mass, liver tumor, L6
# The bundle's "segment everything" also leaves out the lesions and two that overlap others: hepatic vessel, airway.
_NOT_EVERYTHING = frozenset({23, 24, 25, 26, 27, 128, 132})
# Good keys for a look-up, but parts of other terms in a sentence: iliac spine, thyroid cartilage, adrenal vein.
_NOT_IN_SENTENCES = {"spine"} | {f"{s}{w}" for s in ("", "left ", "right ") for w in ("thyroid", "adrenal")}


@dataclass(frozen=True)
class Structure:
    """One row of the table.

    Attributes:
        name: canonical name: the VISTA-3D bundle's, or a plain one for what VISTA-3D doesn't have.
        vista3d: VISTA-3D class, 1–132, or None.
        totalsegmentator: name in TotalSegmentator's ``total`` task, or "".
        totalsegmentator_id: its id there, 1–117, or None.
        radgenome: RadGenome-ChestCT region names for this structure.
        radlex: RadLex wording, used by ``normalise``.
        synonyms: colloquial and further names.
        side: "left", "right" or None.
        group: e.g. "lung", "bone", "lesion".
        parts: names of the VISTA-3D structures whose union this is, or ().
        within: name of the structure that contains this one, where that helps to find a mask, or "".
        radlex_id: RadLex id where it is sourced, or "".
    """

    name: str
    vista3d: int | None
    totalsegmentator: str
    totalsegmentator_id: int | None
    radgenome: tuple[str, ...]
    radlex: str
    synonyms: tuple[str, ...]
    side: str | None
    group: str
    parts: tuple[str, ...]
    within: str = ""
    radlex_id: str = ""


def structure(key: str | int, vocabulary: str | None = None) -> Structure:
    """Find a structure by any of its names, or by its number in a vocabulary.

    Args:
        key: a name (case, underscores, hyphens and a plural don't matter), a RadGenome path, or an id.
        vocabulary: "vista3d", "totalsegmentator", "radgenome" or "radlex"; None searches all names. An id needs one.

    Raises:
        BadInput: no such name (with suggestions) or id, an id without vocabulary, or an unknown vocabulary.
    """
    _check(vocabulary, (None, *VOCABULARIES))
    if isinstance(key, Integral) and not isinstance(key, bool):
        return _by_id(int(key), vocabulary)
    if not isinstance(key, str):
        raise BadInput(f"a structure is named by text or by a whole number, got {key!r}")
    index = _index(vocabulary)
    wanted = _key(key.rsplit("/", 1)[-1])  # RadGenome: the end of the path is the region
    for candidate in (wanted, wanted.removesuffix("s"), re.sub("ies$", "y", wanted)):
        if candidate in index:
            return index[candidate]
    where = f" in {_TITLES[vocabulary]}" if vocabulary else ""
    raise BadInput(f"no structure called {key!r}{where}; {_suggestion(wanted, vocabulary)}")


def vocabulary(name: str) -> dict[int, str]:
    """Map the ids of "vista3d" or "totalsegmentator" to canonical names, in the order of the ids."""
    _check(name, ("vista3d", "totalsegmentator"))
    field = "vista3d" if name == "vista3d" else "totalsegmentator_id"
    pairs = [(getattr(s, field), s.name) for s in structures().values()]
    return dict(sorted((i, n) for i, n in pairs if i is not None))


def expand(name: str | int) -> tuple[int, ...]:
    """List the VISTA-3D classes to segment for a structure: lung → 28…32, spleen → 3.

    Args:
        name: any name, or a VISTA-3D id.

    Raises:
        BadInput: VISTA-3D has no class for it (pleura, breast, pulmonary artery …), or ``structure`` finds nothing.
    """
    found = structure(name, "vista3d" if isinstance(name, Integral) else None)
    if found.parts:
        return tuple(structures()[part].vista3d for part in found.parts)
    if found.vista3d is None:
        hint = f"; it lies within {found.within}" if found.within else "; take its mask from a file"
        raise BadInput(f"VISTA-3D has no class for {found.name}{hint}")
    return (found.vista3d,)


def covering(name: str) -> tuple[str, ...]:
    """Name the VISTA-3D structures whose union holds a structure or RadGenome region; () where there is none."""
    found = structure(name)
    if found.parts or found.vista3d is not None:
        return found.parts or (found.name,)
    return covering(found.within) if found.within else ()


def label_lists() -> dict[str, tuple[int, ...]]:
    """Give the VISTA-3D class lists that are called 132, 127, 124 and 117, each derived from the one before."""
    every = vocabulary("vista3d")
    unions = {i for i, name in every.items() if structures()[name].parts}  # kidney, lung, bone
    lists = {"132": set(every)}
    lists["127"] = lists["132"] - DEPRECATED
    lists["124"] = lists["127"] - unions
    lists["117"] = lists["124"] - _NOT_EVERYTHING
    return {name: tuple(sorted(ids)) for name, ids in lists.items()}


def table() -> "pd.DataFrame":
    """Give the whole table, one row a structure, for a notebook; missing ids are <NA>."""
    import pandas as pd  # a second or so, and only notebooks need it

    frame = pd.DataFrame([asdict(s) for s in structures().values()])
    return frame.astype({"vista3d": "Int64", "totalsegmentator_id": "Int64"})


def normalise(text: str) -> str:
    """Replace the anatomy terms of a sentence by RadLex wording: "collar bone" → "clavicle".

    Whole words only, the longest term first; a plural s is kept where it can be, all else stays as it was.
    Applying it twice changes nothing more.
    """
    pattern, terms = _rewriter()

    def replace(match: re.Match) -> str:
        found, plural = match.groups()
        term = terms[_key(found)]
        if _key(found) == _key(term) or (plural and (" of " in term or term.endswith("s"))):
            return match[0]
        sentence_start = found[0].isupper() and not found.isupper()  # "Windpipe", not "IVC"
        return (term[0].upper() + term[1:] if sentence_start else term) + plural

    for _ in range(10):  # a replacement can form a new term with its neighbour ("hip bone bone"): go on until it rests
        text, before = pattern.sub(replace, text), text
        if text == before:
            break
    return text


@cache
def structures() -> dict[str, Structure]:
    """Read the table once: canonical name → Structure, in the order of the file (VISTA-3D's ids first)."""
    with (Path(__file__).parent / "anatomy_table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_id = {int(row["vista3d"]): row["name"] for row in rows if row["vista3d"]}
    return {row["name"]: _structure(row, by_id) for row in rows}


def _structure(row: dict[str, str], by_id: dict[int, str]) -> Structure:
    def split(cell: str) -> tuple[str, ...]:
        return tuple(cell.split("|")) if cell else ()

    ids = [i for span in row["parts"].split() for i in _span(span)]
    return Structure(
        **{k: row[k] for k in ("name", "totalsegmentator", "radlex", "group", "within", "radlex_id")},
        **{k: int(row[k]) if row[k] else None for k in ("vista3d", "totalsegmentator_id")},
        **{k: split(row[k]) for k in ("radgenome", "synonyms")},
        side=row["side"] or None,
        parts=tuple(by_id[i] for i in ids),
    )


def _span(text: str) -> range:
    """Read "28-32" or "14" from the column of parts."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _by_id(number: int, name: str | None) -> Structure:
    if name is None:
        meanings = [f"{v[number]} in {_TITLES[k]}" for k in VOCABULARIES[:2] if number in (v := vocabulary(k))]
        told = f"a number alone is ambiguous: {number} is {' and '.join(meanings)}" if meanings else f"no id {number}"
        raise BadInput(f'{told}; say which with vocabulary="vista3d" or "totalsegmentator"')
    names = vocabulary(name)
    if number not in names:
        raise BadInput(f"{_TITLES[name]} has no id {number}; its ids run from {min(names)} to {max(names)}")
    return structures()[names[number]]


def _suggestion(wanted: str, vocabulary: str | None) -> str:
    index = _index(vocabulary)
    close = difflib.get_close_matches(wanted, index, n=6, cutoff=0.6)
    shown = close if vocabulary else dict.fromkeys(index[k].name for k in close)  # two synonyms, one suggestion
    return f"did you mean {' or '.join(list(shown)[:3])}?" if close else "anatomy.table() lists all names"


def _check(name: str | None, known: tuple[str | None, ...]) -> None:
    if name not in known:
        raise BadInput(f"{name!r} is no vocabulary that serves here; choose one of {', '.join(k for k in known if k)}")


@cache
def _index(vocabulary: str | None) -> dict[str, Structure]:
    """Map each key to its structure, for one vocabulary or for all names; a canonical name wins."""
    index = {_key(s.name): s for s in structures().values()} if vocabulary is None else {}
    for s in structures().values():
        for name in _names(s, vocabulary):
            index.setdefault(_key(name), s)
    return index


def _names(s: Structure, vocabulary: str | None) -> list[str]:
    names = {
        "vista3d": [s.name] if s.vista3d is not None else [],
        "totalsegmentator": [s.totalsegmentator] if s.totalsegmentator else [],
        "radgenome": list(s.radgenome),
        "radlex": [s.radlex, *([s.radlex_id] if s.radlex_id else [])],
    }
    if vocabulary is not None:
        return names[vocabulary]
    # "L5" is a key, but no synonym: in a sentence T1 may be an MR weighting.
    level = s.name.split()[1:] if re.fullmatch(r"vertebrae [CTLS]\d+", s.name) else []
    return [name for some in names.values() for name in some] + list(s.synonyms) + level


@cache
def _rewriter() -> tuple[re.Pattern, dict[str, str]]:
    """Compile one pattern of all terms, longest first, and the RadLex wording of each."""
    terms = {_key(s.radlex): s.radlex for s in structures().values()}  # first: what is RadLex already stays
    for s in structures().values():
        for name in (s.name, s.totalsegmentator, *s.radgenome, *s.synonyms):
            terms.setdefault(_key(name), s.radlex)
    words = sorted(terms.keys() - _NOT_IN_SENTENCES - {""}, key=len, reverse=True)
    any_of = "|".join(r"[\s_-]+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<!\w)({any_of})(s?)(?!\w)", re.IGNORECASE), terms


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
