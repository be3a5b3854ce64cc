"""Rates of spike trains, their variability between trials, and their reliability."""

import functools

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d

from .arrays import as_counts, as_trials, exceeds_rounding, in_windows, ratio


def psth(spikes: ArrayLike, bin_s: float = 1.0, smoothing_bins: float = 0.0) -> np.ndarray:
    """Peristimulus time histogram: the rate per second, mean over trials, in bins of `bin_s`; [R, T, N] -> [T, N].

    ValueError for a `bin_s` that is not positive and finite. Note: Gerstein and Kiang, "An approach to the quantitative
    analysis of electrophysiological data from single neurons", Biophysical Journal 1, 1960.
    """
    if not 0 < bin_s < np.inf:
        raise ValueError(f"bin_s must be positive, got {bin_s}")
    return smoothed(as_trials(spikes, 1).mean(0), smoothing_bins) / bin_s


def smoothed(responses: ArrayLike, smoothing_bins: float) -> np.ndarray:
    """Smooth responses [..., T, N] over time with a Gaussian of this standard deviation, renormalised at the ends.

    ValueError for a negative one; 0 returns the responses as they are.
    """
    responses = np.asarray(responses, float)
    if smoothing_bins == 0:
        return responses
    if not smoothing_bins > 0:
        raise ValueError(f"smoothing_bins must be 0 or positive, got {smoothing_bins}")
    window = functools.partial(gaussian_filter1d, sigma=smoothing_bins, mode="constant", truncate=8.0)
    return window(responses, axis=-2) / window(np.ones(responses.shape[-2]))[:, None]


def fano_factor(spikes: ArrayLike, window: int) -> np.ndarray:
    """Variance over mean of the spike count over trials, in each window: 1 for a Poisson process, 0 without noise.

    The variance is unbiased; NaN where no trial has a spike. Shape: [R, T, N], R at least 2 -> [T // window, N].
    Note: Fano, Physical Review 72, 1947; for neurons: Teich, IEEE Transactions on Biomedical Engineering 36, 1989.
    """
    windows = in_windows(as_counts(spikes), window)
    return ratio(windows.var(0, ddof=1), windows.mean(0))


def mean_fano_factor(spikes: ArrayLike, window: int) -> np.ndarray:
    """One Fano factor per neuron, [N]: the variance, averaged over windows, divided by the mean count.

    The mean of the windows' own factors would give a window with one spike the weight of a window with many.
    """
    windows = in_windows(as_counts(spikes), window)
    return ratio(windows.var(0, ddof=1).mean(0), windows.mean((0, 1)))


def reliability(spikes: ArrayLike, smoothing_bins: float = 0.0) -> np.ndarray:
    """Mean Pearson correlation over time of the R (R - 1) / 2 pairs of trials: 1 if all are alike, 0 by chance.

    Trials are smoothed first, with a time scale of `smoothing_bins`. Constant ones, such as those without spikes, are
    left out; NaN where fewer than two are left. Shape: [R, T, N] -> [N].
    Note: Schreiber et al., "A new correlation-based measure of spike timing reliability", Neurocomputing 52-54, 2003,
    who take the cosine of the trials instead of their correlation.
    """
    responses = smoothed(as_trials(spikes, 2, bins=2), smoothing_bins)
    centred = responses - responses.mean(1, keepdims=True)
    squared = (centred**2).sum(1, keepdims=True)
    varies = exceeds_rounding(squared, (responses**2).sum(1, keepdims=True))  # [R, 1, N]
    unit = np.divide(centred, np.sqrt(squared), out=np.zeros_like(centred), where=varies)
    kept = varies.sum((0, 1))
    # The squared norm of the sum of unit vectors is the number of them, and twice the sum over pairs.
    return ratio((unit.sum(0) ** 2).sum(0) - kept, kept * (kept - 1))
