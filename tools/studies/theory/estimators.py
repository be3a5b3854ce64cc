r"""Estimators of the gradient of a noisy network's expected loss.

- NDL: noise-driven learning, backpropagation with d spike / d u = F'(u - theta) at the drawn spikes;
- NDL, reset detached: the same, without the gradient through the reset;
- REINFORCE: L(s) grad log p(s), the score function;
- REINFORCE, baseline: (L(s) - mean L of the other draws) grad log p(s), which takes two or more draws;
- surrogate: backpropagation through the deterministic network, the density as surrogate gradient; no draws;
- mean field: exact gradient of the network whose spikes are replaced by their probabilities; no draws.
"""

import dataclasses
import functools
import math

import torch

from models.functional import noisy_lif

from .enumeration import SmallNetwork, currents, flat


def ndl(network: SmallNetwork, draws: int, **options: str | bool) -> torch.Tensor:
    """Gradients of single draws by backpropagation, with `options` of `noisy_lif`: [draws, parameters]."""
    weights, spikes = drawn(network, draws, **options)
    return flat(torch.autograd.grad(network.loss_of(spikes[-1]).sum(), weights), 1)


def reinforce(network: SmallNetwork, draws: int, baseline: bool = False) -> torch.Tensor:
    """Gradients of single draws by the score function: [draws, parameters].

    A baseline, the mean loss of the other draws, leaves the expectation unchanged.
    Note: Williams, "Simple statistical gradient-following algorithms", Machine Learning 8, 1992.
    """
    with torch.no_grad():
        weights, spikes = drawn(network, draws)
        loss = network.loss_of(spikes[-1])
        advantage = (loss - loss.mean()) * draws / (draws - 1) if baseline else loss
    score = torch.zeros(draws, dtype=torch.float64)
    for p, fired in zip(network.probabilities(weights, spikes), spikes):
        score = score + torch.where(fired > 0, p, 1 - p).log().sum((0, 2))
    return flat(torch.autograd.grad((advantage * score).sum(), weights), 1)


STOCHASTIC = {  # name: (network, draws) -> gradients
    "NDL": ndl,
    "NDL, reset detached": functools.partial(ndl, detach_reset=True),
    "REINFORCE": reinforce,
    "REINFORCE, baseline": functools.partial(reinforce, baseline=True),
}
DETERMINISTIC = {  # the same in every draw
    "surrogate": functools.partial(ndl, mode="noiseless"),
    "mean field": functools.partial(ndl, mode="mean_field"),
}
ESTIMATORS = STOCHASTIC | DETERMINISTIC


def estimates(name: str, network: SmallNetwork, draws: int) -> torch.Tensor:
    """Gradients by an estimator: of `STOCHASTIC` [draws, parameters], of `DETERMINISTIC` [1, parameters]."""
    return ESTIMATORS[name](network, 1 if name in DETERMINISTIC else draws)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Bias, variance and cosine of estimates g of a gradient g*; all NaN if g* is zero."""

    bias: float = math.nan  # |E g - g*| / |g*|; what chance adds to its square is subtracted
    bias_error: float = math.nan  # standard error of the mean of g, relative to |g*|
    variance: float = math.nan  # sum of the variances of one draw, relative to |g*|^2
    cosine: float = math.nan  # of the mean with g*
    cosine_of_one: float = math.nan  # mean cosine of one draw with g*; a draw whose gradient is 0 counts as 0


QUANTITIES = tuple(field.name for field in dataclasses.fields(Comparison))


def compare(gradients: torch.Tensor, exact: torch.Tensor) -> Comparison:
    """Compare single estimates [M, parameters] with the exact gradient [parameters]."""
    mean, norm = gradients.mean(0), exact.norm()
    if norm == 0:
        return Comparison()
    variance = gradients.var(0).sum() if len(gradients) > 1 else torch.zeros(())
    chance = variance / len(gradients)
    bias = ((mean - exact).square().sum() - chance).clamp(min=0).sqrt()
    single = gradients @ exact / (gradients.norm(dim=1) * norm).clamp(min=1e-300)
    return Comparison(
        bias=(bias / norm).item(),
        bias_error=(chance.sqrt() / norm).item(),
        variance=(variance / norm**2).item(),
        cosine=(mean @ exact / (mean.norm() * norm).clamp(min=1e-300)).item(),
        cosine_of_one=single.mean().item(),
    )


def drawn(network: SmallNetwork, draws: int, **options: str | bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw spikes as one batch, with options of `noisy_lif` and noise from the active generator.

    For each layer, weights are leaves [draws, neurons, inputs], a copy per draw, so that each has its own gradient;
    spikes are [T, draws, neurons].
    """
    neurons = functools.partial(noisy_lif, threshold=network.threshold, decay=network.decay, placement="escape")
    weights = [weight.expand(draws, *weight.shape).clone().requires_grad_() for weight in network.weights]
    below, spikes = network.inputs[:, None].expand(-1, draws, -1), []
    for weight in weights:
        below, _ = neurons(currents(weight, below), network.law, **options)
        spikes.append(below)
    return weights, spikes
