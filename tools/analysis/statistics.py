"""Intervals and tests for comparisons of networks: over seeds, over test samples, over many comparisons."""

import math
import warnings

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 20_000


def seed_interval(values, level=LEVEL):
    """Student's t-interval for the mean over training seeds.

    Args:
        values: one number per seed; noise draws of one network are not seeds.
        level: probability that the interval covers the true mean, where values are normal.

    Returns:
        {"mean", "low", "high", "seeds"}; low and high are None for a single seed, of which nothing can be said.
    """
    mean, count = float(np.mean(values)), len(values)
    low = high = None
    if count > 1:
        half = stats.t.ppf((1 + level) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
        low, high = float(mean - half), float(mean + half)
    return {"mean": mean, "low": low, "high": high, "seeds": count}


def seed_difference(first, second, level=LEVEL):
    """Welch's t-interval for the difference of two kinds of networks, over training seeds.

    Args:
        first, second: one number per seed of each kind.

    Returns:
        {"low", "high", "p"} of mean(first) - mean(second); all None where a kind has a single seed, and p where no
        seed differs from another of its kind.
    """
    if min(len(first), len(second)) < 2:
        return {"low": None, "high": None, "p": None}
    difference = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == np.ptp(second) == 0:
        return {"low": difference, "high": difference, "p": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of SciPy, where the seeds of one kind are all the same
        test = stats.ttest_ind(first, second, equal_var=False)
        interval = test.confidence_interval(level)
    return {"low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}


def paired_difference(first, second, level=LEVEL, resamples=RESAMPLES, seed=0):
    """Bootstrap over test samples of the mean difference of two kinds of networks on the same samples.

    Args:
        first, second: of each sample, the share of seeds and draws in which it was classified correctly. Shape: [N].
        level: of the percentile interval.
        resamples: bootstrap samples.
        seed: of them.

    Returns:
        {"difference", "low", "high", "p"}: mean of first - second, and the two-sided p-value of no difference.

    Note:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapters 13 and 15. It tells how far the result
        depends on the test samples, not on the seeds.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    # A resample is known by how often it has each distinct difference: one multinomial draw.
    distinct, counts = np.unique(differences, return_counts=True)
    total = len(differences)
    means = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples) @ distinct / total
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high), "p": float(p)}


def holm(p_values):
    """Holm's adjusted p-values: of those below 0.05, the chance that any is a false one is at most 0.05.

    Args:
        p_values: of all comparisons that were made, [M].

    Note:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    p_values = np.asarray(p_values, float)
    order = p_values.argsort()
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return adjusted[order.argsort()].tolist()
