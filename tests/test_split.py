"""Splits: fractions hold within a patient, newcomers move nearly nobody, every sort of leak is found."""

import gzip
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_record import record

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import FRACTIONS, assign_splits, check_leaks, file_hash, find_leaks
from ctvlm_lib.records.similar import near_duplicates, shingles

REPORT = (
    "The lungs are clear without nodule or consolidation and the heart is of normal size while the liver shows one"
    " cyst of twelve millimetres in its right lobe and no other lesion is seen in the upper abdomen"
)


def cohort(patients: int, each: int = 1, **changes) -> list:
    return [
        record(id=f"p{p}-{q}", patient=f"p{p}", volume=f"ct/p{p}.nii.gz", **changes)
        for p in range(patients) for q in range(each)
    ]  # fmt: skip


def homes(records) -> dict[str, str]:
    return {r.patient: r.split for r in records}


@pytest.mark.parametrize("name", list(FRACTIONS))
def test_the_papers_fractions_are_exact_where_they_can_be(name):
    """contour.txt §4 "70, 10, 20 %", "8:1:1"; §1 "80 : 20"; dualbox.txt §4.1 "70/10/20", "80/10/10"."""
    assert sum(map(Fraction, map(str, FRACTIONS[name].values()))) == 1
    counts = Counter(homes(assign_splits(cohort(200, each=2), name)).values())
    assert counts == {split: 200 * share for split, share in FRACTIONS[name].items()}


def test_all_of_a_patients_records_go_together_and_keep_their_order_and_the_rest_of_their_fields():
    before = cohort(30, each=4)
    after = assign_splits(before)
    assert [replace(r, split="train") for r in after] == before
    assert all(len({r.split for r in after if r.patient == f"p{p}"}) == 1 for p in range(30))


@given(st.integers(40, 90), st.integers(1, 6), st.integers(0, 5), st.sampled_from(list(FRACTIONS)))
def test_in_each_stratum_the_fractions_hold_within_one_patient(patients, strata, seed, name):
    def stratum(r):
        return int(r.patient[1:]) % strata

    try:
        made = assign_splits(cohort(patients), name, key=stratum, seed=seed)
    except BadInput:
        assume(False)
    for s in range(strata):
        inside = [split for patient, split in homes(made).items() if int(patient[1:]) % strata == s]
        for split, share in FRACTIONS[name].items():
            assert abs(inside.count(split) - share * len(inside)) < 1


def test_many_small_strata_do_not_starve_the_small_splits():
    counts = Counter(homes(assign_splits(cohort(1000), key=lambda r: r.patient)).values())
    assert 60 < counts["validation"] < 140 and 150 < counts["test"] < 250  # 100 and 200 expected, about 4 sd


def test_the_split_depends_on_the_seed_and_not_on_the_order():
    before = cohort(50)
    assert homes(assign_splits(before)) == homes(assign_splits(before[::-1]))
    assert homes(assign_splits(before)) != homes(assign_splits(before, seed=1))
    first = "".join(split[1] for split in homes(assign_splits(before[:20])).values())  # r, a or e
    assert first == "arerreererrrarrrrrrr", "another machine, another split"


@given(st.integers(20, 60), st.integers(0, 20))
@example(20, 0)
def test_one_more_patient_moves_at_most_one_other_at_each_cut(patients, seed):
    before = homes(assign_splits(cohort(patients), seed=seed))
    after = homes(assign_splits(cohort(patients + 1), seed=seed))
    assert sum(after[patient] != split for patient, split in before.items()) <= 2  # three splits have two cuts


def test_a_patient_with_several_strata_belongs_to_their_combination():
    mixed = [replace(r, kind=("size", "organ", "phase")[i % 3]) for i, r in enumerate(cohort(40, each=2))]
    made = assign_splits(mixed, key=lambda r: r.kind)
    assert len(homes(made)) == 40 and not find_leaks(made)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ("60/40", "no split is called '60/40'; choose one of 70/10/20"),
        ({"train": 0.7, "test": 0.2}, "sum to 1"),
        ({"train": 1.2, "test": -0.2}, "positive"),
        ({"train": 0.5, "valid": 0.5}, "train, validation, test"),
        ({}, "sum to 1"),
    ],
)
def test_fractions_that_cannot_be_used_are_refused(fractions, message):
    with pytest.raises(BadInput, match=message):
        assign_splits(cohort(10), fractions)


def test_a_split_without_a_patient_is_refused():
    with pytest.raises(BadInput, match="3 patients leave the split validation empty; give more patients"):
        assign_splits(cohort(3))


# ------------------------------------------------------------------------------------------------------------- leaks


def pair(**second) -> list:
    """Two records that share nothing, in training and test; ``second`` makes the second one share something."""
    first = record(id="a", patient="p1", volume="ct/one.nii.gz", split="train")
    return [first, record(**{"id": "b", "patient": "p2", "volume": "ct/two.nii.gz", "split": "test"} | second)]


def sorts(records, *args, **options) -> list[str]:
    return [leak.what for leak in find_leaks(records, *args, **options)]


def test_a_clean_split_passes():
    check_leaks(pair())
    check_leaks(assign_splits(cohort(50, each=3)), volume_hash=lambda r: r.volume)
    check_leaks([])


def test_a_patient_in_two_splits_is_found_and_named():
    with pytest.raises(BadInput, match=r"^the splits leak: patient p1 in train and test \(records a, b\); split again"):
        check_leaks(pair(patient="p1"))


def test_a_volume_or_an_id_in_two_splits_is_found():
    assert sorts(pair(volume="ct/one.nii.gz")) == ["volume"]
    assert sorts(pair(id="a")) == ["id"]


def test_the_same_name_in_another_data_set_is_another_patient_unless_they_share_scans():
    other = {"dataset": "AbdomenAtlas", "patient": "p1", "volume": "ct/one.nii.gz", "id": "a"}
    assert sorts(pair(**other)) == []
    first, second = pair(patient="train_1")
    together = [
        replace(first, dataset="CT-RATE", patient="train_1"),
        replace(second, dataset="RadGenome-ChestCT"),
    ]
    assert sorts(together) == ["patient"]


def test_two_reconstructions_of_a_scan_may_not_cross_even_as_two_patients():
    first, second = pair(volume="b/train_1_a_2.nii.gz")
    crossing = [replace(first, volume="a/train_1_a_1.nii.gz"), second]
    with pytest.raises(BadInput, match="reconstructions of scan train_1_a in train and test"):
        check_leaks(crossing)
    assert sorts([crossing[0], replace(second, volume="b/train_1_b_1.nii.gz")]) == []  # another scan
    assert sorts([crossing[0], replace(second, volume="b/train_10_a_1.nii.gz")]) == []  # another patient
    # so a split over such records is refused, not made
    apart = [replace(r, patient=r.id, volume=f"x/train_1_a_{i}.nii.gz") for i, r in enumerate(cohort(20))]
    with pytest.raises(BadInput, match="scan train_1_a"):
        assign_splits(apart)


def test_a_copy_of_a_volume_under_another_name_is_found_by_its_content(tmp_path):
    for name, content, mtime in (("one", b"voxels", 1), ("two", b"voxels", 2), ("three", b"others", 3)):
        (tmp_path / "ct").mkdir(exist_ok=True)
        with gzip.GzipFile(tmp_path / "ct" / f"{name}.nii.gz", "wb", mtime=mtime) as file:
            file.write(content)
    assert (tmp_path / "ct/one.nii.gz").read_bytes() != (tmp_path / "ct/two.nii.gz").read_bytes()
    assert sorts(pair(), file_hash(tmp_path)) == ["content"]
    assert sorts(pair(volume="ct/three.nii.gz"), file_hash(tmp_path)) == []
    with pytest.raises(BadInput, match="volume ct/none.nii.gz of record b can't be read"):
        check_leaks(pair(volume="ct/none.nii.gz"), file_hash(tmp_path))


def test_each_volume_is_hashed_once():
    asked = []
    find_leaks(cohort(3, each=4), lambda r: asked.append(r.volume) or r.volume)
    assert sorted(asked) == sorted(set(asked)) and len(asked) == 3


def test_near_duplicate_reports_across_splits_are_found():
    texts = {"kind": "report", "form": "open", "choices": ()}
    nearly = REPORT.replace("The lungs", "the LUNGS").replace("upper abdomen", "upper abdomen.")
    first, second = (replace(r, **texts) for r in pair())
    copied = [replace(first, answer=REPORT), replace(second, answer=nearly)]
    with pytest.raises(BadInput, match=r"near-duplicate texts \(1\.00 alike\) in train and test \(records a, b\)"):
        check_leaks(copied)
    assert sorts(copied, text_similarity=None) == []
    assert sorts([copied[0], replace(copied[1], split="train")]) == []
    edited = [copied[0], replace(second, answer=nearly.replace("twelve", "nine"))]
    assert sorts(edited) == [] and sorts(edited, text_similarity=0.6) == ["text"]
    assert sorts([replace(r, answer="No finding.") for r in copied]) == []  # too short to say anything
    assert sorts([replace(r, kind="location") for r in copied]) == []  # not a report
    assert sorts([replace(r, kind="location") for r in copied], text=lambda r: r.answer) == ["text"]
    with pytest.raises(BadInput, match="text_similarity is 0"):
        check_leaks(copied, text_similarity=0)


def test_only_the_first_offenders_are_listed_and_the_rest_counted():
    crossing = [r for p in cohort(9, each=2) for r in [replace(p, split="test" if p.id.endswith("1") else "train")]]
    with pytest.raises(BadInput) as problem:
        check_leaks(crossing, shown=2)
    assert str(problem.value).count("patient p") == 2 and "and 7 more; volume" in str(problem.value)


few_words = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


@given(st.lists(st.tuples(few_words, st.sampled_from(["x", "y", "z"])), max_size=12), st.floats(0.05, 1))
def test_the_quick_search_finds_what_comparing_every_pair_finds(items, threshold):
    texts, groups = [t for t, _ in items], [g for _, g in items]
    unique = {(shingles(t, 2), g): i for i, (t, g) in reversed(list(enumerate(items))) if shingles(t, 2)}
    expected = set()
    for (a, g), i in unique.items():
        for (b, h), j in unique.items():
            if i < j and g != h and len(a & b) / len(a | b) >= threshold - 1e-12:
                expected.add((i, j))
    found = [(i, j) for i, j, _ in near_duplicates(texts, threshold, groups, run=2)]
    assert len(found) == len(set(found)) and set(found) == expected


def test_thousands_of_reports_are_compared_in_moments():
    texts = [f"{REPORT} patient {i} has {i % 7} further findings numbered {i * 31} and {i * 17}" for i in range(4000)]
    texts += [texts[5]]
    groups = ["train"] * 4000 + ["test"]
    pairs = [(i, j) for i, j, alike in near_duplicates(texts, 0.999, groups) if alike == 1]
    assert pairs == [(5, 4000)]
