"""Intervals and tests for comparisons of networks."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95  # probability that an interval covers the true value
RESAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class SeedInterval:
    """A mean over training seeds and its interval, from `seed_interval`."""

    mean: float
    low: float | None  # None for a single seed, as is `high`
    high: float | None
    seeds: int  # their number


@dataclasses.dataclass(frozen=True)
class SeedDifference:
    """Interval and p of a difference over training seeds, from `seed_difference`; None with too few seeds."""

    low: float | None
    high: float | None
    p: float | None


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A difference over test samples with its interval and p, from `paired_difference`."""

    difference: float
    low: float
    high: float
    p: float


def seed_interval(values: Sequence[float]) -> SeedInterval:
    """Student's t-interval for the mean over training seeds.

    Values are one number per seed; noise draws of one network are not seeds.
    """
    mean, count = float(np.mean(values)), len(values)
    low = high = None
    if count > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
        low, high = float(mean - half), float(mean + half)
    return SeedInterval(mean, low, high, count)


def seed_difference(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """Welch's t-interval for mean(first) - mean(second) over training seeds, and its test.

    p is that of the hypothesis of no difference. All are None if a group has a single seed; p is None if neither group
    varies.
    """
    if min(len(first), len(second)) < 2:
        return SeedDifference(None, None, None)
    difference = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == np.ptp(second) == 0:
        return SeedDifference(difference, difference, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of SciPy, if the seeds of one group are all the same
        test = stats.ttest_ind(first, second, equal_var=False)
        interval = test.confidence_interval(LEVEL)
    return SeedDifference(float(interval.low), float(interval.high), float(test.pvalue))


def paired_difference(
    first: ArrayLike, second: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Bootstrap over test samples of the mean of first - second, for two groups of networks.

    `first` and `second` [N] are, for each sample, the share of seeds and draws that classified it correctly. The
    interval is that of percentiles; p is two-sided, of no difference.

    Note: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapters 13 and 15. It shows how much the
    result depends on the test samples, not on the seeds.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    # Only how often each distinct difference is drawn matters for the mean: one multinomial draw per resample.
    distinct, counts = np.unique(differences, return_counts=True)
    total = len(differences)
    means = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples) @ distinct / total
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return PairedDifference(float(differences.mean()), float(low), float(high), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the chance that any of those below 0.05 is a false discovery is at most 0.05.

    The p-values [M] are those of all comparisons that were made.
    Note: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    p_values = np.asarray(p_values, float)
    order = p_values.argsort()
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return adjusted[order.argsort()].tolist()
