"""How far chance may carry a result: what is right fails a test by these bounds once in a million runs at most."""

import math

import numpy as np
from scipy import stats

ERROR = 1e-6  # of a test, over all that it compares


def deviations(comparisons=1, samples=math.inf):
    """Standard errors within which all of so many means of independent values are.

    Args:
        comparisons: number of means that the test compares.
        samples: number of values of each mean, where the standard error was estimated from them and they are few.
    """
    return stats.t.isf(ERROR / 2 / comparisons, samples - 1)


def likely(hits, trials, p, comparisons=1):
    """Whether counts of independent events of probability `p` are: the binomial law itself, also where `p` is small.

    Args:
        hits, p: numbers or arrays.
        comparisons: number of calls like this one in the test.
    """
    hits, p = np.asarray(hits), np.clip(np.asarray(p, dtype=float), 0, 1)
    tail = ERROR / 2 / comparisons / hits.size
    return bool(((stats.binom.cdf(hits, trials, p) > tail) & (stats.binom.sf(hits - 1, trials, p) > tail)).all())
