"""The table of structures: ids, left and right, look-up, expansion, wording."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput

STRUCTURES = list(anatomy.structures().values())
MATCHED = [s for s in STRUCTURES if s.totalsegmentator]


def words(name):
    return sorted(name.lower().replace("_", " ").split())


def test_label_lists_follow_from_the_published_rules():
    lists = anatomy.label_lists()
    every = set(range(1, 133))
    assert {name: len(ids) for name, ids in lists.items()} == {"132": 132, "127": 127, "124": 124, "117": 117}
    assert set(lists["132"]) == every
    assert set(lists["127"]) == every - {16, 18, 129, 130, 131}
    assert set(lists["124"]) == every - {2, 16, 18, 20, 21, 129, 130, 131}
    # the set expression of the bundle's configs/inference.json
    assert set(lists["117"]) == every - {2, 16, 18, 20, 21, 23, 24, 25, 26, 27, 128, 129, 130, 131, 132}


def test_no_id_and_no_region_name_is_given_twice():
    names = [
        [s.vista3d for s in STRUCTURES],
        [s.totalsegmentator_id for s in STRUCTURES],
        [s.totalsegmentator for s in STRUCTURES],
        [region for s in STRUCTURES for region in s.radgenome],
        [s.radlex_id for s in STRUCTURES],
        [s.radlex for s in STRUCTURES],
    ]
    for column in names:
        assert max(Counter(value for value in column if value).values()) == 1
    assert anatomy.vocabulary("vista3d").keys() == set(range(1, 133))
    assert anatomy.vocabulary("totalsegmentator").keys() == set(range(1, 118))


def test_totalsegmentator_matches_vistas_117_one_to_one():
    assert {s.vista3d for s in MATCHED} == set(anatomy.label_lists()["117"])
    assert {s.totalsegmentator_id for s in MATCHED} == set(range(1, 118))


def test_totalsegmentator_name_has_the_words_of_the_canonical_name():
    """Same words in another order: so left can't meet right, nor one rib another."""
    named = {s.name: s.totalsegmentator.replace("urinary_bladder", "bladder") for s in MATCHED}
    assert {name: other for name, other in named.items() if words(name) != words(other)} == {}


def test_left_never_maps_to_right():
    other_side = {"left": r"\bright\b", "right": r"\bleft\b", None: r"\b(left|right)\b"}
    for s in STRUCTURES:
        named = [s.name, s.totalsegmentator.replace("_", " "), *s.radgenome, s.radlex, *s.synonyms, s.within]
        named += s.parts if s.side else ()
        assert [name for name in named if re.search(other_side[s.side], name)] == []
        assert s.side is None or s.side in anatomy.normalise(s.name)


@pytest.mark.parametrize(
    ("vocabulary", "right_first"),
    [
        ("vista3d", {"kidney", "adrenal gland"}),
        ("totalsegmentator", {"kidney", "adrenal gland", "subclavian artery", "common carotid artery"}),
    ],
)
def test_which_pairs_number_the_right_side_first(vocabulary, right_first):
    ids = {name: number for number, name in anatomy.vocabulary(vocabulary).items()}
    pairs = {name[5:] for name in ids if name.startswith("left ") and f"right {name[5:]}" in ids}
    assert {pair for pair in pairs if ids[f"right {pair}"] < ids[f"left {pair}"]} == right_first
    assert len(pairs) == 32  # 12 ribs, 2 lobes, 18 others


@pytest.mark.parametrize(
    ("number", "vocabulary", "name"),
    [
        (14, "vista3d", "left kidney"),
        (5, "vista3d", "right kidney"),
        (2, "vista3d", "kidney"),
        (2, "totalsegmentator", "right kidney"),
        (3, "totalsegmentator", "left kidney"),
        (15, "vista3d", "bladder"),
        (21, "totalsegmentator", "bladder"),
        (52, "totalsegmentator", "aorta"),  # 7 in version 1
        (13, "totalsegmentator", "right lung middle lobe"),
        (92, "totalsegmentator", "left rib 1"),
        (104, "totalsegmentator", "right rib 1"),
        (33, "vista3d", "vertebrae L5"),
        (132, "vista3d", "airway"),
    ],
)
def test_ids_as_published(number, vocabulary, name):
    assert anatomy.structure(number, vocabulary).name == name
    assert anatomy.vocabulary(vocabulary)[number] == name


def test_every_name_finds_its_own_row():
    for s in STRUCTURES:
        names = filter(None, [s.name, s.totalsegmentator, *s.radgenome, s.radlex, s.radlex_id, *s.synonyms])
        for name in names:
            for written in (name, name.replace(" ", "_"), name.replace(" ", "-").upper(), f"  {name} "):
                assert anatomy.structure(written) is s


def test_a_vocabulary_knows_only_its_own_names():
    assert anatomy.structure("urinary_bladder", "totalsegmentator") is anatomy.structure("bladder", "vista3d")
    with pytest.raises(BadInput, match="'bladder' in TotalSegmentator; did you mean .*urinary bladder"):
        anatomy.structure("bladder", "totalsegmentator")
    with pytest.raises(BadInput, match="in VISTA-3D"):
        anatomy.structure("pleura", "vista3d")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("windpipe", "trachea"),
        ("postcava", "inferior vena cava"),
        ("L5", "vertebrae L5"),
        ("kidneys", "kidney"),
        ("renal_arteries", "renal artery"),
        ("heart_atrium_left", "left atrium"),
        ("lung/lung/lung lower lobe/left lung lower lobe", "left lung lower lobe"),
        ("cervical vertebrae 6 (c6)", "vertebrae C6"),
    ],
)
def test_other_ways_to_write_a_name(written, name):
    assert anatomy.structure(written).name == name


@pytest.mark.parametrize(
    ("key", "vocabulary", "message"),
    [
        ("livr", None, r"no structure called 'livr'; did you mean liver\?"),
        ("left kidny", None, "did you mean left kidney"),
        ("qqqqqq", None, "lists all names"),
        ("", None, "no structure called ''"),
        (2, None, "ambiguous: 2 is kidney in VISTA-3D and right kidney in TotalSegmentator; say which"),
        (133, "vista3d", "no id 133; its ids run from 1 to 132"),
        (0, "totalsegmentator", "no id 0; its ids run from 1 to 117"),
        (3, "radgenome", "choose one of vista3d, totalsegmentator"),
        ("liver", "snomed", "choose one of vista3d, totalsegmentator, radgenome, radlex"),
        (True, "vista3d", "got True"),
        (2.0, "vista3d", "got 2.0"),
    ],
)
def test_a_miss_says_what_to_do(key, vocabulary, message):
    with pytest.raises(BadInput, match=message) as raised:
        anatomy.structure(key, vocabulary)
    assert "\n" not in str(raised.value)


def test_expansion_as_in_the_bundle():
    assert set(anatomy.expand("kidney")) == {5, 14}
    assert anatomy.expand("lung") == anatomy.expand(20) == (28, 29, 30, 31, 32)
    bone = [*range(33, 57), *range(63, 98), 114, 120, 122]
    assert list(anatomy.expand("bone")) == bone and len(bone) == 62
    assert anatomy.expand("spleen") == (3,)
    assert set(anatomy.expand("left lung")) | set(anatomy.expand("right lung")) == set(anatomy.expand("lung"))
    ribs = [anatomy.expand(f"rib {k}") for k in range(1, 13)]
    assert sorted(i for pair in ribs for i in pair) == sorted(anatomy.expand("rib"))
    spine = [i for part in ("cervical", "thoracic", "lumbar") for i in anatomy.expand(f"{part} vertebrae")]
    assert sorted(spine) == sorted(anatomy.expand("vertebrae"))


def test_expand_says_where_vista_has_no_class():
    with pytest.raises(BadInput, match="no class for ascending aorta; it lies within aorta"):
        anatomy.expand("ascending aorta")
    with pytest.raises(BadInput, match="no class for pleura; take its mask from a file"):
        anatomy.expand("pleura")


def test_parts_are_single_structures_of_the_same_side():
    for s in filter(lambda s: s.parts, STRUCTURES):
        parts = [anatomy.structures()[name] for name in s.parts]
        assert len(set(s.parts)) == len(s.parts) > 1
        assert all(part.vista3d and not part.parts for part in parts)
        assert s.side is None or {part.side for part in parts} == {s.side}


def test_radgenome_regions_and_what_covers_them():
    regions = {region: anatomy.covering(s.name) for s in STRUCTURES for region in s.radgenome}
    assert len(regions) == 138  # distinct path ends of the public subset, without "others"
    bare = {region for region, cover in regions.items() if not cover}
    assert {"pleura", "breast", "mediastinum", "pulmonary artery", "thymus", "abdomen"} <= bare and len(bare) == 15
    assert anatomy.covering("pericardium") == anatomy.covering("lymph nodes") == ()
    assert regions["cervical esophagus"] == ("esophagus",)
    assert regions["clavicle"] == ("left clavicula", "right clavicula")
    assert regions["trachea and bronchie"] == ("airway",)
    assert all(s.within in anatomy.structures() for s in STRUCTURES if s.within)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is the windpipe narrowed at the left collar bone?", "Is the trachea narrowed at the left clavicle?"),
        ("Windpipe and gall bladder:  as before.", "Trachea and gallbladder:  as before."),
        ("the IVC and kidney_right", "the inferior vena cava and right kidney"),
        ("nodule in the LUL", "nodule in the upper lobe of left lung"),
        ("both shoulder blades", "both scapulas"),
        ("The Lung, lungs and Small Intestine", "The Lung, lungs and Small Intestine"),
        ("T1-weighted, L5-S1, iliac spine, thyroid cartilage", "T1-weighted, L5-S1, iliac spine, thyroid cartilage"),
        ("windpiped bladderwort kidney_right_2", "windpiped bladderwort kidney_right_2"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert anatomy.normalise(text) == expected


TERMS = [name for s in STRUCTURES for name in (s.name, s.radlex, s.totalsegmentator, *s.synonyms) if name]
PIECES = st.sampled_from(TERMS + ["left", "right", "bone", "lobe", "of", "the", "and", "s", ",", "-", "Is", "\n"])


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=8), st.sampled_from([" ", "_", ""]))
def test_normalise_twice_is_normalise_once(pieces, glue):
    once = anatomy.normalise(glue.join(pieces))
    assert anatomy.normalise(once) == once


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789 .,;:!?()äλ肺\n\t", max_size=40))
def test_normalise_leaves_other_text_verbatim(text):
    assert anatomy.normalise(text) == text


def test_table_has_a_row_for_each_structure():
    frame = anatomy.table()
    assert list(frame["name"]) == list(anatomy.structures())
    assert frame["vista3d"].dropna().tolist() == list(range(1, 133))
    assert frame.set_index("name").loc["pleura", ["vista3d", "totalsegmentator_id"]].isna().all()


def test_import_stays_light():
    code = "import sys, ctvlm_lib.anatomy as a; a.structure('liver'); print({'pandas', 'torch'} & {*sys.modules})"
    root = Path(anatomy.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
