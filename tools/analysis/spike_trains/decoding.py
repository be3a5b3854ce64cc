"""What an observer can tell about the stimulus from spike trains."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tools.errors import UserError

from .arrays import as_trials, in_windows


def decoding_accuracy(
    spikes: ArrayLike, window: int, pooled: Sequence[int], repeats: int = 20, seed: int = 0
) -> np.ndarray:
    r"""How well naive Bayes tells the stimulus from the pooled responses of held-out trials.

    The stimulus is cut into windows, which are the classes. Half of the trials give the probability p of a spike, of
    each bin and neuron, as (k + 1/2) / (n + 1); the responses of `pooled` others are summed and go to the class of
    largest likelihood,

    .. math::
        \log P = \sum_i x_i \log p_i + (m - x_i) \log(1 - p_i).

    Args:
        spikes: 0 or 1 [R, T, N], R at least 2.
        window: length of a class in bins.
        pooled: numbers m of pooled trials, each in 1..R // 2.
        repeats, seed: number of random splits of the trials, and their seed.

    Returns:
        Accuracies [len(pooled)], means over repeats; chance is 1 / (T // window). Equal likelihoods share the success.

    Note:
        The smoothing is Jeffreys' prior. Quian Quiroga and Panzeri, Nature Reviews Neuroscience 10, 2009, on decoding.
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
    """Mean over rows i of scores [K, K] of 1 / (number of largest scores), where score i is among the largest."""
    largest = np.isclose(scores, scores.max(1, keepdims=True), rtol=1e-9, atol=1e-9)
    return (np.diagonal(largest) / largest.sum(1)).mean()
