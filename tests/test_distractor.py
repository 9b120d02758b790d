"""Distractors: never part of the region, chosen by a stated rule, with the numbers that decided."""

import numpy as np
import pytest
from helpers_ct import block, labels_of, lps_affine
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.prompt import distractor
from ctvlm_lib.volume import Volume

SHAPE = (6, 20, 24)
LIVER = block(SHAPE, ((1, 4, 2), (5, 12, 8)))  # 192 voxels
NEAR = block(SHAPE, ((2, 6, 10), (4, 9, 12)))  # 12 voxels, 3 columns away: 2.7 mm
ALIKE = block(SHAPE, ((1, 4, 16), (5, 12, 22)))  # 192 voxels, 9 columns away: 8.1 mm
FAR = block(SHAPE, ((0, 16, 0), (2, 20, 6)))  # 48 voxels
NAMES = {1: "liver", 2: "gallbladder", 3: "spleen", 4: "stomach"}


@pytest.fixture
def labels():
    return labels_of(LIVER * 1 + NEAR * 2 + ALIKE * 3 + FAR * 4, NAMES)


@pytest.fixture
def ct():
    hu = np.full(SHAPE, -1000.0)
    hu[LIVER], hu[NEAR], hu[ALIKE], hu[FAR] = 100, 10, 120, 100
    return Volume(hu, lps_affine())


def test_nearest_is_the_structure_with_the_smallest_gap(labels):
    chosen = distractor.choose(labels, "liver")
    assert chosen.name == "gallbladder" and chosen.rule == "nearest"
    assert chosen.distance_mm == pytest.approx(3 * 0.9)
    assert chosen.reason == "gallbladder: nearest of 3 structures to liver, 2.7 mm away, on 50% of its slices"
    np.testing.assert_array_equal(chosen.mask, NEAR)


def test_similar_is_closest_in_hu_and_size(labels, ct):
    """Spleen: same size, +20 HU → 0.2. Stomach: same HU, a quarter of the size → ln 4 = 1.4."""
    chosen = distractor.choose(labels, "liver", "similar", volume=ct)
    assert chosen.name == "spleen"
    numbers = "its mean 20 HU higher, 1.00 times its volume, 8.1 mm away, on 100% of its slices"
    assert chosen.reason == f"spleen: most like liver of 3 structures: {numbers}"
    with pytest.raises(BadInput, match="the CT is needed"):
        distractor.choose(labels, "liver", "similar")
    with pytest.raises(BadInput, match="put them on its grid"):
        distractor.choose(labels, "liver", "similar", volume=ct.crop((slice(1, None), slice(None), slice(None))))


def test_random_follows_its_seed_and_reaches_every_candidate(labels):
    names = [distractor.choose(labels, "liver", "random", seed=seed).name for seed in range(30)]
    assert names == [distractor.choose(labels, "liver", "random", seed=seed).name for seed in range(30)]
    assert set(names) == {"gallbladder", "spleen", "stomach"}
    assert "drawn at random (seed 7) from 3 structures" in distractor.choose(labels, "liver", "random", seed=7).reason


def test_a_named_one_is_taken_and_says_so(labels):
    chosen = distractor.choose(labels, "liver", "spleen")
    assert chosen.rule == "named"
    assert chosen.reason == "spleen: named by the user for liver, 8.1 mm away, on 100% of its slices"


def test_a_named_one_that_overlaps_is_refused(labels):
    with pytest.raises(BadInput, match="'liver' shares 192 voxels with 'liver'"):
        distractor.choose(labels, "liver", "liver")
    with pytest.raises(BadInput, match="no structure 'splen' .* did you mean spleen"):
        distractor.choose(labels, "liver", "splen")


def test_overlap_hidden_by_the_label_map_is_seen():
    """Two masks of a folder that share voxels: the label map holds only the first there, the second is kept whole."""
    second = block(SHAPE, ((1, 4, 7), (5, 12, 14)))
    held = np.where(LIVER, 1, np.where(second, 2, 0)) + ALIKE * 3
    names = {1: "liver", 2: "stomach", 3: "spleen"}
    labels = LabelMap(held.astype(np.uint16), lps_affine(), names, overlapping={"stomach": second})
    assert distractor.choose(labels, "liver").name == "spleen"
    assert distractor.choose(labels, "stomach").name == "spleen"
    for one, other in (("liver", "stomach"), ("stomach", "liver")):
        with pytest.raises(BadInput, match="shares 32 voxels"):
            distractor.choose(labels, one, other)


def test_small_structures_are_no_candidates(labels):
    assert distractor.choose(labels, "liver", minimum_voxels=13).name != "gallbladder"
    with pytest.raises(BadInput, match="no structure beside 'liver' has 500 voxels"):
        distractor.choose(labels, "liver", minimum_voxels=500)


def test_a_part_is_no_distractor_of_its_group():
    names = {28: "left lung upper lobe", 29: "left lung lower lobe", 3: "spleen"}
    parts = labels_of(LIVER * 28 + NEAR * 29 + ALIKE * 3, names)
    assert distractor.choose(parts, "lung").name == "spleen"


def test_box_overlap_is_intersection_over_union(labels):
    assert distractor.choose(labels, "liver").box_overlap == 0
    inner = block(SHAPE, ((1, 4, 8), (5, 5, 9)), ((1, 12, 1), (5, 13, 2)))  # around the liver's corner: boxes cross
    both = labels_of(LIVER + inner * 2, {1: "liver", 2: "stomach"})
    chosen = distractor.choose(both, "liver", minimum_voxels=1)
    # liver's box 4×8×6 = 192, stomach's 4×9×8 = 288, shared 192 rows 4…11, columns 2…7
    assert chosen.box_overlap == pytest.approx(192 / 288)


@given(st.integers(0, 10_000), st.sampled_from(["nearest", "random", "similar"]), st.booleans())
def test_distractor_never_overlaps_the_region(seed, how, overlapping):
    rng = np.random.default_rng(seed)
    held = rng.integers(0, 5, (4, 6, 7)).astype(np.uint16)
    names = {1: "liver", 2: "spleen", 3: "aorta", 4: "stomach"}
    extra = {"stomach": (held == 4) | (rng.random(held.shape) > 0.97)} if overlapping else {}
    labels = LabelMap(held, lps_affine(), names, overlapping=extra)
    volume = Volume(rng.normal(0, 100, held.shape), lps_affine())
    roi = names[1 + seed % 4]
    try:
        chosen = distractor.choose(labels, roi, how, volume, seed, minimum_voxels=1)
    except BadInput:
        assume(False)
    assert not (chosen.mask & labels.binary(roi)).any()
    assert chosen.mask.any() and chosen.name in names.values() and chosen.name in chosen.reason
    # distance by brute force
    points = [np.argwhere(m) * labels.spacing_mm for m in (chosen.mask, labels.binary(roi))]
    gap = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1)).min()
    assert chosen.distance_mm == pytest.approx(gap)
    if how == "nearest":
        others = [n for n in names.values() if n not in (roi, chosen.name)]
        free = [n for n in others if not (labels.binary(n) & labels.binary(roi)).any()]
        for name in free:
            assert distractor.choose(labels, roi, name).distance_mm >= chosen.distance_mm - 1e-9


def test_a_distractor_can_be_asked_to_lie_on_the_regions_slices():
    array = np.zeros((10, 8, 8), np.uint16)
    array[2:6, 1:3, 1:3] = 1  # the region: slices 2–5
    array[6:10, 1:3, 1:3] = 2  # touches it from above, on none of its slices
    array[4:8, 6:8, 6:8] = 3  # further away, on half of them
    labels = LabelMap(array, np.eye(4), {1: "liver", 2: "heart", 3: "spleen"})
    nearest, seen = distractor.choose(labels, "liver"), distractor.choose(labels, "liver", minimum_shared=0.5)
    assert (nearest.name, nearest.shared_slices) == ("heart", 0.0)
    assert (seen.name, seen.shared_slices) == ("spleen", 0.5)
    with pytest.raises(BadInput, match="on 80% of its slices"):
        distractor.choose(labels, "liver", minimum_shared=0.8)


def test_the_gap_equals_the_distance_maps():
    rng = np.random.default_rng(3)
    region = ndimage.binary_opening(rng.random((14, 20, 22)) > 0.35)
    others = {name: (rng.random(region.shape) > 0.97) & ~region for name in ("spleen", "aorta")}
    array = region + 2 * others["spleen"] + 3 * (others["aorta"] & ~others["spleen"])
    labels = LabelMap(array.astype(np.uint16), lps_affine(), {1: "liver", 2: "spleen", 3: "aorta"})
    map_mm = ndimage.distance_transform_edt(~region, sampling=labels.spacing_mm)
    expected = {name: map_mm[labels.binary(name)].min() for name in others}
    assert distractor._gaps_mm(labels, region, list(others)) == pytest.approx(expected)
