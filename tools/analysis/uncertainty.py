"""Accuracy, calibration and uncertainty of a network against the number of noise draws that are averaged.

The rows are dictionaries, which go into results.json as they are.
"""

from collections.abc import Sequence

from torch import Tensor

from tools.errors import UserError

from . import metrics

SIZES = (1, 2, 4, 8, 16)  # draws averaged into one prediction


def ensemble_curve(
    draws: Tensor, target: Tensor, validation_draws: Tensor, validation_target: Tensor, sizes: Sequence[int] = SIZES
) -> list[dict[str, float]]:
    """Score the mean of several draws: how good and how certain it is.

    All disjoint ensembles of a size that the draws can make are scored ("ensembles" many, of "draws" each), and the
    means of their `scores` are given. Temperatures are fitted on validation data, to ensembles of the same size.

    Shape: draws [K, N, C], target [N], validation_draws [K, M, C], validation_target [M] -> a row for each size.
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


def scores(draws: Tensor, target: Tensor, temperature: float) -> dict[str, float]:
    """Score the mean of some draws, also after division by the temperature ("scaled"). Shape: [K, N, C], [N]."""
    log_p = metrics.mean_prediction(draws)
    scaled = metrics.with_temperature(log_p, temperature)
    predictive, expected, mutual_information = metrics.uncertainty(draws)
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
        "predictive_entropy": predictive.mean().item(),
        "expected_entropy": expected.mean().item(),
        "mutual_information": mutual_information.mean().item(),
    }


def out_of_distribution(inside: Tensor, outside: Tensor, sizes: Sequence[int] = SIZES) -> list[dict[str, float]]:
    """Areas under the ROC curves of three measures of uncertainty, which tell another data set from the network's own.

    The measures are one minus the highest probability ("confidence"), predictive entropy, and mutual information.
    Shape: inside [K, N, C], outside [K, M, C] -> a row for each size.
    """
    rows = []
    for size in sizes:
        own, other = _measures(inside[:size]), _measures(outside[:size])
        rows.append({"draws": size, **{name: metrics.auroc(own[name], other[name]) for name in own}})
    return rows


def _measures(draws: Tensor) -> dict[str, Tensor]:
    predictive, _, mutual_information = metrics.uncertainty(draws)
    confidence = 1 - metrics.mean_prediction(draws).exp().amax(-1)
    # Rounded, so that a single draw, which disagrees with nobody, gives ties and not noise of the arithmetic.
    rounded = mutual_information.mul(1e9).round()
    return {"confidence": confidence, "predictive": predictive, "mutual_information": rounded}
