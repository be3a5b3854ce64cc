"""Accuracy, calibration and uncertainty of a network against the number of noise draws that are averaged.

The rows are dictionaries, which go into results.json as they are.
"""

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from tools.errors import UserError

from . import metrics

SIZES = (1, 2, 4, 8, 16)  # draws averaged into one prediction


class Scores(TypedDict):
    """Scores of predictions, as `metrics` defines them; "scaled" ones after division by the temperature."""

    accuracy: float
    nll: float
    brier: float
    calibration_error: float
    temperature: float
    brier_scaled: float
    nll_scaled: float
    calibration_error_scaled: float
    risk_coverage_area: float
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


class EnsembleRow(Scores):
    """Mean scores of `ensembles` ensembles of `draws` draws each."""

    draws: int
    ensembles: int


class OutsideRow(TypedDict):
    """Areas under the ROC curves of measures of uncertainty, after averaging `draws` draws."""

    draws: int
    confidence: float
    predictive: float
    mutual_information: float


def ensemble_curve(
    draws: Tensor, target: Tensor, validation_draws: Tensor, validation_target: Tensor, sizes: Sequence[int] = SIZES
) -> list[EnsembleRow]:
    """Score the mean of several draws: how good and how certain it is.

    Of each size, all disjoint ensembles that the draws can make are scored, and the mean is given. Temperatures are
    fitted on validation data, to ensembles of the same size.

    Shape:
        draws [K, N, C], target [N], validation_draws [K, M, C], validation_target [M] -> a row for each size.

    Raises:
        UserError: if there are fewer draws than the largest size.
    """
    if min(len(draws), len(validation_draws)) < max(sizes):
        raise UserError(f"ensembles of {max(sizes)} need as many draws, got {len(draws)}, {len(validation_draws)}")
    rows = []
    for size in sizes:
        temperature = metrics.fit_temperature(metrics.mean_prediction(validation_draws[:size]), validation_target)
        ensembles = [group for group in draws.split(size) if len(group) == size]
        each = [scores(group, target, temperature) for group in ensembles]
        means = {name: sum(row[name] for row in each) / len(each) for name in each[0]}
        rows.append({"draws": size, "ensembles": len(ensembles), **means})
    return rows


def scores(draws: Tensor, target: Tensor, temperature: float) -> Scores:
    """Score the mean prediction of some draws. Shape: [K, N, C], [N]."""
    log_p = metrics.mean_prediction(draws)
    scaled = metrics.with_temperature(log_p, temperature)
    parts = metrics.uncertainty(draws)
    return {
        "accuracy": metrics.accuracy(log_p, target),
        "nll": metrics.negative_log_likelihood(log_p, target),
        "brier": metrics.brier_score(log_p, target),
        "calibration_error": metrics.calibration_error(log_p, target),
        "temperature": temperature,
        "brier_scaled": metrics.brier_score(scaled, target),
        "nll_scaled": metrics.negative_log_likelihood(scaled, target),
        "calibration_error_scaled": metrics.calibration_error(scaled, target),
        "risk_coverage_area": metrics.risk_coverage_area(log_p, target),
        "predictive_entropy": parts["predictive"].mean().item(),
        "expected_entropy": parts["expected"].mean().item(),
        "mutual_information": parts["mutual_information"].mean().item(),
    }


def out_of_distribution(inside: Tensor, outside: Tensor, sizes: Sequence[int] = SIZES) -> list[OutsideRow]:
    """Score how well each measure of uncertainty tells another data set from the network's own.

    The measures are one minus the highest probability ("confidence"), predictive entropy, and mutual information.

    Shape:
        inside [K, N, C], outside [K, M, C] -> a row for each size.
    """
    rows = []
    for size in sizes:
        own, other = _measures(inside[:size]), _measures(outside[:size])
        rows.append({"draws": size, **{name: metrics.auroc(own[name], other[name]) for name in own}})
    return rows


def _measures(draws: Tensor) -> dict[str, Tensor]:
    parts = metrics.uncertainty(draws)
    confidence = metrics.mean_prediction(draws).exp().amax(-1)
    return {
        "confidence": 1 - confidence,
        "predictive": parts["predictive"],
        # rounded, so that a single draw, which disagrees with nobody, gives ties and not noise of the arithmetic
        "mutual_information": parts["mutual_information"].mul(1e9).round(),
    }
