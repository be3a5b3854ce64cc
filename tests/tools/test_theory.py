"""Exact gradients by enumeration, and estimates of them: what is exact, what is unbiased, what has which bias."""

import math

import numpy as np
import pytest
import torch

from models import Cauchy, Gaussian, Triangular, Uniform, noise_generator
from tools.matching import LAWS, law_of_std
from tools.study import Study
from tools.theory import experiments
from tools.theory.enumeration import SmallNetwork
from tools.theory.estimators import compare, drawn_spikes, estimates, ndl, reinforce


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
        weights = [weight.expand(5000, -1, -1) for weight in small.weights]
        losses.append(small.loss_of(drawn_spikes(small, weights, 5000)[-1]))
    losses = torch.cat(losses)
    error = losses.std() / math.sqrt(len(losses))
    assert abs(small.expected_loss(small.weights) - losses.mean()) < 4 * error


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
    assert ((gradients.mean(0) - small.exact_gradient()).abs() < 4.5 * error).all()


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
    assert ((gradients.mean(0) - small.exact_gradient() - bias).abs() < 4.5 * error + 1e-12).all()


def test_comparison_of_estimates_with_known_bias_and_variance():
    exact = torch.tensor([3.0, 4.0])
    generator = torch.Generator().manual_seed(0)
    found = compare(exact + torch.tensor([0.5, 0.0]) + torch.randn(200_000, 2, generator=generator), exact)
    assert found["bias"] == pytest.approx(0.1, abs=0.003)
    assert found["variance"] == pytest.approx(2 / 25, rel=0.02)
    assert found["bias_error"] == pytest.approx(math.sqrt(2 / 25 / 200_000), rel=0.02)
    assert found["cosine"] == pytest.approx((3 * 3.5 + 16) / 5 / math.hypot(3.5, 4), abs=1e-4)
    assert compare(exact[None], exact)["bias"] == 0


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


def test_measured_probabilities_are_judged_and_a_wrong_law_is_noticed(tmp_path, monkeypatch):
    found = experiments.firing(Study(tmp_path, quick=True))
    assert (tmp_path / "firing.png").stat().st_size > 10_000
    of_laws = found["laws"].values()
    assert min(row["p"] for law in of_laws for row in law.values()) > 1e-3 / 15
    assert max(row["largest_error"] for law in of_laws for row in law.values()) < 0.01
    assert max(law[place]["largest_gradient_error"] for law in of_laws for place in ("escape", "both")) < 0.01
    u = torch.linspace(-0.25, 2.25, 41)
    measured = experiments._fire((Gaussian, "escape", u, 100_000, 0))
    wrong = experiments._expected(Gaussian(0.31), "escape", u.double())
    assert experiments._judge(measured, wrong, 100_000)["p"] < 1e-6


def test_the_share_of_spikes_that_differ_vanishes_with_the_scale():
    shares = [experiments._differing((Gaussian, std, 20_000, 0)) for std in (1e-3, 1e-2, 1e-1)]
    assert shares[0] < shares[1] < shares[2]
    assert np.polyfit(np.log([1e-3, 1e-2]), np.log(shares[:2]), 1)[0] == pytest.approx(1, abs=0.15)
