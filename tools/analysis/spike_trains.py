"""How neurons encode a stimulus: variability and reliability of spike trains over repeated trials.

All functions take spike counts [R, T, N]: R trials of the same stimulus, T time bins, N neurons (numbers or booleans;
analogue responses too where counts are not asked for), and give one value for each neuron. Where a value has no
meaning, as the Fano factor of a neuron that never fires, it is NaN.
"""

import functools
import numbers

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter


def psth(spikes, bin_s=1.0, smoothing_bins=0.0):
    """Peristimulus time histogram: the mean over trials, as a rate.

    Args:
        spikes: [R, T, N].
        bin_s: length of a bin in seconds; 1 gives spikes per bin.
        smoothing_bins: standard deviation of a Gaussian window over time, in bins; 0: none.

    Returns:
        Spikes per second [T, N].
    """
    if not 0 < bin_s < np.inf:
        raise ValueError(f"bin_s must be positive, got {bin_s}")
    return smoothed(_trials(spikes, 1).mean(0), smoothing_bins) / bin_s


def smoothed(responses, smoothing_bins):
    """Responses [..., T, N] under a Gaussian window over time; at the ends, of the bins that are there alone.

    Args:
        smoothing_bins: its standard deviation in bins; 0 changes nothing.
    """
    responses = np.asarray(responses, float)
    if smoothing_bins == 0:
        return responses
    if not smoothing_bins > 0:
        raise ValueError(f"smoothing_bins must be 0 or positive, got {smoothing_bins}")
    window = functools.partial(gaussian_filter1d, sigma=smoothing_bins, mode="constant", truncate=8.0)
    return window(responses, axis=-2) / window(np.ones(responses.shape[-2]))[:, None]


def counts(spikes, window):
    """Spikes in windows that follow each other: [R, T, N] -> [R, T // window, N]; bins that fill none are left out.

    Raises:
        ValueError: if no window of so many bins fits, or counts are negative.
    """
    return _in_windows(_counts(spikes, 1), window)


def _in_windows(responses, window):
    """Sums over windows that follow each other, which spike counts and analogue responses have alike."""
    trials, bins, neurons = responses.shape
    if not isinstance(window, numbers.Integral) or not 1 <= window <= bins:
        raise ValueError(f"a window must have 1 to {bins} bins, as many as the trials, got {window}")
    whole = bins // window
    return responses[:, : whole * window].reshape(trials, whole, window, neurons).sum(2)


def fano_factor(spikes, window):
    """Variance over mean of the spike count over trials, in each window: 1 for a Poisson process, 0 without noise.

    Args:
        spikes: [R, T, N], R at least 2.
        window: its length in bins.

    Returns:
        [T // window, N], with the unbiased variance (R - 1); NaN where no trial has a spike.

    Note:
        Fano, Physical Review 72, 1947; for neurons: Teich, IEEE Transactions on Biomedical Engineering 36, 1989.
    """
    in_windows = _in_windows(_counts(spikes, 2), window)
    return _ratio(in_windows.var(0, ddof=1), in_windows.mean(0))


def mean_fano_factor(spikes, window):
    """One Fano factor for each neuron: the mean over windows of the variance, over that of the count; [N].

    The mean of the factors of windows would give the same weight to a window of one spike as to one of many.
    """
    in_windows = _in_windows(_counts(spikes, 2), window)
    return _ratio(in_windows.var(0, ddof=1).mean(0), in_windows.mean((0, 1)))


def reliability(spikes, smoothing_bins=0.0):
    r"""Mean Pearson correlation over time of the R (R - 1) / 2 pairs of trials; 1 if all are alike, 0 by chance.

    Args:
        spikes: [R, T, N], R at least 2.
        smoothing_bins: see `smoothed`; how exact in time the trials must agree.

    Returns:
        [N]; trials without any variation, as those without spikes, are left out; NaN where fewer than two are left.

    Note:
        Schreiber et al., "A new correlation-based measure of spike timing reliability", Neurocomputing 52-54, 2003,
        there with the cosine of the trials instead of their correlation.
    """
    responses = smoothed(_trials(spikes, 2, bins=2), smoothing_bins)
    centred = responses - responses.mean(1, keepdims=True)
    squared = (centred**2).sum(1, keepdims=True)
    varies = _is_more_than_rounding(squared, (responses**2).sum(1, keepdims=True))  # [R, 1, N]
    unit = np.divide(centred, np.sqrt(squared), out=np.zeros_like(centred), where=varies)
    kept = varies.sum((0, 1))
    # The squared norm of the sum of unit vectors is the number of them, and twice the sum over pairs.
    return _ratio((unit.sum(0) ** 2).sum(0) - kept, kept * (kept - 1))


def signal_power(responses):
    r"""Power of what is the same in all trials.

    .. math::
        SP = \frac{1}{R - 1} \left( R \,\mathrm{Var}_t(\bar y) - \overline{\mathrm{Var}_t(y_r)} \right)

    with the mean over trials :math:`\bar y` and variances over time, both unbiased (T - 1).

    Args:
        responses: [R, T, N], R at least 2.

    Returns:
        [N]; an unbiased estimate, hence sometimes negative where there is no signal.

    Note:
        Sahani and Linden, "How linear are auditory cortical responses?", NIPS 15, 2003, equation 1.
    """
    responses = _trials(responses, 2, bins=2)
    return responses.mean(0).var(0, ddof=1) - noise_power(responses) / len(responses)


def signal_power_error(responses, shifts=20, seed=0):
    """What `signal_power` is by chance: its root mean square where trials are shifted against each other in time.

    A shift, circular and random for each trial, leaves every trial as it is, but nothing that is the same in all.

    Args:
        responses: [R, T, N], R at least 2.
        shifts: number of times that all trials are shifted.
        seed: of the shifts.

    Returns:
        [N]; a cell whose signal power is not well above it has no signal to speak of.
    """
    responses = _trials(responses, 2, bins=2)
    trials, bins, _ = responses.shape
    random = np.random.default_rng(seed)
    squared = 0.0
    for _ in range(shifts):
        moved = (np.arange(bins) + random.integers(bins, size=(trials, 1))) % bins  # [R, T]
        squared = squared + signal_power(np.take_along_axis(responses, moved[..., None], axis=1)) ** 2
    return np.sqrt(squared / shifts)


def total_power(responses):
    """Mean over trials of a trial's variance over time: signal and noise power; [R, T, N] -> [N]."""
    return _trials(responses, 1, bins=2).var(1, ddof=1).mean(0)


def noise_power(responses):
    """Power of what differs between trials, exactly 0 for spikes that do not: `total_power` less `signal_power`.

    Shape:
        [R, T, N], R at least 2 -> [N].
    """
    responses = _trials(responses, 2, bins=2)
    count = len(responses)
    # The variance of a trial around the mean trial; it is smaller than that around the true mean by a share of 1 / R.
    return (responses - responses.mean(0)).var(1, ddof=1).mean(0) * count / (count - 1)


def signal_to_noise(responses):
    """`signal_power` over `noise_power`; infinite without noise. [R, T, N] -> [N]."""
    signal, noise = signal_power(responses), noise_power(responses)
    return np.where((noise == 0) & (signal > 0), np.inf, _ratio(signal, noise))


def cc_norm(prediction, responses):
    r"""Correlation of a prediction with the mean response, relative to the highest that the noise allows.

    .. math::
        CC_\mathrm{norm} = \frac{CC_\mathrm{abs}}{CC_\mathrm{max}}
        = \frac{\mathrm{Cov}_t(\hat y, \bar y)}{\sqrt{\mathrm{Var}_t(\hat y)\, SP}}

    Args:
        prediction: of the mean response [T, N]; or trials of a model [S, T, N], S at least 2: their mean is the
            prediction, and their signal power stands for its variance, which the noise of few trials makes too large.
        responses: the recorded trials [R, T, N].

    Returns:
        [N], about 1 for the true rate (above by chance); 0 for a prediction that is constant, or trials without signal
        power; NaN for a cell without signal power. Where either has hardly any, the quotient is of any size: see
        `signal_power_error`.

    Note:
        Schoppe et al., "Measuring the performance of neural models", Frontiers in Computational Neuroscience 10, 2016,
        equations 5 to 8.
    """
    responses = _trials(responses, 2, bins=2)
    signal = signal_power(responses)
    prediction = np.asarray(prediction, float)
    if prediction.shape[-2:] != responses.shape[1:] or prediction.ndim not in (2, 3):
        raise ValueError(
            f"expected a prediction {list(responses.shape[1:])}, or trials of it, got shape {list(prediction.shape)}"
        )
    variance = signal_power(prediction) if prediction.ndim == 3 else prediction.var(0, ddof=1)
    mean = prediction.mean(0) if prediction.ndim == 3 else prediction
    varies = _is_more_than_rounding(variance, (mean**2).mean(0))
    found = _ratio(_covariance(mean, responses.mean(0)), np.sqrt((variance * signal).clip(0)))
    return np.where(signal > 0, np.where(varies, found, 0.0), np.nan)


def cc_max(responses):
    r"""Correlation of the true rate with the mean of the R trials, :math:`\sqrt{SP / \mathrm{Var}_t(\bar y)}`; [N].

    See `cc_norm`; NaN without signal power.
    """
    responses = _trials(responses, 2, bins=2)
    signal = signal_power(responses)
    return np.sqrt(_ratio(np.where(signal > 0, signal, np.nan), responses.mean(0).var(0, ddof=1)))


def signal_correlation(responses):
    """Correlation over time of what two neurons encode, without what they share by common noise.

    The covariance is that of one neuron in one trial with the other in another trial, averaged over all pairs of
    trials, and the variances are `signal_power`; so it is not biased by noise, and can exceed 1 by chance.

    Args:
        responses: [R, T, N], R at least 2.

    Returns:
        [N, N]; the diagonal is 1, NaN for neurons without signal power.

    Note:
        Averbeck, Latham and Pouget, "Neural correlations, population coding and computation", Nature Reviews
        Neuroscience 7, 2006; the correction is the shuffle of trials, in closed form.
    """
    responses = _trials(responses, 2, bins=2)
    count, bins, _ = responses.shape
    centred = responses - responses.mean(1, keepdims=True)
    total = centred.sum(0)
    same_trial = np.einsum("rtn,rtm->nm", centred, centred)
    covariance = (total.T @ total - same_trial) / (count * (count - 1) * (bins - 1))
    return _correlation(covariance, (responses**2).mean((0, 1)))


def noise_correlation(responses, window=1):
    """Correlation of two neurons' spike counts over trials of the same stimulus, pooled over windows of time.

    Args:
        responses: [R, T, N], R at least 2.
        window: its length in bins.

    Returns:
        [N, N]; the diagonal is 1, NaN for neurons without variability.

    Note:
        Averbeck, Latham and Pouget, as for `signal_correlation`.
    """
    in_windows = _in_windows(_trials(responses, 2), window)
    residuals = (in_windows - in_windows.mean(0)).reshape(-1, in_windows.shape[2])
    return _correlation(residuals.T @ residuals / len(residuals), (in_windows**2).mean((0, 1)))


def van_rossum_distance(first, second, tau_bins):
    r"""Distances of spike trains as exponential traces, of all pairs of trials.

    .. math::
        D^2 = \frac{1}{\tau} \int_0^\infty (f - g)^2 \, dt
        = \frac12 \sum_{s, t} (x_s - y_s) (x_t - y_t) e^{-|s - t| / \tau}, \quad
        f(t) = \sum_{s < t} x_s e^{-(t - s) / \tau}

    One spike more is worth 1/2 in :math:`D^2`, two spikes far from each other 1.

    Args:
        first: spike counts [R, T, N].
        second: spike counts [S, T, N].
        tau_bins: time constant in bins, positive.

    Returns:
        D^2 [R, S, N].

    Note:
        van Rossum, "A novel spike distance", Neural Computation 13, 2001, equation 2.2; a spike is at its bin's start.
    """
    first, second = _two(first, second)
    if not tau_bins > 0:
        raise ValueError(f"tau_bins must be positive, got {tau_bins}")
    x, y = first.transpose(2, 0, 1), second.transpose(2, 0, 1)  # [N, R, T], [N, S, T]
    products = x @ _around(y, tau_bins).transpose(0, 2, 1)
    own_x, own_y = ((z * _around(z, tau_bins)).sum(2) for z in (x, y))
    own = 0.5 * (own_x[:, :, None] + own_y[:, None, :])
    squared = own - products
    return np.where(squared > 1e-12 * own, squared, 0.0).transpose(1, 2, 0)  # exactly 0 between trains that are alike


def _around(trains, tau_bins):
    """Sum over s of x_s exp(-|s - t| / tau) for trains [..., T]: what decayed until t, and the same backwards."""
    trace = functools.partial(lfilter, [1.0], [1.0, -np.exp(-1 / tau_bins)])
    return trace(trains) + trace(trains[..., ::-1])[..., ::-1] - trains


def victor_purpura_distance(first, second, cost_per_bin):
    """Least cost of turning one spike train into the other, of all pairs of trials.

    To add or to delete a spike costs 1, to shift it `cost_per_bin` for each bin. With cost 0 only the numbers of
    spikes matter; from 2 on, spikes match only in the same bin.

    Args:
        first: spike counts [R, T, N].
        second: spike counts [S, T, N].
        cost_per_bin: q, at least 0.

    Returns:
        [R, S, N].

    Note:
        Victor and Purpura, "Nature and precision of temporal coding in visual cortex", Journal of Neurophysiology 76,
        1996. The dynamic programme takes a spike of the first trains at a time, for all pairs at once: deletions
        along the second train are a running minimum.
    """
    first, second = _two(first, second)
    if not cost_per_bin >= 0:
        raise ValueError(f"cost_per_bin must be at least 0, got {cost_per_bin}")
    cost_per_bin = min(cost_per_bin, 2.0)  # more changes nothing, and infinity could not be multiplied by 0
    distances = np.empty((len(first), len(second), first.shape[2]))
    for neuron in range(first.shape[2]):
        distances[:, :, neuron] = _edit_distances(*map(_times, (first[..., neuron], second[..., neuron])), cost_per_bin)
    return distances


def _edit_distances(first, second, cost):
    """Distances [R, S] of spike times, which are padded by infinity: [R, n], [S, m]."""
    number_first, number_second = (np.isfinite(times).sum(1) for times in (first, second))
    steps = np.arange(second.shape[1] + 1.0)
    distance = np.broadcast_to(steps, (len(first), len(second), len(steps)))  # of no spike from the first j
    result = np.take_along_axis(distance, number_second[None, :, None].repeat(len(first), 0), 2)[..., 0].copy()
    for row in range(first.shape[1]):
        with np.errstate(invalid="ignore"):  # infinity less infinity: padding, which is never read
            shift = np.minimum(cost * np.abs(first[:, row, None, None] - second) if cost else 0.0, 2.0)
        candidates = distance + 1.0  # this spike is deleted
        candidates[..., 1:] = np.fmin(candidates[..., 1:], distance[..., :-1] + shift)
        distance = np.minimum.accumulate(candidates - steps, axis=2) + steps
        ends = np.flatnonzero(number_first == row + 1)
        where = np.broadcast_to(number_second[None, :, None], (len(ends), len(second), 1))
        result[ends] = np.take_along_axis(distance[ends], where, 2)[..., 0]
    return result


def _times(trains):
    """Bins of the spikes of trains [R, T], as often as there are spikes in a bin, padded by infinity: [R, n]."""
    if (trains < 0).any() or (trains % 1 != 0).any():
        raise ValueError("spike counts must be whole numbers of at least 0")
    found = [np.repeat(np.arange(trains.shape[1]), train.astype(int)) for train in trains]
    times = np.full((len(trains), max(map(len, found))), np.inf)
    for row, spikes in zip(times, found):
        row[: len(spikes)] = spikes
    return times


def decoding_accuracy(spikes, window, pooled, repeats=20, seed=0):
    r"""How well the stimulus is told from the pooled responses of some trials: naive Bayes on held-out trials.

    The stimulus is cut into windows, which are the classes. Half of the trials give the probability p of a spike, of
    each bin and neuron, as (k + 1/2) / (n + 1); the responses of `pooled` others are summed and go to the class of
    largest likelihood,

    .. math::
        \log P = \sum_i x_i \log p_i + (m - x_i) \log(1 - p_i).

    Args:
        spikes: 0 or 1 [R, T, N], R at least 2.
        window: length of a class in bins.
        pooled: list of m, numbers of pooled trials, each in 1..R // 2.
        repeats: random splits of the trials.
        seed: of them.

    Returns:
        Accuracies [len(pooled)], means over repeats, in [0, 1]; chance is 1 / (T // window). Classes of equal
        likelihood share the success.

    Raises:
        ValueError: for responses that are not 0 or 1, a window that does not fit, or more trials than there are.

    Note:
        The smoothing is Jeffreys' prior. Quian Quiroga and Panzeri, Nature Reviews Neuroscience 10, 2009, on decoding.
    """
    spikes = _trials(spikes, 2)
    if not np.isin(spikes, (0, 1)).all():
        raise ValueError("decoding takes responses of 0 or 1: use shorter bins")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    half = len(spikes) // 2
    if not all(1 <= number <= half for number in pooled):
        raise ValueError(f"of {len(spikes)} trials, 1 to {half} can be pooled for decoding, got {list(pooled)}")
    counts(spikes, window)  # checks it
    classes = spikes.shape[1] // window
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


def _share_of_ties(scores):
    """Mean over rows i of scores [K, K] of 1 / (number of largest scores), where score i is among the largest."""
    largest = np.isclose(scores, scores.max(1, keepdims=True), rtol=1e-9, atol=1e-9)
    return (np.diagonal(largest) / largest.sum(1)).mean()


def _trials(responses, fewest, bins=1):
    """Responses as float64 [R, T, N], with a message for any other shape, or fewer trials or bins than needed."""
    responses = np.asarray(responses, float)
    if responses.ndim != 3 or responses.size == 0:
        raise ValueError(f"expected responses [trials, bins, neurons], got shape {list(responses.shape)}")
    if not np.isfinite(responses).all():
        raise ValueError("responses must be finite")
    if len(responses) < fewest:
        raise ValueError(f"variability needs at least {fewest} trials, got {len(responses)}")
    if responses.shape[1] < bins:
        raise ValueError(f"variance over time needs at least {bins} bins, got {responses.shape[1]}")
    return responses


def _counts(spikes, fewest):
    """As `_trials`, of spike counts."""
    spikes = _trials(spikes, fewest)
    if (spikes < 0).any():
        raise ValueError("spike counts must be at least 0")
    return spikes


def _two(first, second):
    first, second = _trials(first, 1), _trials(second, 1)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"trains of the same bins and neurons can be compared, got {list(first.shape)} and {list(second.shape)}"
        )
    return first, second


def _covariance(first, second):
    """Unbiased covariance over time of each neuron: [T, N], [T, N] -> [N]."""
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)


def _correlation(covariance, mean_squares):
    """Covariances [N, N] as correlations; NaN where a variance is none, beside the mean square of what varies [N]."""
    variance = np.diagonal(covariance)
    deviation = np.sqrt(np.where(_is_more_than_rounding(variance, mean_squares), variance, np.nan))
    return covariance / deviation / deviation[:, None]


def _is_more_than_rounding(variance, mean_square):
    """Whether a variance is larger than what rounding makes of numbers of this mean square (or both, their sums)."""
    return variance > 1e-24 * mean_square


def _ratio(above, below):
    """Quotient, NaN where the divisor is zero."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
