"""Signal and noise: their power, how well predictions match the signal, and correlations between neurons."""

import numpy as np
from numpy.typing import ArrayLike

from tools.errors import UserError

from .arrays import as_trials, exceeds_rounding, in_windows, ratio


def signal_power(responses: ArrayLike) -> np.ndarray:
    r"""Power of the part of the response that is the same in all trials.

    .. math::
        SP = \frac{1}{R - 1} \left( R \,\mathrm{Var}_t(\bar y) - \overline{\mathrm{Var}_t(y_r)} \right)

    with the mean over trials :math:`\bar y` and unbiased variances over time (T - 1). The power is unbiased too, and so
    may be negative where there is no signal. Shape: [R, T, N], R at least 2 -> [N].
    Note: Sahani and Linden, "How linear are auditory cortical responses?", NIPS 15, 2003, equation 1.
    """
    responses = as_trials(responses, 2, bins=2)
    return responses.mean(0).var(0, ddof=1) - noise_power(responses) / len(responses)


def signal_power_error(responses: ArrayLike, shifts: int = 20, seed: int = 0) -> np.ndarray:
    """Size of `signal_power` by chance: its root mean square when trials are shifted against each other in time.

    Circular shifts, random for each trial, destroy what the trials have in common and nothing else. They are repeated
    `shifts` times. A cell whose signal power is not well above the result has no measurable signal.
    Shape: [R, T, N], R at least 2 -> [N].
    """
    responses = as_trials(responses, 2, bins=2)
    trials, bins, _ = responses.shape
    random = np.random.default_rng(seed)
    squared = 0.0
    for _ in range(shifts):
        moved = (np.arange(bins) + random.integers(bins, size=(trials, 1))) % bins  # [R, T]
        squared = squared + signal_power(np.take_along_axis(responses, moved[..., None], axis=1)) ** 2
    return np.sqrt(squared / shifts)


def noise_power(responses: ArrayLike) -> np.ndarray:
    """Power of what differs between trials: a trial's mean variance over time minus `signal_power`; [R, T, N] -> [N].

    It is exactly 0 if all trials are the same.
    """
    responses = as_trials(responses, 2, bins=2)
    count = len(responses)
    # The variance around the mean of R trials is too small, by a factor of 1 - 1 / R.
    return (responses - responses.mean(0)).var(1, ddof=1).mean(0) * count / (count - 1)


def signal_to_noise(responses: ArrayLike) -> np.ndarray:
    """`signal_power` / `noise_power`, infinite without noise; [R, T, N] -> [N]."""
    signal, noise = signal_power(responses), noise_power(responses)
    return np.where((noise == 0) & (signal > 0), np.inf, ratio(signal, noise))


def cc_norm(prediction: ArrayLike, responses: ArrayLike) -> np.ndarray:
    r"""Correlation of a prediction with the mean response, relative to the highest that the noise allows.

    .. math::
        CC_\mathrm{norm} = \frac{CC_\mathrm{abs}}{CC_\mathrm{max}}
        = \frac{\mathrm{Cov}_t(\hat y, \bar y)}{\sqrt{\mathrm{Var}_t(\hat y)\, SP}}

    The prediction is a mean response [T, N], or trials of a model [S, T, N], S at least 2: then their mean is the
    prediction, and their signal power its variance, without the noise that is left in the mean of few trials. The
    responses are the recorded trials [R, T, N].

    Returns:
        [N]: about 1 for the true rate (above 1 by chance); 0 for a constant prediction, or a model without signal
        power; NaN for a recorded cell without signal power. Where either power is nearly 0, the quotient may have any
        size: see `signal_power_error`.

    Note: Schoppe et al., "Measuring the performance of neural models", Frontiers in Computational Neuroscience 10,
    2016, equations 5 to 8.
    """
    responses = as_trials(responses, 2, bins=2)
    prediction = np.asarray(prediction, float)
    if prediction.shape[-2:] != responses.shape[1:] or prediction.ndim not in (2, 3):
        expected = list(responses.shape[1:])
        raise UserError(f"expected a prediction {expected}, or trials of it, got shape {list(prediction.shape)}")
    signal, response = signal_power(responses), responses.mean(0)
    variance, mean = prediction.var(0, ddof=1), prediction
    if prediction.ndim == 3:
        variance, mean = signal_power(prediction), prediction.mean(0)
    covariance = ((mean - mean.mean(0)) * (response - response.mean(0))).sum(0) / (len(mean) - 1)
    found = ratio(covariance, np.sqrt((variance * signal).clip(0)))
    varies = exceeds_rounding(variance, (mean**2).mean(0))
    return np.where(signal > 0, np.where(varies, found, 0.0), np.nan)


def cc_max(responses: ArrayLike) -> np.ndarray:
    r"""Correlation of the true rate with the mean of the R trials, :math:`\sqrt{SP / \mathrm{Var}_t(\bar y)}`; [N].

    See `cc_norm`; NaN without signal power.
    """
    responses = as_trials(responses, 2, bins=2)
    signal = signal_power(responses)
    return np.sqrt(ratio(np.where(signal > 0, signal, np.nan), responses.mean(0).var(0, ddof=1)))


def signal_correlation(responses: ArrayLike) -> np.ndarray:
    """Correlation over time of the signals of two neurons, without that of their noise.

    The covariance is that of one neuron in one trial and the other in another trial, averaged over all pairs of trials,
    and the variances are `signal_power`: noise does not bias the correlation, which may exceed 1 by chance.

    Shape: [R, T, N], R at least 2 -> [N, N]; the diagonal is 1, NaN for neurons without signal power.
    Note: Averbeck, Latham and Pouget, "Neural correlations, population coding and computation", Nature Reviews
    Neuroscience 7, 2006; the correction is the shuffle of trials, in closed form.
    """
    responses = as_trials(responses, 2, bins=2)
    centred = responses - responses.mean(1, keepdims=True)
    total = centred.sum(0)
    same_trial = np.einsum("rtn,rtm->nm", centred, centred)
    return _correlation(total.T @ total - same_trial, (responses**2).sum((0, 1)))


def noise_correlation(responses: ArrayLike, window: int = 1) -> np.ndarray:
    """Correlation of two neurons' spike counts over trials of the same stimulus, pooled over windows of `window` bins.

    Shape: [R, T, N], R at least 2 -> [N, N]; the diagonal is 1, NaN for neurons without variability.
    Note: Averbeck, Latham and Pouget, as for `signal_correlation`.
    """
    windows = in_windows(as_trials(responses, 2), window)
    residuals = (windows - windows.mean(0)).reshape(-1, windows.shape[2])
    return _correlation(residuals.T @ residuals, (windows**2).sum((0, 1)))


def _correlation(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Correlations from sums of products [N, N], whose number cancels.

    NaN for those of a neuron with itself that are rounding errors of its sum of squares, `squares` [N].
    """
    variance = np.diagonal(products)
    deviation = np.sqrt(np.where(exceeds_rounding(variance, squares), variance, np.nan))
    return products / deviation / deviation[:, None]
