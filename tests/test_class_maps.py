"""The classes of U-VLM's stage 1: anatomy in the coarse ones, painting, and the phantom patients' targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import phantom
from ctvlm_lib.segment.class_maps import GRANULARITIES, SCOPES, ClassMap, phantom_target
from ctvlm_lib.segment.containment import BACKGROUND, contains, content, misplaced, released

ALL = [(scope, granularity) for scope in SCOPES for granularity in GRANULARITIES]


def structures_of(scope: str) -> list[str]:
    """What a scope's data have masks of."""
    if scope == "abdomen":
        return content()["released"]["abdomen"]["config"]
    lesions = list(content()[scope]["lesions"])
    if scope == "chest":
        return [*anatomy.vocabulary("totalsegmentator").values(), "pulmonary artery", *lesions]
    return [*next(phantom.cohort(1)).labels.names.values(), *lesions]


def label_map(labels, names, overlapping=None) -> LabelMap:
    return LabelMap(np.asarray(labels, np.uint16), np.eye(4), names, overlapping=overlapping or {})


@pytest.mark.parametrize("scope", ["chest", "abdomen"])
def test_there_are_as_many_classes_as_released(scope):
    counts = {granularity: len(ClassMap.of(scope, granularity).names) for granularity in GRANULARITIES}
    assert counts == content()["released"][scope]["counts"]
    tables = content()["released"][scope]
    assert counts["C"] == len(tables["coarse"])
    in_chest_only = len(content()["chest"]["lesions"]) if scope == "chest" else 0
    assert counts["F+L"] == 1 + len(tables["config"]) + in_chest_only


@pytest.mark.parametrize(("scope", "granularity"), ALL)
def test_names_are_distinct_background_first_and_lesions_last(scope, granularity):
    classes = ClassMap.of(scope, granularity)
    assert classes.names[0] == BACKGROUND and len(set(classes.names)) == len(classes.names)
    assert classes.names[len(classes.names) - len(classes.lesions) :] == classes.lesions
    assert (classes.lesions == ()) == (granularity == "C")


@pytest.mark.parametrize(("scope", "granularity"), ALL)
def test_every_class_has_a_source_and_no_structure_lies_in_a_wrong_one(scope, granularity):
    classes = ClassMap.of(scope, granularity)
    merges = {name: classes.class_of(name) for name in structures_of(scope)}
    assert misplaced(merges) == {}
    sources = set(merges.values())
    if scope != "phantom":  # one patient doesn't show every rib and vertebra
        assert sources | {BACKGROUND} == set(classes.names)
    assert sources <= set(classes.names)


def test_coarse_classes_are_those_of_an_atlas():
    chest, abdomen = ClassMap.of("chest", "C"), ClassMap.of("abdomen", "C")
    expected = {
        "lung_upper_lobe_left": "lung", "kidney_right": "kidney", "kidney_cyst_left": "kidney", "rib_left_7": "ribs",
        "costal_cartilages": "ribs", "vertebrae_T5": "spine", "sacrum": "spine", "inferior_vena_cava": "vena cava",
        "atrial_appendage_left": "heart", "autochthon_left": "muscles", "trachea": "airway", "liver": "liver",
        "gallbladder": BACKGROUND, "adrenal_gland_left": BACKGROUND, "humerus_left": BACKGROUND,
        "thyroid_gland": BACKGROUND, "small_bowel": BACKGROUND, "duodenum": BACKGROUND, "colon": BACKGROUND,
        "pulmonary_vein": BACKGROUND, "pulmonary artery": BACKGROUND, "brachiocephalic_trunk": BACKGROUND,
        "scapula_left": BACKGROUND, "spinal_cord": BACKGROUND, "brain": BACKGROUND, "emphysema": "lung",
        "pleural effusion or thickening": BACKGROUND, "pneumothorax": BACKGROUND,
    }  # fmt: skip
    assert {name: chest.class_of(name) for name in expected} == expected
    expected = {
        "liver_segment_4": "liver", "hepatic_vessel": "liver", "pancreas_tail": "pancreas", "lung_left": "lung",
        "postcava": "inferior vena cava", "liver_lesion": "liver", "kidney_lesion": "kidney", "duodenum": BACKGROUND,
        "intestine": BACKGROUND, "colon": BACKGROUND, "rectum": BACKGROUND, "prostate": BACKGROUND,
        "celiac_trunk": BACKGROUND, "superior_mesenteric_artery": BACKGROUND, "adrenal_gland_left": BACKGROUND,
        "common_bile_duct": BACKGROUND, "portal_vein_and_splenic_vein": BACKGROUND, "liver": "liver",
    }  # fmt: skip
    assert {name: abdomen.class_of(name) for name in expected} == expected


RELEASED_ERRORS = {  # by hand, from the released tables
    ("chest", "config"): {
        "humerus": "lung", "thyroid_gland_left": "stomach", "thyroid_gland_right": "stomach", "thymus": "stomach",
        "gallbladder": "liver", "adrenal_gland_left": "kidney", "adrenal_gland_right": "kidney",
        "pulmonary_trunk": "lung", "brachiocephalic_trunk": "heart", "clavicula": "ribs", "scapula": "ribs",
        "pleural effusion or thickening": "lung", "pneumothorax": "lung",
    },
    ("chest", "example"): {
        "gallbladder": "liver", "left adrenal gland": "kidney", "right adrenal gland": "kidney", "airway": "trachea",
        "small bowel": "stomach", "duodenum": "stomach", "colon": "stomach", "pulmonary vein": "lung",
        "pulmonary artery": "lung", "head and neck vessels": "heart", "portal vein and splenic vein": "liver",
        "upper limb bones": "ribs", "spinal cord": "spine", "pleural effusion or thickening": "lung",
        "pneumothorax": "lung",
    },
    ("abdomen", "config"): {
        "duodenum": "stomach", "intestine": "stomach", "colon": "stomach", "rectum": "stomach", "prostate": "bladder",
        "celiac_trunk": "aorta", "celiac_aa": "aorta", "superior_mesenteric_artery": "aorta", "veins": "postcava",
        "adrenal_gland_left": "kidney", "adrenal_gland_right": "kidney", "common_bile_duct": "liver",
        "portal_vein_and_splenic_vein": "liver",
    },
}  # fmt: skip


@pytest.mark.parametrize(("scope", "names"), RELEASED_ERRORS)
def test_all_errors_of_the_released_tables_are_found_and_nothing_else(scope, names):
    assert misplaced(released(scope, names)) == RELEASED_ERRORS[scope, names]


@pytest.mark.parametrize(("scope", "names"), RELEASED_ERRORS)
def test_what_the_release_misplaces_is_background_here(scope, names):
    classes = ClassMap.of(scope, "C")
    merged = released(scope, names)
    structures = [name for name in RELEASED_ERRORS[scope, names] if name not in ("thymus", "airway")]
    if names == "example":  # groups that the release made: their parts are asked
        structures = [name for name in structures if name not in ("head and neck vessels", "upper limb bones")]
        structures += ["subclavian_artery_left", "clavicula_right"]
    assert {classes.class_of(name) for name in structures} == {BACKGROUND}
    with pytest.raises(BadInput, match="no list"):
        released("phantom")
    assert set(merged.values()) == set(content()["released"][scope]["coarse"]) - {BACKGROUND}


def test_the_two_released_lists_of_chest_labels_disagree_on_thirteen_numbers():
    pairs = zip(*(content()["released"]["chest"][names] for names in ("config", "example")), strict=True)
    apart = [k for k, (a, b) in enumerate(pairs, 1) if not (contains(a, b) or contains(b, a))]
    assert apart == [4, 17, 18, 19, 23, 25, 26, 27, 28, 29, 31, 33, 34]


@given(st.sampled_from(structures_of("abdomen")), st.sampled_from(ClassMap.of("abdomen", "C").names[1:]))
def test_a_planted_error_is_found_wherever_it_is_planted(structure, whole):
    classes = ClassMap.of("abdomen", "C")
    merges = {name: classes.class_of(name) for name in structures_of("abdomen")} | {structure: whole}
    right = classes.class_of(structure) == whole
    assert misplaced(merges) == ({} if right else {structure: whole})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(GRANULARITIES))
def test_painting_equals_a_plain_loop_in_which_the_higher_class_wins(seed, granularity):
    rng = np.random.default_rng(seed)
    classes = ClassMap.of("abdomen", granularity)
    names = dict(enumerate(["liver segment 1", "hepatic vessel", "duodenum", "left kidney"], 1))
    masks = {name: rng.random((2, 3, 4)) < 0.4 for name in ("liver lesion", "pancreas head", "veins")}
    labels = rng.integers(0, 5, (2, 3, 4))
    lesions = {"kidney lesion": rng.random((2, 3, 4)) < 0.4, "liver lesion": rng.random((2, 3, 4)) < 0.4}
    target = classes.of_labels(label_map(labels, names, masks), lesions)
    for at in np.ndindex(2, 3, 4):
        here = [names[labels[at]]] if labels[at] else []
        here += [name for name, mask in [*masks.items(), *lesions.items()] if mask[at]]
        assert target[at] == max([classes.names.index(classes.class_of(name)) for name in here], default=0)
    assert target.dtype == np.uint8


def test_an_organ_beside_its_parts_is_no_class_of_its_own_and_alone_it_is_refused():
    fine, whole = ClassMap.of("abdomen", "F+L"), np.array([[[True, True, True, False]]])
    names = {1: "liver segment 1", 2: "liver segment 2", 3: "liver lesion"}
    beside = label_map([[[1, 2, 3, 0]]], names | {4: "liver"}, {"liver": whole})
    numbers = [fine.names.index(name) for name in names.values()]
    assert fine.of_labels(beside).tolist() == [[[*numbers, 0]]]
    first = label_map([[[4, 4, 4, 0]]], names | {4: "liver"}, {"liver segment 1": whole})  # as a folder is read
    assert fine.of_labels(first).tolist() == [[[numbers[0]] * 3 + [0]]]
    alone = label_map([[[1, 1, 1, 2]]], {1: "liver", 2: "hepatic vessel", 3: "liver lesion"})
    with pytest.raises(BadInput, match="finer than 'liver': give masks of liver segment 1"):
        fine.of_labels(alone)
    coarse = ClassMap.of("abdomen", "C+L")
    assert coarse.of_labels(alone).tolist() == [[[coarse.names.index("liver")] * 4]]
    with pytest.raises(BadInput, match="finer than"):
        fine.class_of("pancreas")


@pytest.mark.parametrize(
    ("labels", "lesions", "message"),
    [
        (label_map([[[1]]], {1: "prosthesis"}), {}, "no place for prosthesis"),
        (label_map([[[7]]], {1: "heart"}), {}, "label 7, which has no name"),
        (label_map([[[0]]], {1: "heart"}, {"stent": np.ones((1, 1, 1), bool)}), {}, "no place for stent"),
        (label_map([[[1]]], {1: "heart"}), None, "nothing says where they are"),
        (label_map([[[1]]], {1: "heart"}), {"tumour": np.ones((1, 1, 1), bool)}, "'tumour' is no lesion of chest"),
        (label_map([[[1]]], {1: "heart"}), {"emphysema": np.ones((1, 1, 2), bool)}, "give a bool mask on their grid"),
        (label_map([[[1]]], {1: "heart"}), {"emphysema": np.ones((1, 1, 1))}, "mask of emphysema is float64"),
    ],
)
def test_what_has_no_class_is_refused(labels, lesions, message):
    with pytest.raises(BadInput, match=message):
        ClassMap.of("chest", "C+L").of_labels(labels, lesions)


def test_a_name_without_voxels_is_no_reason_to_refuse():
    labels = label_map([[[1, 0]]], {1: "heart", 2: "prosthesis"})
    assert ClassMap.of("chest", "C").of_labels(labels).tolist() == [[[9, 0]]]


@pytest.mark.parametrize(("scope", "granularity"), [("head", "C"), ("chest", "F")])
def test_an_unknown_scope_or_granularity_is_refused(scope, granularity):
    with pytest.raises(BadInput, match="choose one of chest, abdomen, phantom"):
        ClassMap.of(scope, granularity)


@pytest.fixture(scope="module")
def patients():
    often = phantom.FindingRange(prevalence=0.9, effusion=0.6, cardiomegaly=0.5)
    return list(phantom.cohort(9, seed=5, findings=often))


def test_every_structure_of_a_phantom_but_single_ribs_and_vertebrae_is_a_fine_class(patients):
    fine = ClassMap.of("phantom", "F+L")
    drawn = {name for patient in patients for name in patient.labels.names.values()}
    merged = {name: fine.class_of(name) for name in drawn if fine.class_of(name) != name}
    assert {whole for whole in merged.values()} == {"ribs", "spine"}
    assert all((" rib " in name) == (whole == "ribs") for name, whole in merged.items())
    assert all(name.startswith("vertebrae") == (whole == "spine") for name, whole in merged.items())
    assert set(fine.names) - drawn == {BACKGROUND, "ribs", "spine", *fine.lesions}


def test_a_coarse_target_is_the_fine_one_merged(patients):
    coarse, fine = ClassMap.of("phantom", "C+L"), ClassMap.of("phantom", "F+L")
    table = np.array([0, *(coarse.names.index(coarse.class_of(name)) for name in fine.names[1:])])
    for patient in patients:
        assert np.array_equal(table[phantom_target(patient, "F+L")], phantom_target(patient, "C+L"))


def test_lesions_of_a_target_are_the_findings_and_all_else_is_anatomy(patients):
    classes = ClassMap.of("phantom", "C+L")
    first = len(classes.names) - len(classes.lesions)
    kinds = set()
    for patient in patients:
        with_lesions, anatomical = phantom_target(patient, "C+L"), phantom_target(patient, "C")
        assert with_lesions.dtype == np.uint8 and with_lesions.shape == patient.volume.shape
        inside = np.zeros(patient.volume.shape, bool)
        for finding in patient.findings:
            if finding.kind != "cardiomegaly":
                inside |= finding.mask
                assert np.all(with_lesions[finding.mask] >= classes.names.index(finding.kind))
                kinds.add(finding.kind)
        assert np.array_equal(with_lesions >= first, inside)
        assert np.array_equal(with_lesions[~inside], anatomical[~inside])
        heart, lung = (anatomical == classes.names.index(name) for name in ("heart", "lung"))
        assert np.array_equal(heart, patient.labels.binary("heart"))
        assert np.array_equal(lung, np.isin(patient.labels.labels, range(28, 33)))
    assert kinds == set(classes.lesions)
    assert any(f.kind == "cardiomegaly" for patient in patients for f in patient.findings)
