"""Exact gradients by enumeration, and estimates of them: what is exact, what is unbiased, what has which bias."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from models import Cauchy, Gaussian, NoiseLaw, Triangular, Uniform, noise_generator
from models.noise import LAWS
from tests import chance
from tests.conftest import lines_of
from tools.studies.matching import law_of_std
from tools.studies.study import Study
from tools.studies.theory import experiments
from tools.studies.theory.enumeration import SmallNetwork
from tools.studies.theory.estimators import (
    ESTIMATORS,
    QUANTITIES,
    Comparison,
    compare,
    drawn,
    estimates,
    ndl,
    reinforce,
)
from tools.studies.theory.experiments import deviations, expected_curves


def network(law=Gaussian(0.3), depth=2, width=2, timesteps=2, loss="squared", seed=0):
    return SmallNetwork.random(law, depth, width, timesteps, seed, loss)


@pytest.fixture(autouse=True)
def noise():
    with noise_generator(torch.Generator().manual_seed(0)):
        yield


@pytest.mark.parametrize("law", [Gaussian(0.3), Triangular(0.6), Cauchy(0.2)], ids=repr)
def test_the_expected_loss_is_the_mean_of_drawn_losses(law):
    small = network(law)
    losses = []
    for _ in range(20):
        _, spikes = drawn(small, 5000)
        losses.append(small.loss_of(spikes[-1]).detach())
    losses = torch.cat(losses)
    error = losses.std() / math.sqrt(len(losses))
    assert abs(small.expected_loss(small.weights) - losses.mean()) < chance.deviations() * error


def test_the_exact_gradient_is_the_difference_quotient():
    small, step = network(), 1e-5
    exact = small.exact_gradient()
    place = 0
    for layer, weight in enumerate(small.weights):
        for index in range(weight.numel()):
            values = []
            for sign in (1, -1):
                changed = [one.clone() for one in small.weights]
                changed[layer].view(-1)[index] += sign * step
                values.append(small.expected_loss(changed))
            assert ((values[0] - values[1]) / (2 * step)).item() == pytest.approx(
                exact[place].item(), rel=1e-5, abs=1e-9
            )
            place += 1
    assert place == len(exact)


@pytest.mark.parametrize("name", ["REINFORCE", "REINFORCE, baseline"])
@pytest.mark.parametrize("law", [Gaussian(0.4), Uniform(0.8)], ids=repr)
def test_the_score_function_is_unbiased(name, law):
    small = network(law)
    gradients = torch.cat([estimates(name, small, 10_000) for _ in range(10)])
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - small.exact_gradient()).abs() < chance.deviations(len(error)) * error).all()


@pytest.mark.parametrize("law", LAWS)
def test_with_one_layer_one_step_and_linear_loss_learning_is_exact(law):
    """... with every draw: the density does not depend on the spike."""
    small = network(law_of_std(law, 0.3), depth=1, timesteps=1, width=4, loss="linear")
    assert torch.allclose(ndl(small, 3), small.exact_gradient().expand(3, -1), atol=1e-12)


def test_the_bias_of_a_squared_loss_is_that_of_its_curvature():
    """dL/ds at the spike, instead of L(1) - L(0), is off by w^2 (2 p - 1) in the mean."""
    small = network(depth=1, timesteps=1, width=3)
    z = small.inputs[0] @ small.weights[0].T - small.threshold
    expected = small.readout.square() * (2 * small.law.cdf(z) - 1) * small.law.pdf(z)
    bias = (expected[:, None] * small.inputs[0]).flatten()
    gradients = torch.cat([ndl(small, 10_000) for _ in range(20)])
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert (bias.abs() > 10 * error).any()
    unexplained = (gradients.mean(0) - small.exact_gradient() - bias).abs()
    assert (unexplained < chance.deviations(len(error)) * error + 1e-12).all()


def test_comparison_of_estimates_with_known_bias_and_variance():
    # All within 6 standard errors, or more.
    exact = torch.tensor([3.0, 4.0])
    generator = torch.Generator().manual_seed(0)
    found = compare(exact + torch.tensor([0.5, 0.0]) + torch.randn(200_000, 2, generator=generator), exact)
    assert found.bias == pytest.approx(0.1, abs=0.003)
    assert found.variance == pytest.approx(2 / 25, rel=0.02)
    assert found.bias_error == pytest.approx(math.sqrt(2 / 25 / 200_000), rel=0.02)
    assert found.cosine == pytest.approx((3 * 3.5 + 16) / 5 / math.hypot(3.5, 4), abs=2e-4)
    assert compare(exact[None], exact).bias == 0


def test_a_baseline_lowers_the_variance():
    small = network()
    assert reinforce(small, 5000, baseline=True).var(0).sum() < reinforce(small, 5000).var(0).sum() / 2


def test_too_many_patterns_are_refused():
    with pytest.raises(ValueError, match="a pattern has 24 spikes"):
        network(depth=3, width=4, timesteps=2).exact_gradient()


@pytest.mark.parametrize("law", LAWS)
def test_laws_are_matched(law):
    matched = law_of_std(law, 0.3)
    if law is Cauchy:
        p = torch.tensor([0.25, 0.75], dtype=torch.float64)
        assert torch.allclose(matched.icdf(p), Gaussian(0.3).icdf(p))
    else:
        assert matched.std == pytest.approx(0.3)


def test_a_law_without_a_standard_deviation_is_matched_by_its_quartiles():
    class Tailed(NoiseLaw):
        """A Cauchy law of one's own."""

        cdf, pdf, icdf, unit_std = Cauchy.cdf, Cauchy.pdf, Cauchy.icdf, Cauchy.unit_std

    assert law_of_std(Tailed, 0.3).scale == pytest.approx(law_of_std(Cauchy, 0.3).scale)


@pytest.mark.slow
def test_measured_probabilities_are_judged(tmp_path, figures):
    found = experiments.firing(Study(tmp_path, quick=True))
    above, below = figures["firing.png"].axes[0], figures["firing.png"].axes[len(LAWS)]
    assert above.get_title() == LAWS[0].__name__
    for panel, quantity in ((above, "probability"), (below, "gradient")):
        lines, wanted = lines_of(panel), expected_curves(law_of_std(LAWS[0], 0.3), "escape")
        assert lines["escape: expected"][1] == pytest.approx(getattr(wanted, quantity), abs=1e-6)
        assert lines["both: measured"][1] == pytest.approx(lines["both: expected"][1], abs=0.02)
    assert set(found["laws"]) == {law.__name__ for law in LAWS}
    rows = [row for law in found["laws"].values() for row in law.values()]
    assert all(set(law) == {"escape", "membrane", "both"} for law in found["laws"].values())
    assert min(row["p"] for row in rows) > 1e-9  # smaller than 1e-6 / 15, as small counts are only nearly normal
    assert max(row["largest_probability_error"] for row in rows) < 0.01  # 6 standard errors
    tested = [row["tested"] for row in rows]
    most = chance.deviations(2 * sum(tested))
    assert all(0 < row["largest_slope_z"] < most and row["largest_slope_error"] > 0 for row in rows)
    assert max(row["largest_slope_z"] for row in rows) > 1 and all(10 <= count <= 41 for count in tested)
    squares = np.average([row["slope_z_square"] for row in rows], weights=tested)
    assert squares == pytest.approx(1, abs=0.5)  # 6 standard errors: neighbouring slopes share a probability
    for law in found["laws"].values():
        assert max(law[place]["largest_gradient_error"] for place in ("escape", "both")) < 0.01
        assert law["membrane"]["largest_gradient_error"] > 0.05


def test_what_is_measured_does_not_fit_another_law():
    measured = experiments.fire(Gaussian(0.3), "escape", 100_000, 0)
    wrong = deviations(measured, expected_curves(Gaussian(0.31), "escape"), 100_000)
    assert wrong["p"] < 1e-9
    right = expected_curves(Gaussian(0.3), "escape")
    assert deviations(measured, right, 100_000)["largest_slope_z"] < chance.deviations(len(right.slope))
    steeper = dataclasses.replace(right, slope=1.3 * right.slope)
    assert deviations(measured, steeper, 100_000)["largest_slope_z"] > 9  # 15 +- 1


def test_the_density_between_potentials_is_the_difference_of_probabilities():
    for law, placement in ((Gaussian(0.3), "escape"), (Uniform(0.5), "escape"), (Gaussian(0.2), "both")):
        expected = expected_curves(law, placement)
        slope = np.diff(expected.probability) / np.diff(experiments.POTENTIALS)
        assert expected.slope == pytest.approx(slope, abs=0.02)
    both, of_sum = expected_curves(Gaussian(0.3), "both"), expected_curves(Gaussian(0.3 * 2**0.5), "escape")
    for one, other in zip(vars(both).values(), vars(of_sum).values()):
        assert one == pytest.approx(other, abs=1e-4)


def test_relative_to_no_gradient_nothing_is_said():
    assert all(math.isnan(value) for value in vars(compare(torch.ones(3, 2), torch.zeros(2))).values())


def test_results_of_exactness_are_those_of_their_cases(tmp_path, monkeypatch, figures):
    def measured(law, layers, width, steps, seed, loss, names):
        assert list(names) == ["NDL"] and layers == 1
        return {"NDL": Comparison(100 * (loss == "squared") + 10 * steps + width + (seed == first))}

    first = Study(tmp_path).seed_for("exactness", 0)
    monkeypatch.setattr(experiments, "measure", measured)
    found = experiments.exactness(Study(tmp_path, quick=True))
    cases = {(row.loss, row.steps, row.width) for row in found["median_bias"]}
    assert len(cases) == len(found["median_bias"]) and {loss for loss, *_ in cases} == {"linear", "squared"}
    for row in found["median_bias"]:
        assert row.bias == 100 * (row.loss == "squared") + 10 * row.steps + row.width
    widths, biases = lines_of(figures["exactness.png"].axes[0])["squared loss"]
    assert biases == [110 + width for width in widths]
    (steps, biases), *_ = lines_of(figures["exactness.png"].axes[1]).values()
    assert biases == [10 * step + 3 for step in steps]


@pytest.mark.slow
def test_results_of_gradients_are_those_of_their_cases(tmp_path, monkeypatch, figures):
    """... and networks without a gradient are left out, and counted."""

    def measured(law, layers, width, steps, seed):
        if isinstance(law, Uniform) and (layers == 3 or seed in without_gradient):
            return {name: compare(torch.ones(2, 1), torch.zeros(1)) for name in ESTIMATORS}
        found = {}
        for place, name in enumerate(ESTIMATORS):
            found[name] = Comparison(**dict.fromkeys(QUANTITIES, 10 * layers + law.scale + 100 * place))
        return found

    without_gradient = Study(tmp_path, quick=True).seeds("gradients", full=20, quick=6)[:2]
    monkeypatch.setattr(experiments, "measure", measured)
    monkeypatch.setattr(experiments, "LAWS", (Gaussian, Uniform))
    found = experiments.gradients(Study(tmp_path, quick=True))
    for law in (Gaussian, Uniform):
        of_law = found["medians_over_networks"][law.__name__]
        for depth, place in ((1, 0), (2, 5), (3, 2)):
            name = list(ESTIMATORS)[place]
            expected = [10 * depth + law_of_std(law, std).scale + 100 * place for std in experiments.SCALES]
            if law is Uniform and depth == 3:
                expected = [math.nan] * len(expected)
            assert of_law[f"{depth} layers"][name]["variance"] == pytest.approx(expected, nan_ok=True)
            count = 6 if law is not Uniform else 0 if depth == 3 else 4
            assert found["networks_with_a_gradient"][law.__name__][f"{depth} layers"] == [count] * len(expected)
        shown = lines_of(figures[f"gradients_{law.__name__.lower()}.png"].axes[1])["NDL"]  # bias with two layers
        assert shown == (list(experiments.SCALES), pytest.approx(of_law["2 layers"]["NDL"]["bias"]))


def test_one_network_is_measured_against_its_exact_gradient():
    options = dict(layers=1, width=2, steps=1, seed=3, loss="squared", names=("NDL", "REINFORCE", "mean field"))
    found = experiments.measure(Gaussian(0.4), **options)
    assert found["REINFORCE"].bias < chance.deviations() * found["REINFORCE"].bias_error
    assert found["NDL"].bias > 10 * found["NDL"].bias_error and found["mean field"].variance == 0
    assert found == experiments.measure(Gaussian(0.4), **options)


def test_the_limit_is_approached_in_proportion_to_the_scale(tmp_path, figures):
    found = experiments.limit(Study(tmp_path, quick=True))
    assert found["exponent"]["Gaussian"] == pytest.approx(1, abs=0.15)  # 6 standard errors
    assert 0.5 < found["exponent"]["Cauchy"] < 0.9  # 0.79 +- 0.016
    assert all(np.all(np.diff(row) > 0) for row in found["differing"].values())
    shown = lines_of(figures["limit.png"].axes[0])
    assert {law: y for law, (_, y) in shown.items()} == found["differing"]
