"""Accuracy, calibration and uncertainty of a network against the number of noise draws that are averaged."""

from . import metrics

SIZES = (1, 2, 4, 8, 16)  # draws averaged into one prediction


def ensemble_curve(draws, target, validation_draws, validation_target, sizes=SIZES):
    """How good and how certain the mean of several draws is.

    Of each size, all disjoint ensembles that the draws can make are scored, and the mean is given. Temperatures are
    fitted on validation data, to ensembles of the same size.

    Shape:
        draws [K, N, C], target [N], validation_draws [K, M, C], validation_target [M] -> list of rows: {"draws",
        "ensembles", and the scores of `scores`}.

    Raises:
        ValueError: if there are fewer draws than the largest size.
    """
    if min(len(draws), len(validation_draws)) < max(sizes):
        raise ValueError(f"ensembles of {max(sizes)} need as many draws, got {len(draws)}, {len(validation_draws)}")
    rows = []
    for size in sizes:
        temperature = metrics.fit_temperature(metrics.mean_prediction(validation_draws[:size]), validation_target)
        ensembles = [group for group in draws.split(size) if len(group) == size]
        each = [scores(group, target, temperature) for group in ensembles]
        means = {name: sum(row[name] for row in each) / len(each) for name in each[0]}
        rows.append({"draws": size, "ensembles": len(ensembles), **means})
    return rows


def scores(draws, target, temperature):
    """Scores of the mean prediction of some draws. Shape: [K, N, C], [N] -> {name: float}."""
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


def out_of_distribution(inside, outside, sizes=SIZES):
    """How well each measure of uncertainty tells another data set from the network's own.

    Shape:
        inside [K, N, C], outside [K, M, C] -> list of rows {"draws", and the area under the ROC curve by "confidence"
        (one minus the highest probability), "predictive" entropy and "mutual_information"}.
    """
    rows = []
    for size in sizes:
        by_measure = [_measures(draws[:size]) for draws in (inside, outside)]
        areas = {name: metrics.auroc(*(part[name] for part in by_measure)) for name in by_measure[0]}
        rows.append({"draws": size, **areas})
    return rows


def _measures(draws):
    parts = metrics.uncertainty(draws)
    confidence = metrics.mean_prediction(draws).exp().amax(-1)
    return {
        "confidence": 1 - confidence,
        "predictive": parts["predictive"],
        # rounded, so that a single draw, which disagrees with nobody, gives ties and not noise of the arithmetic
        "mutual_information": parts["mutual_information"].mul(1e9).round(),
    }
