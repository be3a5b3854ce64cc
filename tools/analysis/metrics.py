"""Accuracy, calibration and uncertainty of predictions, from log-probabilities of several noise draws.

Shapes: D independent draws of a network's noise, N samples, K classes. Log-probabilities are natural logarithms.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# SciPy is imported where it is used: it takes a second, which every script would pay for.

BINS = 15  # of the calibration error
SIZES = (1, 2, 4, 8, 16)  # draws averaged into one prediction


@dataclasses.dataclass(frozen=True)
class Bin:
    """Samples of similar confidence."""

    confidence: float  # their mean
    accuracy: float
    count: int


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Scores of predictions by their compute: of averaged draws, or of more time steps."""

    scores: dict[str, float]  # by name
    draws: int  # averaged into one prediction
    ensembles: int | None = None  # number of disjoint ones, over which scores are averaged
    factor: int | None = None  # time steps, relative to training; None: the same
    timesteps: int | None = None  # then their number

    def as_json(self) -> dict[str, Any]:
        """As plain data, in one dictionary with the scores."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return {**{name: count for name, count in counts.items() if count is not None}, **self.scores}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "CurvePoint":
        """The inverse of `as_json`."""
        counts = {name: row[name] for name in COUNTS if name in row}
        return cls({name: row[name] for name in row if name not in COUNTS}, **counts)


COUNTS = ("factor", "timesteps", "draws", "ensembles")  # of a `CurvePoint`, in the order of files


def mean_prediction(draws: Tensor) -> Tensor:
    """The mean of the draws' probabilities, as log-probabilities. Shape: [D, N, K] -> [N, K], float64."""
    return draws.double().logsumexp(0) - math.log(len(draws))


def accuracy(log_probabilities: Tensor, target: Tensor) -> float:
    """Share of samples whose most probable class is the right one. Shape: [N, K], [N] -> float."""
    return (log_probabilities.argmax(-1) == target).double().mean().item()


def negative_log_likelihood(log_probabilities: Tensor, target: Tensor) -> float:
    """Mean of -ln p(right class), in nats per sample. Shape: [N, K], [N] -> float."""
    return F.nll_loss(log_probabilities.double(), target).item()


def brier_score(log_probabilities: Tensor, target: Tensor) -> float:
    """Mean squared distance between probabilities and the right answer. Shape: [N, K], [N] -> float in [0, 2].

    Note: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """
    probabilities = log_probabilities.double().exp()
    return (probabilities - F.one_hot(target, probabilities.shape[-1])).square().sum(-1).mean().item()


def calibration_error(log_probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: mean over samples of `|accuracy - mean confidence|` of the sample's bin.

    Bins are in the order of confidence; their numbers of samples differ by at most one. Few samples bias the error
    upwards: compare only values from equally many. Shape: [N, K], [N] -> float in [0, 1].
    Note: Guo et al., "On calibration of modern neural networks", ICML 2017, with the bins of equal mass of Nixon et
    al., "Measuring calibration in deep learning", CVPR workshops 2019.
    """
    found = reliability(log_probabilities, target, bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in found) / len(target)


def reliability(log_probabilities: Tensor, target: Tensor, bins: int = BINS) -> list[Bin]:
    """The bins of `calibration_error`. Shape: [N, K], [N]."""
    confidence, predicted = log_probabilities.double().exp().max(-1)
    found = []
    for samples in confidence.argsort(stable=True).tensor_split(min(bins, len(target))):
        sure, right = confidence[samples].mean().item(), (predicted == target)[samples].double().mean().item()
        found.append(Bin(sure, right, len(samples)))
    return found


def fit_temperature(log_probabilities: Tensor, target: Tensor) -> float:
    """Find the temperature T that gives softmax(ln p / T) the lowest negative log-likelihood.

    Fit it on validation data; for several draws, p is their mean (Guo et al., ICML 2017).
    Shape: [N, K], [N] -> float in [exp(-4), exp(4)].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(with_temperature(log_probabilities, math.exp(log_temperature)), target)

    return math.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)


def with_temperature(log_probabilities: Tensor, temperature: float) -> Tensor:
    """ln softmax(ln p / T). Shape: [N, K] -> [N, K], float64."""
    return F.log_softmax(log_probabilities.double() / temperature, dim=-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """-sum p ln p, in nats. Shape: [..., K] -> [...], float64."""
    return torch.special.entr(log_probabilities.double().exp()).sum(-1)


def uncertainty(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the uncertainty of each sample, in nats. Shape: [D, N, K] -> [N], three times.

    Returns the entropy of the mean prediction, the mean entropy of the draws, and their difference, the mutual
    information: how much the draws disagree.
    Note: Gal, Islam and Ghahramani, "Deep Bayesian active learning with image data", ICML 2017, for the names; there
    the draws are of weights, here of the neurons' noise.
    """
    predictive, expected = entropy(mean_prediction(draws)), entropy(draws).mean(0)
    return predictive, expected, predictive - expected


def risk_coverage_area(log_probabilities: Tensor, target: Tensor) -> float:
    """Mean, over n = 1..N, of the share of errors among the n most confident samples.

    Samples of equal confidence are taken in the order given. Shape: [N, K], [N] -> float in [0, 1].
    Note: Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
    """
    confidence, predicted = log_probabilities.max(-1)
    wrong = (predicted != target)[confidence.argsort(descending=True, stable=True)].double()
    return (wrong.cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)).mean().item()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve: probability that an uncertainty `outside` [M] exceeds one `inside` [N], ties half."""
    from scipy.stats import mannwhitneyu

    exceeding = mannwhitneyu(outside.cpu(), inside.cpu(), method="asymptotic").statistic
    return float(exceeding / (len(inside) * len(outside)))


def ensemble_curve(
    draws: Tensor, target: Tensor, validation_draws: Tensor, validation_target: Tensor, sizes: Sequence[int] = SIZES
) -> list[CurvePoint]:
    """Mean `scores` of ensembles of each size; an ensemble's prediction is the mean of its draws.

    For each size, the draws are split into as many disjoint ensembles as possible; temperatures are fitted on
    validation data, to an ensemble of the same size.

    Shape: draws [D, N, K], target [N], validation_draws [D, M, K], validation_target [M] -> a point for each size.

    Raises:
        ValueError: if there are fewer draws than the largest size.
    """
    if min(len(draws), len(validation_draws)) < max(sizes):
        raise ValueError(f"ensembles of {max(sizes)} need as many draws, got {len(draws)}, {len(validation_draws)}")
    points = []
    for size in sizes:
        temperature = fit_temperature(mean_prediction(validation_draws[:size]), validation_target)
        ensembles = [group for group in draws.split(size) if len(group) == size]
        each = [scores(group, target, temperature) for group in ensembles]
        means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
        points.append(CurvePoint(means, size, len(ensembles)))
    return points


def scores(draws: Tensor, target: Tensor, temperature: float) -> dict[str, float]:
    """Score the mean of some draws, also with the temperature ("scaled"). Shape: [D, N, K], [N]."""
    log_p = mean_prediction(draws)
    scaled = with_temperature(log_p, temperature)
    predictive, expected, mutual_information = uncertainty(draws)
    return {
        "accuracy": accuracy(log_p, target),
        "nll": negative_log_likelihood(log_p, target),
        "brier": brier_score(log_p, target),
        "calibration_error": calibration_error(log_p, target),
        "temperature": temperature,
        "brier_scaled": brier_score(scaled, target),
        "nll_scaled": negative_log_likelihood(scaled, target),
        "calibration_error_scaled": calibration_error(scaled, target),
        "risk_coverage_area": risk_coverage_area(log_p, target),
        "predictive_entropy": predictive.mean().item(),
        "expected_entropy": expected.mean().item(),
        "mutual_information": mutual_information.mean().item(),
    }


def out_of_distribution(inside: Tensor, outside: Tensor, sizes: Sequence[int] = SIZES) -> list[CurvePoint]:
    """`auroc` of three measures of uncertainty, inside and outside of the network's own data set.

    The measures are one minus the highest probability ("confidence"), predictive entropy, and mutual information.
    Shape: inside [D, N, K], outside [D, M, K] -> a point for each size.
    """
    points = []
    for size in sizes:
        own, other = _measures(inside[:size]), _measures(outside[:size])
        points.append(CurvePoint({name: auroc(own[name], other[name]) for name in own}, size))
    return points


def _measures(draws: Tensor) -> dict[str, Tensor]:
    predictive, _, mutual_information = uncertainty(draws)
    confidence = 1 - mean_prediction(draws).exp().amax(-1)
    # The mutual information of a single draw is 0: rounded, so that it gives ties, not errors of the arithmetic.
    rounded = mutual_information.mul(1e9).round()
    return {"confidence": confidence, "predictive": predictive, "mutual_information": rounded}
