"""Distances between spike trains, and decoding of the stimulus."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from tools.errors import UserError

from .arrays import as_trials, in_windows


def van_rossum_distance(first: ArrayLike, second: ArrayLike, tau_bins: float) -> np.ndarray:
    r"""Squared distances between the exponential traces of spike trains, for all pairs of trials.

    .. math::
        D^2 = \frac{1}{\tau} \int_0^\infty (f - g)^2 \, dt
        = \frac12 \sum_{s, t} (x_s - y_s) (x_t - y_t) e^{-|s - t| / \tau}, \quad
        f(t) = \sum_{s < t} x_s e^{-(t - s) / \tau}

    One additional spike adds 1/2 to :math:`D^2`; two spikes far from each other differ by 1.
    Shape: counts [R, T, N] and [S, T, N], a positive time constant in bins -> D^2 [R, S, N].
    Note: van Rossum, "A novel spike distance", Neural Computation 13, 2001, equation 2.2; a spike is at its bin's
    start.

    Raises:
        ValueError: for a time constant that is not positive.
        UserError: for other shapes, or trains of different bins or neurons.
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
    """Sum over s of x_s exp(-|s - t| / tau) for trains [..., T]: traces forward and backward in time."""
    trace = functools.partial(lfilter, [1.0], [1.0, -np.exp(-1 / tau_bins)])
    return trace(trains) + trace(trains[..., ::-1])[..., ::-1] - trains


def victor_purpura_distance(first: ArrayLike, second: ArrayLike, cost_per_bin: float) -> np.ndarray:
    """Least cost of turning one spike train into the other, for all pairs of trials.

    Adding or deleting a spike costs 1, shifting it `cost_per_bin` for each bin. With cost 0 only the numbers of
    spikes matter; from 2 on, spikes match only in the same bin.

    Shape: counts [R, T, N], [S, T, N] -> [R, S, N].

    Note: Victor and Purpura, "Nature and precision of temporal coding in visual cortex", Journal of Neurophysiology 76
    (1996). The dynamic programme goes through the spikes of the first trains, for all pairs at once; insertions along
    the second train are a running minimum.

    Raises:
        ValueError: for a negative cost.
        UserError: for other shapes, trains of different bins or neurons, or counts that are not whole numbers >= 0.
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
    """Distances [R, S] of spike times [R, n] and [S, m], which are padded with infinity."""
    number_first, number_second = np.isfinite(first).sum(1), np.isfinite(second).sum(1)
    steps = np.arange(second.shape[1] + 1.0)
    distance = np.broadcast_to(steps, (len(first), len(second), len(steps)))  # from no spike to the first j
    result = np.broadcast_to(number_second, distance.shape[:2]).astype(float)
    for row in range(first.shape[1]):
        with np.errstate(invalid="ignore"):  # infinity minus infinity, of padding that is never read
            shift = np.minimum(cost * np.abs(first[:, row, None, None] - second) if cost else 0.0, 2.0)
        candidates = distance + 1.0  # this spike is deleted
        candidates[..., 1:] = np.fmin(candidates[..., 1:], distance[..., :-1] + shift)
        distance = np.minimum.accumulate(candidates - steps, axis=2) + steps
        ends = np.flatnonzero(number_first == row + 1)
        result[ends] = distance[ends[:, None], np.arange(len(second)), number_second]
    return result


def _times(trains: np.ndarray) -> np.ndarray:
    """Bins of the spikes of trains [R, T], each once per spike, padded with infinity: [R, n]."""
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
        raise UserError(f"only trains of the same bins and neurons can be compared, got {found}")
    return first, second


def decoding_accuracy(
    spikes: ArrayLike, window: int, pooled: Sequence[int], repeats: int = 20, seed: int = 0
) -> np.ndarray:
    r"""Accuracy of naive Bayes that decodes the stimulus from the pooled responses of held-out trials.

    The stimulus is cut into windows, which are the classes. Half of the trials, n of them, give the probability
    of a spike in each bin and neuron: (k + 1/2) / (n + 1) for k spikes. Of the others, m are summed and assigned to the
    class of largest likelihood,

    .. math::
        \log P = \sum_i x_i \log p_i + (m - x_i) \log(1 - p_i).

    Classes of equal likelihood share the success; chance is 1 / (T // window).

    Args:
        spikes: 0 or 1 [R, T, N], R at least 2.
        window: length of a class in bins.
        pooled: numbers m of pooled trials, each in 1..R // 2; the accuracies [len(pooled)] are for these.
        repeats: number of random splits of the trials; accuracies are means over them.

    Note: 1/2 and 1 are Jeffreys' prior. On decoding: Quian Quiroga and Panzeri, Nature Reviews Neuroscience 10, 2009.

    Raises:
        ValueError: for fewer than one repeat.
        UserError: for spikes other than 0 and 1, and for a window or a number of pooled trials that is out of range.
    """
    spikes = as_trials(spikes, 2)
    if not np.isin(spikes, (0, 1)).all():
        raise UserError("decoding takes responses of 0 or 1: use shorter bins")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    half = len(spikes) // 2
    if not all(1 <= number <= half for number in pooled):
        raise UserError(f"of {len(spikes)} trials, 1 to {half} can be pooled for decoding, got {list(pooled)}")
    classes = in_windows(spikes, window).shape[1]
    patterns = spikes[:, : classes * window].reshape(len(spikes), classes, -1)
    random = np.random.default_rng(seed)
    accuracies = np.zeros(len(pooled))
    for _ in range(repeats):
        order = random.permutation(len(spikes))
        trained, tested = patterns[order[half:]], patterns[order[:half]]
        p = (trained.sum(0) + 0.5) / (len(trained) + 1)
        for place, number in enumerate(pooled):
            x = tested[:number].sum(0)
            scores = x @ np.log(p).T + (number - x) @ np.log1p(-p).T
            accuracies[place] += _share_of_ties(scores)
    return accuracies / repeats


def _share_of_ties(scores: np.ndarray) -> float:
    """Mean over rows i of scores [K, K] of 1 / (number of largest scores), or 0 if score i is not among them."""
    largest = np.isclose(scores, scores.max(1, keepdims=True), rtol=1e-9, atol=1e-9)
    return (np.diagonal(largest) / largest.sum(1)).mean()
