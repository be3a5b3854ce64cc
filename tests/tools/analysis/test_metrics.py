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
    assert low == metrics.Bin(pytest.approx(0.65), accuracy=0.5, count=2)
    assert high == metrics.Bin(pytest.approx(0.85), accuracy=1.0, count=2)
    assert sum(one.count for one in metrics.reliability(PREDICTIONS, TARGET, bins=15)) == 4  # no empty bins


def test_calibrated_predictions_have_a_small_error_and_others_a_larger_one():
    log_p, target = simulated(100_000)
    assert metrics.calibration_error(log_p, target) < 0.015  # 0.005 +- 0.001 by chance
    assert metrics.calibration_error(metrics.with_temperature(log_p, 0.5), target) > 0.05
    assert len(metrics.reliability(log_p, target)) == 15
    assert metrics.calibration_error(log_p, target) == metrics.calibration_error(log_p, target, bins=15)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_undoes_a_wrong_one(true):
    log_p, target = simulated(100_000)
    wrong = metrics.with_temperature(log_p, 1 / true)  # as if its logits were `true` times too large
    fitted = metrics.fit_temperature(wrong, target)
    assert fitted == pytest.approx(true, rel=0.05)  # the standard error is 0.3 %
    assert metrics.calibration_error(metrics.with_temperature(wrong, fitted), target) < 0.02


def test_the_temperature_has_bounds():
    always = logs([[0.6, 0.4]] * 4)
    for target, most in ((torch.zeros(4, dtype=torch.int64), -4), (torch.ones(4, dtype=torch.int64), 4)):
        assert math.log(metrics.fit_temperature(always, target)) == pytest.approx(most, abs=1e-3)


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


def noisy_draws(count, samples, seed, noise=2.0):
    """Draws around logits from which the labels are drawn. -> [count, samples, 3], [samples]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, 3, generator=generator)
    target = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    draws = logits + noise * torch.randn(count, samples, 3, generator=generator)
    return draws.log_softmax(-1), target


def test_more_draws_are_better_and_what_they_disagree_about_shows():
    draws, target = noisy_draws(16, 2000, 0)
    rows = metrics.ensemble_curve(draws, target, *noisy_draws(16, 1000, 1))
    assert [(row.draws, row.ensembles) for row in rows] == [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]
    for name in ("nll", "brier", "risk_coverage_area"):
        values = [row.scores[name] for row in rows]
        assert values == sorted(values, reverse=True)
    one, sixteen = rows[0].scores, rows[4].scores
    assert one["mutual_information"] == pytest.approx(0, abs=1e-9) and sixteen["mutual_information"] > 0.1
    assert one["temperature"] > 1.2 and one["nll_scaled"] < one["nll"]  # too confident: its noise is not known to it
    assert one["calibration_error_scaled"] < 0.5 * one["calibration_error"]
    last = metrics.mean_prediction(draws)
    assert sixteen["accuracy"] == metrics.accuracy(last, target)
    assert sixteen["nll"] == metrics.negative_log_likelihood(last, target)


def test_the_temperature_is_fitted_on_validation_data_alone():
    draws, target = noisy_draws(4, 500, 0)
    validation = noisy_draws(4, 500, 1)
    rows = metrics.ensemble_curve(draws, target, *validation, sizes=(1, 4))
    other = metrics.ensemble_curve(draws, target.roll(7), *validation, sizes=(1, 4))
    assert [row.scores["temperature"] for row in rows] == [row.scores["temperature"] for row in other]
    expected = metrics.fit_temperature(metrics.mean_prediction(validation[0]), validation[1])
    assert rows[1].scores["temperature"] == expected


def test_too_few_draws_are_refused():
    for draws, others in ((8, 16), (16, 8)):
        with pytest.raises(ValueError, match=f"ensembles of 16 .* got {draws}, {others}"):
            metrics.ensemble_curve(*noisy_draws(draws, 10, 0), *noisy_draws(others, 10, 1))


def test_draws_that_make_no_whole_ensemble_are_left_out():
    (draws, target), validation = noisy_draws(5, 50, 0), noisy_draws(2, 50, 1)
    whole, part = (metrics.ensemble_curve(one, target, *validation, sizes=(2,)) for one in (draws[:4], draws))
    assert whole == part and part[0].ensembles == 2


def test_another_data_set_is_told_by_its_uncertainty():
    inside, _ = noisy_draws(4, 500, 0, noise=0.1)
    outside = (0.1 * torch.randn(4, 300, 3, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    one, four = (point.scores for point in metrics.out_of_distribution(inside, outside, sizes=(1, 4)))
    assert one["mutual_information"] == 0.5  # one draw disagrees with nobody
    assert min(one["predictive"], one["confidence"], four["predictive"], four["confidence"]) > 0.9
    (same,) = metrics.out_of_distribution(inside, inside, (2,))
    assert list(same.scores.values()) == pytest.approx([0.5] * 3)


def test_a_point_of_a_curve_is_one_dictionary_in_files():
    point = metrics.CurvePoint({"nll": 0.5}, draws=2, ensembles=8)
    assert list(point.as_json().items()) == [("draws", 2), ("ensembles", 8), ("nll", 0.5)]
    more = metrics.CurvePoint({"nll": 0.5}, draws=1, ensembles=4, factor=2, timesteps=4)
    assert list(more.as_json()) == ["factor", "timesteps", "draws", "ensembles", "nll"]
    for one in (point, more):
        assert metrics.CurvePoint.from_json(one.as_json()) == one
