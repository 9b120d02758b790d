"""Intervals over patients: what is drawn, how wide they are, and how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import (
    Interval,
    bootstrap_of_sums,
    mean_of_sums,
    over_seeds,
    patient_bootstrap,
    patient_draws,
    sums_of_patients,
)


def clustered(patients: int, rows: int, spread: float, seed: int = 0, rate: float = 0.7):
    """Right or wrong answers, and whose; each patient has a rate of his own, Beta-distributed around ``rate``."""
    rng = np.random.default_rng(seed)
    rates = np.full(patients, rate) if not spread else rng.beta(rate / spread, (1 - rate) / spread, patients)
    of = np.repeat(np.arange(patients), rows)
    return (rng.random(of.size) < rates[of]).astype(float), of


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_vectorised_mean_equals_a_plain_loop_with_the_same_draws():
    rng = np.random.default_rng(1)
    values, patients = rng.random(37), rng.choice(["a", "b", "c", "d", "e"], 37)
    names = np.unique(patients)
    means = []
    for times in patient_draws(len(names), 50, seed=4):
        drawn = [
            v for name, t in zip(names, times, strict=True) for _ in range(int(t)) for v in values[patients == name]
        ]
        means.append(np.mean(drawn))
    interval = patient_bootstrap(values, patients, confidence=0.9, resamples=50, seed=4)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])), abs=1e-12)
    assert interval.value == pytest.approx(values.mean()) and (interval.n, interval.patients) == (37, 5)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_each_draw_has_as_many_patients_as_the_cohort(patients, resamples, seed):
    times = patient_draws(patients, resamples, seed)
    assert times.shape == (resamples, patients) and (times.sum(axis=1) == patients).all() and (times >= 0).all()


def test_three_ways_to_a_mean_are_one():
    values, patients = clustered(20, 7, 0.2)
    same = dict(confidence=0.95, resamples=300, seed=2)
    fast = patient_bootstrap(values, patients, **same)
    rows = patient_bootstrap(np.arange(values.size), patients, lambda rows: values[rows].mean(), **same)
    sums = bootstrap_of_sums(np.stack([values, np.ones_like(values)], 1), patients, mean_of_sums, **same)
    for other in (rows, sums):
        assert (other.value, other.low, other.high) == pytest.approx((fast.value, fast.low, fast.high), abs=1e-12)


def test_a_ratio_of_counts_is_drawn_as_a_ratio_of_counts():
    """As BLEU's precision: matches over n-grams, not a mean of sentences."""
    rng = np.random.default_rng(0)
    totals = rng.integers(1, 12, 60)
    sums, patients = np.stack([rng.binomial(totals, 0.4), totals], 1), np.repeat(np.arange(15), 4)

    def precision(s):
        return np.sqrt(s[..., 0] / s[..., 1])

    fast = bootstrap_of_sums(sums, patients, precision, resamples=200)
    slow = patient_bootstrap(np.arange(60), patients, lambda rows: precision(sums[rows].sum(axis=0)), resamples=200)
    assert fast == slow or (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=1e-12)
    assert fast.value == pytest.approx(np.sqrt(sums[:, 0].sum() / sums[:, 1].sum()))


def test_order_of_rows_and_names_of_patients_do_not_matter():
    values, patients = clustered(12, 5, 0.3)
    shuffled = np.random.default_rng(5).permutation(values.size)
    there = patient_bootstrap(values, [f"patient {k:02}" for k in patients])
    back = patient_bootstrap(values[shuffled], patients[shuffled])
    assert (there.low, there.high) == pytest.approx((back.low, back.high), abs=1e-12)


def test_interval_widens_with_fewer_patients():
    wide, narrow = (patient_bootstrap(*clustered(n, 10, 0.1)) for n in (25, 400))
    assert 2.5 < width(wide) / width(narrow) < 6  # about √16


def test_answers_that_hang_together_widen_it_against_drawing_rows():
    values, patients = clustered(60, 20, 0.3)
    naive = patient_bootstrap(values, np.arange(values.size))
    assert width(patient_bootstrap(values, patients)) > 1.8 * width(naive)
    independent, of = clustered(60, 20, 0)
    ratio = width(patient_bootstrap(independent, of)) / width(patient_bootstrap(independent, np.arange(of.size)))
    assert 0.75 < ratio < 1.3


def test_it_holds_the_truth_at_its_rate():
    """300 cohorts of 60 patients whose ten answers hang together: 95 % within four binomial standard deviations."""
    hits = [0.7 in patient_bootstrap(*clustered(60, 10, 0.2, seed), resamples=500, seed=seed) for seed in range(300)]
    assert 0.90 <= np.mean(hits) <= 0.98, np.mean(hits)


def test_drawing_rows_would_miss_the_truth_too_often():
    def naive(seed):
        values, _ = clustered(60, 10, 0.2, seed)
        return patient_bootstrap(values, np.arange(values.size), resamples=500, seed=seed)

    assert np.mean([0.7 in naive(seed) for seed in range(150)]) < 0.88


def test_patients_with_many_questions_weigh_more_in_the_mean():
    values, patients = np.array([1, 1, 1, 0.0]), ["a", "a", "a", "b"]
    totals, of = sums_of_patients(np.stack([values, np.ones(4)], 1), patients)
    assert totals.tolist() == [[3, 3], [0, 1]] and of.tolist() == [0, 0, 0, 1]
    interval = patient_bootstrap(values, patients, resamples=400)
    assert interval.value == 0.75 and (interval.low, interval.high) == (0, 1)


def test_one_patient_has_a_value_and_no_interval():
    interval = patient_bootstrap([1, 0, 1], ["a"] * 3)
    assert interval.value == pytest.approx(2 / 3) and np.isnan(interval.low) and np.isnan(interval.high)
    assert 0.5 not in interval


def test_seeds_are_points_with_a_range():
    shown = over_seeds({2: Interval(0.6, 0.5, 0.7, 10, 5), 0: Interval(0.7, 0.6, 0.8, 10, 5)})
    assert shown.values == (0.7, 0.6) and (shown.low, shown.high) == (0.6, 0.7)
    assert [seed for seed, _ in shown.intervals] == [0, 2] and shown.mean == pytest.approx(0.65)
    assert "range 0.600 to 0.700 of 2 seeds" in str(shown)
    with pytest.raises(BadInput, match="no seed"):
        over_seeds({})


@pytest.mark.parametrize(
    ("values", "patients", "options", "said"),
    [
        ([], [], {}, "no rows"),
        ([1, 0], ["a"], {}, "2 rows have 1 patients"),
        ([1, float("nan")], ["a", "b"], {}, "row 1 of 2 has no value"),
        ([1, 0], ["a", "b"], {"confidence": 95}, "between 0 and 1"),
        ([1, 0], ["a", "b"], {"resamples": 0}, "positive number of draws"),
        ([1, 0], ["a", "b"], {"statistic": "median"}, "'mean' or a function"),
        ([[1, 0]], ["a"], {}, "one value a row"),
        ([1, 0], ["a", "b"], {"statistic": lambda drawn: 1 / drawn.sum() if drawn.sum() else np.nan}, "no value in"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, patients, options, said):
    with pytest.raises(BadInput, match=said):
        patient_bootstrap(values, patients, **options)
