"""Checks and arithmetic that the metrics of spike trains share."""

import numbers

import numpy as np
from numpy.typing import ArrayLike

from tools.errors import UserError


def as_trials(responses: ArrayLike, fewest: int, bins: int = 1) -> np.ndarray:
    """Responses as float64 [R, T, N]; UserError for another shape, or too few trials or bins."""
    responses = np.asarray(responses, float)
    if responses.ndim != 3 or responses.size == 0:
        raise UserError(f"expected responses [trials, bins, neurons], got shape {list(responses.shape)}")
    if not np.isfinite(responses).all():
        raise UserError("responses must be finite")
    if len(responses) < fewest:
        raise UserError(f"variability needs at least {fewest} trials, got {len(responses)}")
    if responses.shape[1] < bins:
        raise UserError(f"variance over time needs at least {bins} bins, got {responses.shape[1]}")
    return responses


def as_counts(spikes: ArrayLike) -> np.ndarray:
    """Spike counts as float64 [R, T, N], R at least 2; UserError as of `as_trials`, and for negative counts."""
    spikes = as_trials(spikes, 2)
    if (spikes < 0).any():
        raise UserError("spike counts must be at least 0")
    return spikes


def in_windows(responses: np.ndarray, window: int) -> np.ndarray:
    """Sum over consecutive windows of bins: [R, T, N] -> [R, T // window, N]; an incomplete last one is left out.

    UserError unless a window has from 1 to T bins.
    """
    trials, bins, neurons = responses.shape
    if not isinstance(window, numbers.Integral) or not 1 <= window <= bins:
        raise UserError(f"a window must have 1 to {bins} bins (the length of a trial), got {window}")
    whole = bins // window
    return responses[:, : whole * window].reshape(trials, whole, window, neurons).sum(2)


def exceeds_rounding(variance: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Whether a variance is more than rounding errors of numbers of this mean square (both may be sums instead)."""
    return variance > 1e-24 * mean_square


def ratio(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
