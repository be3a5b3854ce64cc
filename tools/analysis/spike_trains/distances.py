"""Distances between spike trains."""

import functools

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from tools.errors import UserError

from .arrays import as_trials


def van_rossum_distance(first: ArrayLike, second: ArrayLike, tau_bins: float) -> np.ndarray:
    r"""Squared distances of spike trains as exponential traces, of all pairs of trials.

    .. math::
        D^2 = \frac{1}{\tau} \int_0^\infty (f - g)^2 \, dt
        = \frac12 \sum_{s, t} (x_s - y_s) (x_t - y_t) e^{-|s - t| / \tau}, \quad
        f(t) = \sum_{s < t} x_s e^{-(t - s) / \tau}

    One additional spike adds 1/2 to :math:`D^2`; two spikes far from each other differ by 1.
    Shape: counts [R, T, N] and [S, T, N], a positive time constant in bins -> D^2 [R, S, N].

    Note:
        van Rossum, "A novel spike distance", Neural Computation 13, 2001, equation 2.2; a spike is at its bin's start.
    """
    first, second = _comparable(first, second)
    if not tau_bins > 0:
        raise ValueError(f"tau_bins must be positive, got {tau_bins}")
    x, y = first.transpose(2, 0, 1), second.transpose(2, 0, 1)  # [N, R, T], [N, S, T]
    products = x @ _around(y, tau_bins).transpose(0, 2, 1)
    own_x, own_y = ((z * _around(z, tau_bins)).sum(2) for z in (x, y))
    own = 0.5 * (own_x[:, :, None] + own_y[:, None, :])
    squared = own - products
    return np.where(squared > 1e-12 * own, squared, 0.0).transpose(1, 2, 0)  # exactly 0 between trains that are alike


def _around(trains: np.ndarray, tau_bins: float) -> np.ndarray:
    """Sum over s of x_s exp(-|s - t| / tau) for trains [..., T]: what decayed until t, and the same backwards."""
    trace = functools.partial(lfilter, [1.0], [1.0, -np.exp(-1 / tau_bins)])
    return trace(trains) + trace(trains[..., ::-1])[..., ::-1] - trains


def victor_purpura_distance(first: ArrayLike, second: ArrayLike, cost_per_bin: float) -> np.ndarray:
    """Least cost of turning one spike train into the other, of all pairs of trials.

    To add or to delete a spike costs 1, to shift it `cost_per_bin` for each bin. With cost 0 only the numbers of
    spikes matter; from 2 on, spikes match only in the same bin. Shape: counts [R, T, N], [S, T, N] -> [R, S, N].

    Note:
        Victor and Purpura, "Nature and precision of temporal coding in visual cortex", Journal of Neurophysiology 76,
        1996. The dynamic programme takes a spike of the first trains at a time, for all pairs at once: deletions
        along the second train are a running minimum.
    """
    first, second = _comparable(first, second)
    if not cost_per_bin >= 0:
        raise ValueError(f"cost_per_bin must be at least 0, got {cost_per_bin}")
    cost_per_bin = min(cost_per_bin, 2.0)  # more changes nothing, and infinity could not be multiplied by 0
    distances = np.empty((len(first), len(second), first.shape[2]))
    for neuron in range(first.shape[2]):
        distances[..., neuron] = _edit_distances(_times(first[..., neuron]), _times(second[..., neuron]), cost_per_bin)
    return distances


def _edit_distances(first: np.ndarray, second: np.ndarray, cost: float) -> np.ndarray:
    """Distances [R, S] of spike times [R, n] and [S, m], which are padded by infinity."""
    number_first, number_second = (np.isfinite(times).sum(1) for times in (first, second))
    steps = np.arange(second.shape[1] + 1.0)
    distance = np.broadcast_to(steps, (len(first), len(second), len(steps)))  # of no spike from the first j
    result = np.broadcast_to(number_second, distance.shape[:2]).astype(float)
    for row in range(first.shape[1]):
        with np.errstate(invalid="ignore"):  # infinity less infinity: padding, which is never read
            shift = np.minimum(cost * np.abs(first[:, row, None, None] - second) if cost else 0.0, 2.0)
        candidates = distance + 1.0  # this spike is deleted
        candidates[..., 1:] = np.fmin(candidates[..., 1:], distance[..., :-1] + shift)
        distance = np.minimum.accumulate(candidates - steps, axis=2) + steps
        ends = np.flatnonzero(number_first == row + 1)
        result[ends] = distance[ends[:, None], np.arange(len(second)), number_second]
    return result


def _times(trains: np.ndarray) -> np.ndarray:
    """Bins of the spikes of trains [R, T], as often as there are spikes in a bin, padded by infinity: [R, n]."""
    if (trains < 0).any() or (trains % 1 != 0).any():
        raise UserError("spike counts must be whole numbers of at least 0")
    found = [np.repeat(np.arange(trains.shape[1]), train.astype(int)) for train in trains]
    times = np.full((len(trains), max(map(len, found))), np.inf)
    for row, spikes in zip(times, found):
        row[: len(spikes)] = spikes
    return times


def _comparable(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_trials(first, 1), as_trials(second, 1)
    if first.shape[1:] != second.shape[1:]:
        found = f"{list(first.shape)} and {list(second.shape)}"
        raise UserError(f"trains of the same bins and neurons can be compared, got {found}")
    return first, second
