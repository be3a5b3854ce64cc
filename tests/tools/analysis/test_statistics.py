"""Intervals and tests against simulated truth: they cover, and err, as often as they say."""

import numpy as np
import pytest
from scipy import stats

from tests.chance import ERROR, likely
from tools.analysis.statistics import (
    PairedDifference,
    SeedDifference,
    SeedInterval,
    holm,
    paired_difference,
    seed_difference,
    seed_interval,
)


def test_the_interval_over_seeds_by_hand():
    interval = seed_interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1 / 3**0.5  # the 97.5 % quantile of t with two degrees of freedom
    assert interval.mean == 2 and interval.seeds == 3
    assert interval.low == pytest.approx(2 - half, rel=1e-6) and interval.high == pytest.approx(2 + half, rel=1e-6)
    assert seed_interval([0.9]) == SeedInterval(0.9, None, None, 1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_cover_the_truth_as_often_as_they_say(seeds):
    random, covered, trials = np.random.default_rng(seeds), 0, 2000
    for _ in range(trials):
        interval = seed_interval(random.normal(0.7, 0.1, seeds))
        covered += interval.low <= 0.7 <= interval.high
    assert likely(covered, trials, 0.95)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "others"), [(3, 5), (3, 3)])
def test_differences_over_seeds_cover_the_truth_about_as_often_as_they_say(seeds, others):
    """Welch's interval is an approximation, a little too wide for few seeds of the same variance."""
    random, covered, found, trials = np.random.default_rng(seeds), 0, 0, 2000
    for _ in range(trials):
        interval = seed_difference(random.normal(0.7, 0.1, seeds), random.normal(0.7, 0.1, others))
        covered += interval.low <= 0 <= interval.high
        found += interval.p < 0.05
    # Of 200,000 trials, 0.954 (3 and 5 seeds) and 0.965 (3 and 3): by chance, 2,000 are as if from 0.95 to 0.97.
    assert found == trials - covered
    assert stats.binom.cdf(covered, trials, 0.95) > ERROR / 2 < stats.binom.sf(covered - 1, trials, 0.97)


def test_the_difference_over_seeds_by_hand():
    test = seed_difference([1.0, 3.0], [0.0, 0.0])  # variance 2 and 0: one degree of freedom, error 1
    assert (test.low, test.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)
    assert test.p == pytest.approx(2 * (0.5 - np.arctan(2.0) / np.pi), rel=1e-4)  # t of one degree is Cauchy
    assert seed_difference([1.0], [0.0, 0.1]) == SeedDifference(None, None, None)
    assert seed_difference([1.0, 1.0], [0.5, 0.5]) == SeedDifference(0.5, 0.5, None)


def correctness(random, count, chance):
    """Of each sample, the share of five draws that are right; samples differ in how hard they are."""
    return random.binomial(5, np.clip(chance + random.normal(0, 0.2, count), 0, 1)) / 5


@pytest.mark.slow
def test_paired_intervals_cover_the_truth_as_often_as_they_say():
    random, covered, trials = np.random.default_rng(0), 0, 1000
    for trial in range(trials):
        hard = random.random(300)
        first, second = random.binomial(5, hard) / 5, random.binomial(5, 0.9 * hard) / 5
        interval = paired_difference(first, second, resamples=1000, seed=trial)
        covered += interval.low <= 0.05 <= interval.high  # E[0.1 hard]
    assert covered / trials == pytest.approx(0.95, abs=0.045)  # fewer than 0.905 has a chance below 1e-6 at 0.945


@pytest.mark.slow
def test_equal_networks_are_called_different_as_often_as_allowed():
    random, trials = np.random.default_rng(1), 1000
    found = sum(
        paired_difference(correctness(random, 300, 0.7), correctness(random, 300, 0.7), resamples=1000).p < 0.05
        for _ in range(trials)
    )
    assert found / trials == pytest.approx(0.05, abs=0.04)  # more than 0.09 has a chance below 1e-6 at 0.052


def test_pairing_sees_what_unpaired_means_would_not():
    random = np.random.default_rng(2)
    hard = random.random(200)
    result = paired_difference(hard + 0.02, hard + random.normal(0, 0.02, 200))
    assert result.p < 0.001 and result.low > 0.01
    assert paired_difference(hard, hard) == PairedDifference(0.0, 0.0, 0.0, 1.0)
    swapped = paired_difference(hard + random.normal(0, 0.02, 200), hard + 0.02)
    assert swapped.high < 0 and swapped.p < 0.001
    assert paired_difference(hard + 0.02, hard).p == 2 / 20_001  # no resample of 20,000 differs the other way


def test_resamples_repeat_with_the_seed_which_is_0_unless_told_otherwise():
    random = np.random.default_rng(4)
    first, second = correctness(random, 50, 0.7), correctness(random, 50, 0.6)
    found = [paired_difference(first, second, **options) for options in ({}, {"resamples": 20_000}, {"seed": 0})]
    assert found[0] == found[1] == found[2] != paired_difference(first, second, seed=1)


def test_resamples_are_those_of_samples_drawn_with_replacement():
    random = np.random.default_rng(3)
    first, second = correctness(random, 50, 0.7), correctness(random, 50, 0.6)
    means = (first - second)[random.integers(50, size=(200_000, 50))].mean(1)
    result = paired_difference(first, second, resamples=200_000)
    # Means are multiples of 0.004, of which chance may change one: the standard error of a difference is 0.0005.
    assert [result.low, result.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.005)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_bounds_the_chance_of_any_false_discovery():
    random, trials = np.random.default_rng(4), 4000
    false = 0
    for _ in range(trials):
        p_values = random.random(10)
        p_values[:3] *= 1e-3  # three differences are real
        false += min(holm(p_values)[3:]) < 0.05
    assert stats.binom.sf(false - 1, trials, 0.05) > ERROR
