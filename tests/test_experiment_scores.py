"""From answers to scores: strata stay apart, differences are paired, thresholds come from validation."""

import numpy as np
import pandas as pd
import pytest
from helpers_questions import asked, cohort  # noqa: F401

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, baselines, scores
from ctvlm_lib.experiments.answers import AS_ASKED, answer_table
from ctvlm_lib.records import protocol


@pytest.fixture
def records(asked):  # noqa: F811
    return [r for r in asked if r.split == "test" and r.form == "closed" and r.region is not None]


def table_of(records, rate, condition, seed=0, control=AS_ASKED):
    """Answers that are right at a rate, with a confidence that knows a little."""
    rng = np.random.default_rng([seed, len(condition)])
    right = rng.random(len(records)) < rate
    said = []
    for record, hit in zip(records, right, strict=True):
        wrong = [c for c in (record.choices or ("Yes", "No")) if c != record.answer]
        said.append(record.answer if hit else wrong[0])
    sure = np.clip(0.6 + 0.25 * right + rng.normal(0, 0.1, len(records)), 0, 1)
    return answer_table(records, said, sure, condition=condition, control=control)


@pytest.fixture
def scored(records):
    return score_closed(
        pd.concat([table_of(records, 0.5, "none"), table_of(records, 0.8, "contour")], ignore_index=True)
    )


def test_accuracies_are_means_within_their_group(scored):
    found = scores.accuracies(scored)
    for row in found.itertuples():
        group = scored[(scored["condition"] == row.condition) & (scored["stratum"] == row.stratum)]
        assert row.accuracy == pytest.approx(group["correct"].mean())
        assert row.low < row.accuracy < row.high
        assert row.patients == group["patient"].nunique()
    assert set(found["stratum"]) == {"named", "unnamed"}


def test_chance_is_one_over_the_number_of_choices(scored):
    found = scores.accuracies(scored, ["condition", "stratum", "kind"]).query("condition == 'none'")
    chance = found.set_index(["kind", "stratum"])["chance"]
    assert chance["presence", "named"] == 0.5
    assert chance["abnormality", "named"] == 0.25


def test_a_difference_is_that_of_the_same_questions(scored, records):
    found = scores.difference(scored, {"condition": "contour"}, {"condition": "none"}, "named")
    named = scored[scored["stratum"] == "named"].pivot(index="id", columns="condition", values="correct").astype(float)
    assert found.value == pytest.approx((named["contour"] - named["none"]).mean())
    assert found.low > 0
    assert found.p < 0.01


def test_differences_tell_what_could_have_been_found(scored):
    rows = scores.differences(scored, [({"condition": "contour"}, {"condition": "none"})])
    assert rows["stratum"].tolist() == ["named", "unnamed"]
    assert (rows["detectable"] > 0).all()
    assert rows["left"].tolist() == ["contour", "contour"]


def test_calibration_is_fitted_on_validation_and_told_for_test(records):
    tables = [score_closed(table_of(records, 0.7, "contour", seed)) for seed in (1, 2)]
    row = scores.calibrations(*tables).iloc[0]
    assert row["answers"] == len(records)
    assert row["temperature"] > 0
    assert 0 <= row["ECE after"] <= 1


def test_abstention_follows_the_targets_of_the_protocol(records):
    tables = [score_closed(table_of(records, 0.7, "contour", seed)) for seed in (1, 2)]
    rows = scores.abstentions(*tables, "contour")
    assert rows["target"].tolist() == protocol.load().content["abstention"]["target_error"]
    assert rows["answered"].is_monotonic_increasing  # more errors allowed, more answers given
    assert (rows["errors on validation"] <= rows["target"]).all()


def test_the_floor_is_near_chance_and_the_roof_near_one(asked, cohort):  # noqa: F811
    floor = scores.accuracies(score_closed(baselines.blind_table([r for r in asked if r.form == "closed"])))
    roof = scores.accuracies(score_closed(baselines.oracle_table(asked, cohort)))
    assert (roof["accuracy"] > 0.95).all()
    for row in floor.itertuples():
        error = (row.chance * (1 - row.chance) / row.questions) ** 0.5
        assert abs(row.accuracy - row.chance) < 4 * error
    assert set(floor["control"]) == {"text only: bag of words"}
    assert set(roof["control"]) == {"oracle"}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t: scores.accuracies(t, ["condition"]), "never pooled"),
        (lambda t: scores.accuracies(t.drop(columns="correct")), "aren't scored yet"),
        (lambda t: scores.accuracies(t.assign(seed=np.arange(len(t)) % 2)), "holds several seeds"),
        (
            lambda t: scores.difference(t, {"condition": "dual"}, {"condition": "none"}, "named"),
            "no named answers with {'condition': 'dual'}",
        ),
    ],
)
def test_what_would_mislead_is_refused(scored, call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call(scored)


def test_stored_answers_score_as_the_answers_themselves(scored, records, tmp_path):
    path = answers.save(scored, records, tmp_path / "a.npz")
    again = score_closed(answers.load(path, records))
    pd.testing.assert_frame_equal(scores.accuracies(again), scores.accuracies(scored))
