"""The protocol: one cohort for everything, fixed before anything is scored."""

import tomllib
from dataclasses import asdict

import pytest
from helpers_questions import asked

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.controls import controls_for
from ctvlm_lib.prompt.wording import STYLES
from ctvlm_lib.records import phantom, protocol
from ctvlm_lib.records.blind import BlindScore, OracleScore
from ctvlm_lib.records.phantom import FindingRange, PoseRange

__all__ = ["asked"]  # a fixture


@pytest.fixture
def fixed():
    return protocol.load()


def written(tmp_path, change):
    """A protocol file in which a text is replaced."""
    old, new = change
    text = protocol.PATH.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "protocol.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_the_cohort_of_the_protocol_is_the_generators_default(fixed):
    """So that tests, notebooks and experiments that draw without the protocol see the same kind of patients."""
    assert fixed._pose() == PoseRange()
    assert asdict(fixed._findings()) == asdict(FindingRange())


def test_a_patient_of_the_protocol_is_the_generators(fixed, tmp_path):
    first = next(fixed.patients("test", "quick", n=1, cache=tmp_path))
    alone = phantom.patient(0, 1003, fixed.shape, "A", phases=fixed.content["cohort"]["phases"])
    assert phantom.fingerprint(first) == phantom.fingerprint(alone)
    assert first.attributes["scanner"] == "A"
    assert next(fixed.patients("external", n=1, cache=tmp_path)).attributes["scanner"] == "B"


def test_no_patient_is_in_two_splits(fixed, tmp_path):
    names = [one.name for split in protocol.SPLITS for one in fixed.patients(split, n=3, cache=tmp_path)]
    assert len(set(names)) == 3 * len(protocol.SPLITS)


def test_a_larger_profile_begins_with_the_smaller_ones_patients(fixed):
    for split in protocol.SPLITS:
        assert fixed.size(split, "quick") <= fixed.size(split, "full") == fixed.size(split, "paper")


def test_external_patients_are_never_pooled_with_test(fixed, tmp_path):
    patients = {split: list(fixed.patients(split, n=2, cache=tmp_path)) for split in ("train", "test", "external")}
    with pytest.raises(BadInput, match="separately"):
        fixed.records(patients)
    records = fixed.records({"external": patients["external"]})
    assert {r.split for r in records} == {"test"} and {r.patient for r in records} <= {"phantom-1004-00000",
                                                                                      "phantom-1004-00001"}  # fmt: skip


def test_records_of_all_splits_are_balanced_together(fixed, tmp_path):
    patients = {split: list(fixed.patients(split, n=8, cache=tmp_path)) for split in ("train", "test")}
    records = fixed.records(patients)
    presence = [r for r in records if r.kind == "presence" and r.split == "test"]
    assert presence and sum(r.answer == "Yes" for r in presence) * 2 == len(presence)


def test_conditions_controls_and_tables_name_what_exists(fixed, asked):
    drawings = {style.drawing or "none" for style in STYLES.values()}
    assert set(fixed.content["conditions"]["order"]) == drawings
    made = {str(c).partition(" mm")[0].rstrip("0123456789. ") for c in controls_for("dual", fixed.content["controls"])}
    assert made == set(fixed.content["controls"]["order"])
    kinds = {record.kind for record in asked}
    for table in fixed.content["tables"].values():
        assert {*table["closed"], *table["open"]} <= kinds


def test_levels_of_the_blind_intervals_are_shared_out(fixed, asked):
    scores = fixed.blind(asked)
    plain = protocol.blind(asked)
    assert len(scores) == len(plain) == 18
    wider = [(one.high - one.low) - (other.high - other.low) for one, other in zip(scores, plain, strict=True)]
    assert min(wider) >= 0 and max(wider) > 0.02
    assert fixed.check(scores, []) == []


def test_a_cohort_that_shows_too_little_is_said_in_sentences(fixed):
    leaky = BlindScore("presence", "closed", True, 400, 100, 0.5, 0.61, 0.62, 0.57, 0.67)
    hard = OracleScore("size", False, 100, 0.9)
    first, second = fixed.check([leaky], [hard])
    assert first.startswith(
        "a blind reader of closed presence questions that name the region scores 0.62 (0.57 to 0.67)"
    )
    assert (
        second == "the oracle answers closed size questions that don't name a region in 0.900 of the cases, below 0.95"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("[limits]", "[limit]"), "lacks limits"),
        (("[split.validation]", "[split.valid]"), "lacks split.validation"),
        (("seed = 1003", "seed = 1001"), "two splits have the same seed"),
        (("power = 0.8", "power 0.8"), "isn't TOML"),
    ],
)
def test_a_damaged_protocol_is_refused(tmp_path, change, sentence):
    with pytest.raises(BadInput, match=sentence):
        protocol.load(written(tmp_path, change))


def test_nothing_is_scored_without_a_protocol(tmp_path):
    with pytest.raises(BadInput, match="nothing is scored without one"):
        protocol.load(tmp_path / "protocol.toml")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: p.size("testing"), "no split is called 'testing'"),
        (lambda p: p.size("test", "fast"), "unknown profile 'fast'"),
        (lambda p: p.patients("test", n=10_000), "the protocol has 300 test patients"),
        (lambda p: p.seeds("fast"), "unknown profile"),
    ],
)
def test_wishes_outside_the_protocol_are_refused(fixed, call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call(fixed)


def test_the_file_says_what_was_seen_before_each_change(fixed):
    content = tomllib.loads(protocol.PATH.read_text(encoding="utf-8"))
    assert len(content["changes"]) == content["version"] - 1
