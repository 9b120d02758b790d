"""What the words alone tell (nothing), and what the image tells (the answer)."""

from dataclasses import replace

import numpy as np
import pytest
from helpers_questions import asked, cohort, loose

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import phantom
from ctvlm_lib.records.blind import blind, oracle
from ctvlm_lib.records.oracle import oracle_answers
from ctvlm_lib.records.questions import candidates

__all__ = ["asked", "cohort", "loose"]  # fixtures


def test_blind_readers_stay_at_chance(asked):
    scores = blind(asked, confidence=0.99)
    assert len(scores) == 18
    for score in scores:
        assert score.at_chance, score
        assert score.majority == pytest.approx(score.chance), score
    assert {round(s.chance, 3) for s in scores if s.form == "closed"} == {0.25, 0.5}
    assert sum(score.records for score in scores) > 3000


def test_blind_readers_beat_chance_where_nothing_is_balanced(loose):
    """What the balance is for; and the readers do read."""
    names = sorted({record.patient for record in loose})
    train = set(names[::2])
    split = [replace(record, split="train" if record.patient in train else "test") for record in loose]
    scores = {(s.kind, s.form, s.names_region): s for s in blind(split)}
    for key in (("abnormality", "closed", True), ("phase", "closed", False), ("presence", "closed", True)):
        assert scores[key].low > scores[key].chance and scores[key].majority > scores[key].chance


def test_blind_readers_find_a_planted_leak(asked):
    """An answer that always stands first is found by the lettered choices."""
    planted = [
        replace(r, choices=(r.answer, *(c for c in r.choices if c != r.answer))) if r.choices else r for r in asked
    ]
    organ = next(s for s in blind([r for r in planted if r.kind == "organ" and r.choices]))
    assert organ.bag_of_words > 0.9 and not organ.at_chance


def test_oracle_answers_the_closed_questions(cohort, asked):
    scores = oracle(asked, cohort)
    assert {(s.kind, s.names_region) for s in scores} == {
        *((kind, named) for kind in ("presence", "abnormality", "location", "size") for named in (True, False)),
        ("organ", False), ("phase", False),
    }  # fmt: skip
    for score in scores:
        assert score.accuracy >= 0.95, score


def test_oracle_measures_and_reads_no_attribute(cohort, asked):
    """With attributes that say nothing it answers the same."""
    some = [record for record in asked if record.form == "closed" and record.patient == cohort[0].name]
    lied = [replace(f, kind="?", size_mm=0.0, density="?", severity="?", region="?") for f in cohort[0].findings]
    silent = replace(cohort[0], findings=tuple(lied), attributes={})
    assert len(some) > 10
    assert oracle_answers(some, [silent]) == oracle_answers(some, [cohort[0]])
    wrong = [replace(r, answer="No" if r.answer == "Yes" else "Yes") for r in some if r.kind == "presence"]
    assert all(score.accuracy < 0.05 for score in oracle(wrong, [silent]))


def test_oracle_works_on_the_second_scanner():
    patients = list(phantom.cohort(24, seed=22, scanner="B"))
    records = [r for r in (r for one in patients for r in candidates(one)) if r.form == "closed"]
    answers = oracle_answers(records, patients)
    assert np.mean([answers[record.id] == record.answer for record in records]) >= 0.95


def test_what_can_t_be_scored(cohort, asked):
    for call, words in (
        (lambda: blind([r for r in asked if r.split == "test"]), "both 'train' and 'test'"),
        (lambda: blind(asked, confidence=95), "between 0 and 1"),
        (lambda: oracle(asked, cohort[:3]), "isn't among those given"),
        (lambda: oracle_answers(asked, cohort), "leave the open ones out"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
