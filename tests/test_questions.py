"""Questions on the phantom cohort: true, of both strata, exactly balanced, the same on every run."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from helpers_questions import HALVES, asked, cohort, loose

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import load as load_mask
from ctvlm_lib.records import Record, check_leaks, find_leaks, phantom, read_jsonl, write_jsonl
from ctvlm_lib.records.balance import balance, wording_key
from ctvlm_lib.records.questions import LUNG_KINDS, NONE, ask, candidates, save_case
from ctvlm_lib.records.report import focal_findings, report
from ctvlm_lib.volume import load as load_volume

__all__ = ["asked", "cohort", "loose"]  # fixtures


def _groups(records):
    """(wording, split) → records."""
    groups = defaultdict(list)
    for record in records:
        if record.kind != "report":
            groups[wording_key(record), record.split].append(record)
    return groups


# ----------------------------------------------------------------------------------------------------------- truth


def test_every_answer_is_true_of_the_findings(cohort, loose):
    patients = {one.name: one for one in cohort}
    for record in loose:
        one = patients[record.patient]
        lesion = focal_findings(one).get(record.region)
        kind = lesion.kind if lesion else NONE
        named = re.search("|".join(LUNG_KINDS), record.question)
        if record.kind == "presence":
            assert record.answer == ("Yes" if lesion and (not named or named[0] == kind) else "No")
        elif record.kind == "abnormality":
            assert record.answer == kind
        elif record.kind == "organ":
            assert record.answer == record.region
        elif record.kind == "phase":
            assert record.answer == one.attributes["phase"]
        elif record.kind == "report":
            assert record.answer == report(one).text
        elif record.kind == "size":
            assert _size_fits(record, lesion.size_mm), (record.answer, lesion.size_mm)
        else:
            assert record.kind == "location" and _lies_there(one, record, lesion)


def _size_fits(record, size):
    numbers = [int(number) for number in re.findall(r"\d+", record.answer)]
    if record.form == "open":
        return abs(numbers[0] - size) <= 5.0001
    if record.answer.startswith("more"):
        return size > numbers[0]
    return (numbers[0] if len(numbers) == 2 else 0) < size <= numbers[-1]


def _lies_there(one, record, lesion):
    """The words against plain differences of voxel indices: up is +d, back is +h or, if the affine says so, −h."""
    part = record.answer.removeprefix("in its ").split()
    middles = [np.argwhere(mask).mean(axis=0) for mask in (lesion.mask, one.labels.binary(record.region))]
    up, back, _ = middles[0] - middles[1]
    back *= np.sign(one.volume.affine[1, 1])
    return (part[0] == "upper") == (up > 0) and (part[1] == "posterior") == (back > 0)


def test_strata_hold_the_same_questions(loose):
    """Each question on a region stands in both strata, with one answer; the organ only where it isn't named."""
    answers = {}
    for record in loose:
        if record.region and record.kind != "organ":
            assert record.names_region == (record.region in record.question)
            key = record.id.rsplit(":", 1)[0]
            assert answers.setdefault(key, record.answer) == record.answer
    assert all(not record.names_region for record in loose if record.kind in ("organ", "phase", "report"))
    assert all(record.region is None for record in loose if record.kind in ("phase", "report"))
    counts = Counter(record.names_region for record in loose if record.region and record.kind != "organ")
    assert counts[True] == counts[False]


def test_unnamed_questions_hold_no_word_of_anatomy(loose):
    words = {word for s in anatomy.structures().values() for word in (s.name, s.radlex, *s.synonyms, *s.radgenome)}
    words |= {part for region in phantom.REGIONS for part in region.split()} | {"left", "right", "lobe", "lung"}
    longest_first = sorted(map(re.escape, words - {""}), key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(longest_first) + r")s?\b", re.IGNORECASE)
    texts = {text for r in loose if not r.names_region and r.region
             for text in (r.question, *(r.choices if r.kind not in ("organ", "location") else ()))}  # fmt: skip
    assert len(texts) > 20
    assert not [text for text in texts if pattern.search(text)]
    assert pattern.search("Is there a cyst in the left kidney?")


def test_choices_hold_the_answer_once(asked):
    for record in asked:
        if record.choices:
            assert len(set(record.choices)) == 4 and record.choices.count(record.answer) == 1
        elif record.form == "closed":
            assert record.answer in ("Yes", "No")
    kinds = {(record.kind, record.form) for record in asked}
    two_forms = ("abnormality", "location", "size", "organ", "phase")
    both = {(kind, form) for kind in two_forms for form in ("open", "closed")}
    assert kinds == both | {("presence", "closed"), ("report", "open")}


def test_each_wording_can_be_prompted_and_undone(asked):
    """All styles of the papers fit these questions, and nothing is lost; only red normalises terms."""
    once = {wording_key(record): record for record in asked if record.kind != "report"}
    for record in once.values():
        for style in ("blue-suffix", "blue-prefix", "box", "dual"):
            worded = record.worded(style)
            assert worded.question != record.question and worded.worded("plain") == record


def test_the_distractor_is_the_nearest_region_with_a_finding(cohort, loose):
    patients = {one.name: one for one in cohort[:15]}
    seen = {}
    for record in loose:
        if record.patient in patients and record.region:
            assert seen.setdefault((record.patient, record.region), record.distractor) == record.distractor
    for (name, region), distractor in seen.items():
        others = set(focal_findings(patients[name])) - {region}
        assert distractor != region and distractor in (others or phantom.REGIONS)
        middle = {k: _middle(patients[name], k) for k in others or {distractor}}
        own = _middle(patients[name], region)
        gap = {k: np.linalg.norm(v - own) for k, v in middle.items()}
        assert gap[distractor] == min(gap.values())


# --------------------------------------------------------------------------------------------------------- balance


def test_each_answer_and_each_letter_is_equally_frequent(asked):
    """Exactly, among the questions of the same words and choices, in each split; so also per region that is named."""
    groups = _groups(asked)
    assert len(groups) > 200
    for (key, _), records in groups.items():
        counts = Counter(record.answer for record in records)
        assert len(set(counts.values())) == 1, key
        if records[0].form == "closed":
            assert set(counts) == set(records[0].choices or ("Yes", "No"))
        else:
            assert len(counts) >= 2
        if records[0].choices:
            letters = Counter(record.choices.index(record.answer) for record in records)
            assert sorted(letters) == [0, 1, 2, 3] and len(set(letters.values())) == 1


def test_open_questions_of_the_same_words_have_the_same_answers_in_both_splits(asked):
    answers = defaultdict(lambda: defaultdict(set))
    for (key, split), records in _groups(asked).items():
        if key[1] == "open":
            answers[key][split] = {record.answer for record in records}
    assert answers
    both = [splits for splits in answers.values() if len(splits) == 2]
    assert len(both) > 30 and all(splits["train"] == splits["test"] for splits in both)


def test_balancing_only_drops_and_reorders(loose):
    kept = balance(loose)
    plain = {record.id: record for record in loose}
    assert 0.4 * len(loose) < len(kept) < 0.9 * len(loose)
    names = {record.id for record in kept}
    assert [record.id for record in kept] == [record.id for record in loose if record.id in names]
    for record in kept:
        assert set(record.choices) == set(plain[record.id].choices)
        assert replace(record, choices=plain[record.id].choices) == plain[record.id]
    assert {record.id for record in balance(kept)} == names
    assert sum(record.kind == "report" for record in kept) == 120


def test_same_seed_same_records(cohort, asked, loose):
    assert ask(cohort, fractions=HALVES) == asked
    assert {r.id: r for r in balance(loose[::-1])} == {r.id: r for r in balance(loose)}
    other = ask(cohort[:40], split="test", seed=1)
    assert other != ask(cohort[:40], split="test", seed=0)
    assert {record.split for record in other} == {"test"}


def test_a_split_is_balanced_by_itself():
    """One split's surplus of an answer is dropped, not set against the other's lack of it."""
    base = {"dataset": "phantom", "volume": "ct.nii.gz", "mask": None, "region": "liver", "distractor": None,
            "kind": "presence", "form": "closed", "question": "Is there a cyst in the liver?", "choices": (),
            "names_region": True, "style": "plain"}  # fmt: skip
    made = [
        Record(**base, id=f"{split}{answer}{n}", patient=f"{split}{n}", split=split, answer=answer)
        for split, yes, no in (("train", 7, 2), ("test", 1, 5))
        for answer, count in (("Yes", yes), ("No", no))
        for n in range(count)
    ]
    counts = Counter((record.split, record.answer) for record in balance(made))
    assert counts == {("train", "Yes"): 2, ("train", "No"): 2, ("test", "Yes"): 1, ("test", "No"): 1}
    assert balance([record for record in made if record.answer == "Yes"]) == []


# ------------------------------------------------------------------------------------------------ files and errors


def test_records_survive_a_file_and_leak_nothing(asked, tmp_path):
    path = write_jsonl(asked, tmp_path / "questions.jsonl")
    assert read_jsonl(path) == asked
    check_leaks(asked)
    moved = [replace(asked[0], split="test" if asked[0].split == "train" else "train"), *asked[1:]]
    assert {leak.what for leak in find_leaks(moved)} >= {"patient", "volume"}


def test_a_saved_case_lies_where_its_records_say(cohort, tmp_path):
    save_case(cohort[0], tmp_path)
    record = next(record for record in candidates(cohort[0]) if record.region == "liver")
    scan = load_volume(tmp_path / record.volume)
    labels = load_mask(tmp_path / record.mask, like=scan, names="vista3d")
    assert labels.volume_ml("liver") == pytest.approx(cohort[0].labels.volume_ml("liver"), rel=1e-4)


def test_what_can_t_be_asked(cohort):
    for call, words in (
        (lambda: ask([]), "no patients"),
        (lambda: ask([cohort[0], cohort[0]]), "given twice"),
        (lambda: ask(cohort[:1]), "empty"),
    ):
        with pytest.raises(BadInput, match=words):
            call()


def _middle(one, region):
    return one.volume.mm_of(np.argwhere(one.labels.binary(region)).mean(axis=0))
