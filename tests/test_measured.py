"""Real CTs asked for what their masks can answer, and the answers measured a second time."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import SPLITS, naming, questions, read_jsonl, write_jsonl
from ctvlm_lib.records.measured import SIZE_MARGIN, answers_from_masks, ask_about
from ctvlm_lib.records.measured_survey import APART, LEVELS, SPINE, partner, survey, touches_border
from ctvlm_lib.records.measured_wording import ASKED, CLASSES, LIMITS_ML, about_ml, called
from ctvlm_lib.volume import Volume

SHAPE = (30, 34, 48)  # at 3 mm
BLOCKS = {  # name: first and last voxel (d, h, w); w grows to the patient's left
    "liver": ((16, 8, 5), (29, 20, 18)),  # cut at the top
    "spleen": ((16, 18, 36), (24, 26, 42)),
    "left kidney": ((12, 20, 30), (18, 25, 34)),
    "right kidney": ((11, 20, 12), (18, 26, 17)),
    "pancreas": ((19, 11, 22), (22, 15, 30)),
    "bladder": ((2, 10, 18), (8, 17, 28)),
    "left adrenal gland": ((20, 19, 28), (25, 24, 32)),
    "right adrenal gland": ((20, 21, 14), (26, 26, 18)),
    "aorta": ((9, 24, 24), (24, 26, 26)),
    "vertebrae T12": ((24, 26, 20), (29, 31, 26)),
    "vertebrae L1": ((18, 27, 20), (23, 31, 27)),
}
ABSENT = ("brain", "thyroid gland", "trachea", "vertebrae C3", "vertebrae T11", "heart", "left kidney cyst")


def case(blocks=None, absent=ABSENT, flip=False):
    """A body in air with blocks for organs; ``flip`` mirrors the affine, so that every name is on the wrong side."""
    hu, labels = np.full(SHAPE, -1000.0), np.zeros(SHAPE, np.uint16)
    hu[:, 4:33, 2:46] = 40
    names = dict(enumerate((*(blocks or BLOCKS), *absent), start=1))
    for number, (first, last) in enumerate((blocks or BLOCKS).values(), start=1):
        labels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = number
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[:, 3] = 3, 3, -3 if flip else 3, (-70, -50, 400, 1)
    return Volume(hu, affine), LabelMap(labels, affine, names)


def asked(volume, labels, **more):
    paths = {"volume_path": "a/ct.nii.gz", "mask_path": "a/labels.nii.gz"}
    return ask_about(volume, labels, patient="p1", dataset="blocks", **paths | more)


@pytest.fixture(scope="module")
def blocks():
    volume, labels = case()
    return volume, labels, asked(volume, labels)


def test_every_answer_is_measured_again_from_the_masks(blocks):
    volume, labels, records = blocks
    again = answers_from_masks(records, volume, labels)
    assert {r.id: r.answer for r in records} == again
    assert {r.kind for r in records} == {"organ", "location", "size", "presence"}
    assert len(again) == len(records)


def test_the_second_measurement_notices_other_masks(blocks):
    volume, labels, records = blocks
    keys = {name: key for key, name in labels.names.items()}
    swapped = labels.names | {keys["left kidney"]: "right kidney", keys["right kidney"]: "left kidney"}
    again = answers_from_masks(records, volume, replace(labels, names=swapped))
    differs = {r.kind for r in records if again[r.id] != r.answer}
    assert {"location", "size"} <= differs
    none = replace(labels, labels=np.where(labels.labels == keys["bladder"], 0, labels.labels))
    shown = [r for r in records if r.id == "p1:bladder:presence"]
    assert not shown or answers_from_masks(shown, volume, none)["p1:bladder:presence"] == "No"


def test_what_the_field_cuts_is_not_asked_for_size(blocks):
    volume, labels, records = blocks
    sized = {r.region for r in records if r.kind == "size"}
    assert sized == {"spleen", "left kidney", "right kidney", "pancreas", "bladder", "left adrenal gland",
                     "right adrenal gland", "vertebrae L1"}  # fmt: skip
    named = {word for r in records if r.kind == "size" for word in ("liver", "T12", "aorta") if word in r.question}
    assert not named  # nor compared with: liver and T12 are cut, a vessel ends where its mask does
    assert any("cut by the border" in note and "liver" in note for note in survey(volume, labels).notes)


def test_a_mask_is_cut_by_its_own_crop_too():
    volume, labels = case()
    assert not touches_border(labels.binary("spleen"))
    crop = (slice(10, 25), slice(0, 34), slice(20, 48))  # the spleen reaches slice 24
    assert touches_border(labels.binary("spleen"), crop)
    records = asked(volume, labels, boxes={"spleen": crop})
    assert "spleen" not in {r.region for r in records if r.kind == "size"}
    assert "spleen" in {r.region for r in records if r.kind == "organ"}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_each_of_the_six_borders_cuts(axis, end):
    mask = np.zeros((5, 6, 7), bool)
    mask[2, 2, 2] = True
    assert not touches_border(mask)
    np.moveaxis(mask, axis, 0)[end] = True
    assert touches_border(mask)


def test_a_pair_whose_side_the_geometry_denies_is_left_out_and_told():
    volume, labels = case(flip=True)
    found = survey(volume, labels)
    assert not found.side and "left kidney" not in found.volume_ml
    assert any(n.startswith("left kidney lies") and "right of the midline" in n for n in found.notes)
    assert not any("kidney" in str(r.region) or "adrenal" in str(r.region) for r in asked(volume, labels))
    alone = {name: block for name, block in BLOCKS.items() if name != "left kidney"}
    assert "right kidney" not in survey(*case(alone)).side  # one by itself would give the answer away


def test_sides_come_in_pairs_of_the_same_words(blocks):
    groups = defaultdict(list)
    for record in blocks[2]:
        if record.kind == "location":
            groups[(anatomy.structure(record.region).name.split()[1], record.form)].append(record)
    assert len(groups) == 4
    for pair in groups.values():
        assert len({(r.question, r.choices) for r in pair}) == 1 and len({r.answer for r in pair}) == 2
        assert not any(r.names_region for r in pair)


def test_each_choice_of_a_set_is_right_once(blocks):
    sets = defaultdict(list)
    for record in blocks[2]:
        if record.kind == "organ" and record.choices:
            sets[record.id.rsplit(":", 1)[-1]].append(record)
    for members in sets.values():
        assert len({(r.question, r.choices) for r in members}) == 1
        assert sorted(r.answer for r in members) == sorted(members[0].choices) and len(members) == 4


def test_yes_and_the_first_of_two_are_right_half_the_time(blocks):
    closed = [r for r in blocks[2] if r.form == "closed"]
    for kind in ("presence", "size"):
        for named in (True, False):
            found = Counter(r.answer for r in closed if r.kind == kind and not r.choices and r.names_region == named)
            assert found["Yes"] == found["No"] and (found["Yes"] or (kind, named) == ("presence", False))
    first = [r.choices.index(r.answer) for r in closed if len(r.choices) == 2 and r.kind == "size"]
    assert first and sum(first) * 2 == len(first)


def test_compared_volumes_differ_by_the_margin(blocks):
    _, labels, records = blocks
    named = {called(name): name for name in labels.names.values()}
    for record in records:
        if record.kind == "size" and len(record.choices) == 2:
            small, large = sorted(labels.volume_ml(named[words]) for words in record.choices)
            assert large / small >= SIZE_MARGIN


def test_only_what_is_far_from_the_field_is_said_to_be_absent():
    assert survey(*case()).absent == ("brain", "thyroid gland", "trachea", "vertebrae C3")
    without_spine = {name: block for name, block in BLOCKS.items() if "vertebrae" not in name}
    assert survey(*case(without_spine)).absent == ()
    inside = BLOCKS | {"vertebrae T12": ((24, 26, 20), (28, 31, 26))}  # neither cut, nor was its neighbour looked for
    assert survey(*case(inside, ("brain",))).absent == ()
    assert survey(*case(inside, ("brain", "vertebrae T11"))).absent == ("brain",)


def test_the_words_name_the_region_exactly_where_the_record_says_so(blocks):
    for record in blocks[2]:
        assert (f"the {called(record.region)}" in record.question) == record.names_region
        assert record.mask == (None if record.answer == "No" and record.kind == "presence" else "a/labels.nii.gz")


def test_records_are_the_same_for_the_same_seed_and_survive_their_file(blocks, tmp_path):
    volume, labels, records = blocks
    assert asked(volume, labels) == records
    assert asked(volume, labels, seed=1) != records
    assert read_jsonl(write_jsonl(records, tmp_path / "r.jsonl")) == records
    split = {r.split for r in asked(volume, labels, split=SPLITS[1])}
    assert split == {"validation"}


def test_regions_can_be_chosen_and_each_may_have_its_own_file(blocks):
    volume, labels, _ = blocks
    pair = ("kidney_left", "right kidney")
    records = asked(volume, labels, regions=pair, mask_path={"left kidney": "left.nii.gz"})
    assert {r.region for r in records if r.answer != "No"} == {"left kidney", "right kidney"}
    assert {r.mask for r in records if r.region == "left kidney"} == {"left.nii.gz"}
    with pytest.raises(BadInput, match="is empty here"):
        asked(volume, labels, regions=("heart",))
    with pytest.raises(BadInput, match=r"use labels.to\(volume\)"):
        asked(volume.crop_or_pad((30, 34, 50)), labels)
    with pytest.raises(BadInput, match="nothing to ask about"):
        asked(volume, replace(labels, labels=np.zeros(SHAPE, np.uint16)))


def test_wording_is_the_cohorts_and_names_read_well():
    assert ASKED["organ"] == questions.ASKED["organ"]
    assert called("vertebrae L5") == "L5 vertebra" and called("left rib 12") == "left twelfth rib"
    assert called("superior vena cava") == "superior vena cava" and called("left iliac vena") == "left iliac vein"
    assert called("left hip") == "left hip bone" and called("liver") == "liver"
    assert [about_ml(ml) for ml in (4.52, 192.6, 1646)] == ["about 4.5 mL", "about 190 mL", "about 1600 mL"]
    words = [called(name) for name in anatomy.structures()]
    assert len(words) == len(set(words))
    assert naming.structure_in(called("vertebrae L5")) == "vertebrae L5"
    assert len(CLASSES) == len(LIMITS_ML) + 1 and LIMITS_ML[1] ** 2 == LIMITS_ML[0] * LIMITS_ML[2]
    assert all(str(limit) in CLASSES[i] + CLASSES[i + 1] for i, limit in enumerate(LIMITS_ML))


def test_the_tables_of_structures_are_canonical():
    known = anatomy.structures()
    assert {*LEVELS, *SPINE, *APART, *APART.values()} <= set(known)
    assert all(f"vertebrae {level}" in SPINE for pair in LEVELS.values() for level in pair)
    assert partner("left kidney") == "right kidney" and partner("liver") is None
    assert partner("right lung middle lobe") is None


@pytest.fixture(scope="module")
def real(asset):
    from ctvlm_lib.records.real_cases import real_cases

    asset("abdomen_ct"), asset("chest_cta")
    return {found.name: found for found in real_cases()}


def test_the_real_cts_are_answered_by_their_masks(real):
    for found in real.values():
        again = answers_from_masks(found.records, found.volume, found.labels)
        assert [r.id for r in found.records if again[r.id] != r.answer] == []
        assert {r.kind for r in found.records} == {"organ", "location", "size", "presence"}
        assert {r.dataset for r in found.records} == {found.name}
        assert set(found.labels.present) <= set(anatomy.structures())
    assert len(real["real-abdomen"].records) > 300 and len(real["real-chest"].records) > 30


def test_the_real_cts_are_not_asked_for_what_their_masks_cut(real):
    abdomen, chest = (
        {r.region for r in real[name].records if r.kind == "size"} for name in ("real-abdomen", "real-chest")
    )
    assert {"left kidney", "gallbladder", "bladder"} <= abdomen
    assert not abdomen & {"liver", "spleen", "stomach", "colon", "aorta", "left femur", "sacrum"}
    assert chest == {"heart", "left lung"}  # the right lung's apex reaches the last slice
    carotid = real["real-chest"].labels.binary("left common carotid artery")
    box = real["real-chest"].boxes["left common carotid artery"]
    assert touches_border(carotid, box) and not touches_border(carotid)  # cut by the crop, not by the CT


def test_the_real_cts_masks_lie_where_their_records_say(real):
    from ctvlm_lib import assets, mask

    for found in real.values():
        paths = {r.region: r.mask for r in found.records if r.mask}
        for region in list(paths)[:3]:
            own = mask.load(assets.path(paths[region]), like=found.volume)
            np.testing.assert_array_equal(own.binary(region), found.labels.binary(region))
        assert "threshold" in found.note or found.name == "real-abdomen"
