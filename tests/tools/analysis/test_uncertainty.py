"""The curve against the number of draws, on draws whose truth is known."""

import pytest
import torch

from tools.analysis import metrics
from tools.analysis.metrics import ensemble_curve, out_of_distribution


def noisy_draws(count, samples, seed, noise=2.0):
    """Draws around logits from which the labels are drawn. -> [count, samples, 3], [samples]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, 3, generator=generator)
    target = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    draws = logits + noise * torch.randn(count, samples, 3, generator=generator)
    return draws.log_softmax(-1), target


def test_more_draws_are_better_and_what_they_disagree_about_shows():
    draws, target = noisy_draws(16, 2000, 0)
    rows = ensemble_curve(draws, target, *noisy_draws(16, 1000, 1))
    assert [(row["draws"], row["ensembles"]) for row in rows] == [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]
    for name in ("nll", "brier", "risk_coverage_area"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True)
    assert rows[0]["mutual_information"] == pytest.approx(0, abs=1e-9) and rows[4]["mutual_information"] > 0.1
    one = rows[0]  # too confident: its noise is not known to it
    assert one["temperature"] > 1.2 and one["nll_scaled"] < one["nll"]
    assert one["calibration_error_scaled"] < 0.5 * one["calibration_error"]
    last = metrics.mean_prediction(draws)
    assert rows[4]["accuracy"] == metrics.accuracy(last, target)
    assert rows[4]["nll"] == metrics.negative_log_likelihood(last, target)


def test_the_temperature_is_fitted_on_validation_data_alone():
    draws, target = noisy_draws(4, 500, 0)
    validation = noisy_draws(4, 500, 1)
    rows = ensemble_curve(draws, target, *validation, sizes=(1, 4))
    other = ensemble_curve(draws, target.roll(7), *validation, sizes=(1, 4))
    assert [row["temperature"] for row in rows] == [row["temperature"] for row in other]
    expected = metrics.fit_temperature(metrics.mean_prediction(validation[0]), validation[1])
    assert rows[1]["temperature"] == expected


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="ensembles of 16"):
        ensemble_curve(*noisy_draws(8, 10, 0), *noisy_draws(16, 10, 1))


def test_another_data_set_is_told_by_its_uncertainty():
    inside, _ = noisy_draws(4, 500, 0, noise=0.1)
    outside = (0.1 * torch.randn(4, 300, 3, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    one, four = out_of_distribution(inside, outside, sizes=(1, 4))
    assert one["mutual_information"] == 0.5  # one draw disagrees with nobody
    assert min(one["predictive"], one["confidence"], four["predictive"], four["confidence"]) > 0.9
    assert all(
        value == pytest.approx(0.5)
        for name, value in out_of_distribution(inside, inside, (2,))[0].items()
        if name != "draws"
    )
