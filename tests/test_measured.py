"""Questions on real CTs: whatever is asked, the masks answer it."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.measured import LARGER_BY, SMALLEST_ML, answers_from_masks, ask_about, real_cases
from ctvlm_lib.volume import Volume

PATHS = ("case/ct.nii.gz", "case/labels.nii.gz")


@pytest.fixture(scope="module")
def small():
    """A liver, two kidneys, an aorta from the lowest slice on, and a gallbladder of a few voxels, in 5 mm cubes."""
    labels = np.zeros((20, 24, 30), np.uint16)
    labels[9:17, 5:15, 3:14] = 1
    labels[4:9, 15:20, 6:9] = 2
    labels[4:8, 15:20, 20:24] = 3
    labels[:18, 12:14, 15:17] = 4
    labels[8, 4, 10:12] = 5
    affine = np.array([[0, 0, 5.0, -75], [0, 5.0, 0, -60], [5.0, 0, 0, -50], [0, 0, 0, 1]])
    names = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "aorta", 5: "gallbladder"}
    hu = np.where(labels > 0, 100, 40).astype(np.float32)
    return Volume(hu, affine, name="small"), LabelMap(labels, affine, names)


@pytest.fixture(scope="module")
def case(small):
    return ask_about(*small, "small", PATHS, searched=["liver", "spleen", "brain", "bladder", "colon"])


@pytest.fixture(scope="module")
def real(asset):
    asset("abdomen_ct"), asset("chest_cta")
    return real_cases()


def test_what_is_cut_or_tiny_or_absent_is_asked_accordingly(case):
    assert case.left_out == (
        "gallbladder: only 0.2 mL",
        "aorta: cut off, so its size isn't asked for",
    )
    sized = {r.region for r in case.records if r.kind == "size"}
    assert "aorta" not in sized and {"liver", "right kidney", "left kidney"} <= sized
    presence = {re.search("the (.*?)( at least.*)?( in this CT)?\\?", r.question)[1]: r.answer
                for r in case.records if r.kind == "presence"}  # fmt: skip
    assert set(presence) >= {"spleen", "brain", "bladder", "colon"} and presence["spleen"] == "No"
    assert Counter(presence.values()) == {"Yes": 4, "No": 4}


def test_answers_are_those_of_the_masks(case):
    again = answers_from_masks(case.records, case.volume, case.labels)
    assert again == {r.id: r.answer for r in case.records if r.form == "closed"}


def test_both_strata_ask_the_same_of_the_same_region(case):
    volumes = [r for r in case.records if ":volume:" in r.id]
    by_stratum = [{(r.region, r.form, r.answer) for r in volumes if r.names_region is named} for named in (True, False)]
    assert by_stratum[0] == by_stratum[1] and len(by_stratum[0]) == 6
    assert all((r.region in r.question) is r.names_region for r in volumes)


def test_swapped_names_of_a_pair_are_noticed(small):
    ct, labels = small
    swapped = replace(labels, names=labels.names | {2: "left kidney", 3: "right kidney"})
    case = ask_about(ct, swapped, "swapped", PATHS)
    assert {"left kidney: its side isn't that of its name by the affine",
            "right kidney: its side isn't that of its name by the affine"} <= set(case.left_out)  # fmt: skip
    assert not any(r.region and "kidney" in r.region for r in case.records)


def test_a_mirrored_affine_swaps_every_side(small):
    """The same arrays from a scanner whose columns run from left to right: the names are then wrong."""
    ct, labels = small
    mirrored = labels.affine @ np.diag([1, 1, -1, 1.0])
    case = ask_about(replace(ct, affine=mirrored), replace(labels, affine=mirrored), "mirrored", PATHS)
    assert not any(r.kind == "location" for r in case.records)


def test_the_same_seed_asks_the_same(small, case):
    searched = ["liver", "spleen", "brain", "bladder", "colon"]
    assert ask_about(*small, "small", PATHS, searched=searched).records == case.records
    assert ask_about(*small, "small", PATHS, searched=searched, seed=1).records != case.records


@pytest.mark.parametrize("change", [lambda ct, lab: (ct.crop((slice(0, 9),) * 3), lab),
                                    lambda ct, lab: (ct, replace(lab, labels=np.zeros_like(lab.labels)))])  # fmt: skip
def test_masks_that_dont_fit_or_are_empty_are_refused(small, change):
    with pytest.raises(BadInput, match=r"put them on one grid|no structure of at least"):
        ask_about(*change(*small), "bad", PATHS)


def test_every_closed_question_on_the_real_cts_is_answered_by_their_masks(real):
    for case in real:
        again = answers_from_masks(case.records, case.volume, case.labels)
        wrong = [r.id for r in case.records if r.form == "closed" and again[r.id] != r.answer]
        assert wrong == [] and len({r.id for r in case.records}) == len(case.records)


def test_the_real_cts_are_asked_of_all_kinds_and_no_answer_wins(real):
    abdomen, chest = real
    assert {r.kind for r in abdomen.records} == {"organ", "location", "size", "presence"}
    assert len(abdomen.records) > 300 and len(chest.records) > 20
    presence = Counter(r.answer for r in abdomen.records if r.kind == "presence")
    assert presence["Yes"] == presence["No"] > 40
    sides = Counter(r.answer for r in abdomen.records if r.kind == "location")
    assert sides["left"] == sides["right"] > 10
    places = Counter(r.choices.index(r.answer) for r in abdomen.records if len(r.choices) == 4)
    assert max(places.values()) < 0.4 * sum(places.values())
    larger = [r for r in abdomen.records if set(r.choices) == {r.region, r.distractor}]
    assert 0.4 <= np.mean([r.answer == r.region for r in larger]) <= 0.6


def test_compared_structures_differ_clearly_and_none_is_cut(real):
    case = real[0]
    for r in case.records:
        if set(r.choices) == {r.region, r.distractor}:
            one, other = (case.labels.volume_ml(name) for name in r.choices)
            assert LARGER_BY[0] <= max(one / other, other / one) <= LARGER_BY[1]
    assert all(case.labels.volume_ml(r.region) >= SMALLEST_ML for r in case.records if r.region)
    assert not any(r.region == "liver" and r.kind == "size" for r in case.records)  # the image cuts it


def test_a_distractor_shares_no_voxel_with_its_region(real):
    chest = real[1]
    for r in chest.records:
        if r.distractor:
            assert not (chest.labels.binary(r.region) & chest.labels.binary(r.distractor)).any(), r.id


def test_structures_cut_by_their_own_files_box_get_no_size(real):
    sized = {r.region for r in real[1].records if r.kind == "size"}
    assert "heart" in sized and not sized & {"aorta", "vertebrae T12"}
