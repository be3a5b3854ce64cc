"""Metrics against cases computed by hand, or of known truth."""

import math

import pytest
import torch

from tools.analysis import metrics


def logs(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


PREDICTIONS = logs([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
TARGET = torch.tensor([0, 0, 0, 1])


def simulated(count, classes=4, sharpness=2.0, seed=0):
    """Predictions that are calibrated exactly: labels drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(sharpness * torch.randn(count, classes, generator=generator, dtype=torch.float64), -1)
    return log_p, torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]


def test_scores_by_hand():
    assert metrics.accuracy(PREDICTIONS, TARGET) == 0.75
    expected = -(math.log(0.7) + math.log(0.4) + math.log(0.9) + math.log(0.8)) / 4
    assert metrics.negative_log_likelihood(PREDICTIONS, TARGET) == pytest.approx(expected)
    assert metrics.brier_score(PREDICTIONS, TARGET) == pytest.approx((2 * 0.09 + 2 * 0.36 + 2 * 0.01 + 2 * 0.04) / 4)


def test_the_calibration_error_by_hand():
    # Two bins of two, by confidence: {0.6 wrong, 0.7 right}, {0.8 right, 0.9 right}.
    expected = (abs(1 - 1.3) + abs(2 - 1.7)) / 4
    assert metrics.calibration_error(PREDICTIONS, TARGET, bins=2) == pytest.approx(expected)
    assert metrics.calibration_error(PREDICTIONS, TARGET, bins=1) == pytest.approx(abs(3 - 3.0) / 4)
    assert metrics.calibration_error(logs([[1.0, 0.0]] * 5), torch.zeros(5, dtype=torch.int64)) == 0
    assert metrics.calibration_error(logs([[1.0, 0.0]] * 5), torch.ones(5, dtype=torch.int64)) == 1


def test_the_bins_of_a_reliability_diagram_by_hand():
    low, high = metrics.reliability(PREDICTIONS, TARGET, bins=2)
    assert low == {"confidence": pytest.approx(0.65), "accuracy": 0.5, "count": 2}
    assert high == {"confidence": pytest.approx(0.85), "accuracy": 1.0, "count": 2}
    assert sum(row["count"] for row in metrics.reliability(PREDICTIONS, TARGET, bins=15)) == 4  # no empty bins


def test_calibrated_predictions_have_a_small_error_and_others_a_larger_one():
    log_p, target = simulated(20_000)
    assert metrics.calibration_error(log_p, target) < 0.015
    assert metrics.calibration_error(metrics.with_temperature(log_p, 0.5), target) > 0.05


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_undoes_a_wrong_one(true):
    log_p, target = simulated(20_000)
    wrong = metrics.with_temperature(log_p, 1 / true)  # as if its logits were `true` times too large
    fitted = metrics.fit_temperature(wrong, target)
    assert fitted == pytest.approx(true, rel=0.05)
    assert metrics.calibration_error(metrics.with_temperature(wrong, fitted), target) < 0.02


def test_draws_are_averaged_as_probabilities():
    draws = torch.stack([logs([[0.9, 0.1]]), logs([[0.1, 0.9]]), logs([[0.5, 0.5]])])
    assert torch.allclose(metrics.mean_prediction(draws).exp(), torch.tensor([[0.5, 0.5]], dtype=torch.float64))


def test_uncertainty_is_disagreement_plus_what_each_draw_has():
    certain_but_different = torch.stack([logs([[1.0, 0.0]]), logs([[0.0, 1.0]])])
    both_unsure = torch.stack([logs([[0.5, 0.5]])] * 2)
    for draws, expected, mutual in ((certain_but_different, 0, math.log(2)), (both_unsure, math.log(2), 0)):
        found = metrics.uncertainty(draws)
        assert [part.item() for part in found] == pytest.approx([math.log(2), expected, mutual], abs=1e-12)
    random = torch.log_softmax(torch.randn(8, 100, 5), -1)
    assert (metrics.uncertainty(random)[2] > 0).all()  # Jensen


def test_the_area_under_risk_and_coverage_by_hand():
    # In the order of confidence: 0.9 right, 0.8 right, 0.7 right, 0.6 wrong.
    assert metrics.risk_coverage_area(PREDICTIONS, TARGET) == pytest.approx((0 + 0 + 0 + 0.25) / 4)
    reverse = metrics.risk_coverage_area(PREDICTIONS, torch.tensor([0, 1, 1, 1]))  # the most confident one is wrong
    assert reverse == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_auroc_counts_pairs_and_half_of_the_ties():
    inside, outside = torch.tensor([0.1, 0.3, 0.5]), torch.tensor([0.3, 0.6])
    assert metrics.auroc(inside, outside) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert metrics.auroc(inside, inside) == 0.5
    assert metrics.auroc(inside, inside + 1) == 1
    assert metrics.auroc(inside + 1, inside) == 0
