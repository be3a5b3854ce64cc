r"""Estimates of the gradient of a noisy network's expected loss, from draws of its noise or from none.

| estimator | what it is | needs |
|---|---|---|
| NDL | backpropagation with d spike / d u = F'(u - theta) at the drawn spikes: noise-driven learning | a draw |
| NDL, reset detached | the same, no gradient through the reset | a draw |
| REINFORCE | L(s) grad log p(s): the score function | a draw |
| REINFORCE, baseline | (L(s) - mean of the other draws' L) grad log p(s) | draws |
| surrogate | backpropagation through the deterministic network, the density as surrogate gradient | nothing |
| mean field | exact gradient of the network whose spikes are replaced by their probabilities | nothing |
"""

import math

import torch

from models.functional import noisy_lif

from .enumeration import currents, flat

STOCHASTIC = ("NDL", "NDL, reset detached", "REINFORCE", "REINFORCE, baseline")
DETERMINISTIC = ("surrogate", "mean field")
QUANTITIES = ("bias", "bias_error", "variance", "cosine", "cosine_of_one")  # that `compare` gives


def ndl(network, draws, mode="noisy", detach_reset=False):
    """Gradients of single draws by backpropagation: [draws, parameters]. All draws are one batch, with own weights.

    Args:
        network: `enumeration.SmallNetwork`.
        draws: M; noise comes from the generator that applies (`models.noise_generator`).
        mode: of `noisy_lif`: "noisy", or "noiseless" and "mean_field", which need one draw only.
        detach_reset: see `noisy_lif`.
    """
    weights = _copies(network, draws)
    spikes = drawn_spikes(network, weights, draws, mode, detach_reset)
    return flat(torch.autograd.grad(network.loss_of(spikes[-1]).sum(), weights), 1)


def reinforce(network, draws, baseline=False):
    """Gradients of single draws by the score function: [draws, parameters].

    Args:
        network, draws: as for `ndl`.
        baseline: subtract the mean loss of the other draws, which leaves the expectation as it is.

    Note:
        Williams, "Simple statistical gradient-following algorithms", Machine Learning 8, 1992.
    """
    weights = _copies(network, draws)
    with torch.no_grad():
        spikes = drawn_spikes(network, weights, draws)
        loss = network.loss_of(spikes[-1])
        advantage = (loss - loss.mean()) * draws / (draws - 1) if baseline else loss
    score = 0.0
    for p, fired in zip(network.probabilities(weights, spikes), spikes):
        score = score + torch.where(fired > 0, p, 1 - p).log().sum((0, 2))
    return flat(torch.autograd.grad((advantage * score).sum(), weights), 1)


def estimates(name, network, draws):
    """Gradients by an estimator of `STOCHASTIC` [draws, parameters], or of `DETERMINISTIC` [1, parameters]."""
    return {
        "NDL": lambda: ndl(network, draws),
        "NDL, reset detached": lambda: ndl(network, draws, detach_reset=True),
        "REINFORCE": lambda: reinforce(network, draws),
        "REINFORCE, baseline": lambda: reinforce(network, draws, baseline=True),
        "surrogate": lambda: ndl(network, 1, "noiseless"),
        "mean field": lambda: ndl(network, 1, "mean_field"),
    }[name]()


def compare(gradients, exact):
    r"""Bias, variance and cosine of estimates g of a gradient g*.

    Args:
        gradients: single estimates [M, parameters].
        exact: [parameters].

    Returns:
        {"bias": :math:`|\mathrm{E} g - g^*| / |g^*|`, the chance of M draws subtracted from its square,
         "bias_error": standard deviation that chance alone gives to the mean, relative to g*,
         "variance": sum of variances of one draw, relative to :math:`|g^*|^2`,
         "cosine": of the mean with g*,
         "cosine_of_one": mean cosine of one draw with g*; draws whose gradient is 0 count as 0};
        all of them NaN where g* is zero, to which nothing can be relative.
    """
    mean, norm = gradients.mean(0), exact.norm()
    if norm == 0:
        return dict.fromkeys(QUANTITIES, math.nan)
    count = len(gradients)
    variance = gradients.var(0).sum() if count > 1 else torch.zeros(())
    chance = variance / count
    bias = ((mean - exact).square().sum() - chance).clamp(min=0).sqrt()
    single = gradients @ exact / (gradients.norm(dim=1) * norm).clamp(min=1e-300)
    return {
        "bias": (bias / norm).item(),
        "bias_error": (chance.sqrt() / norm).item(),
        "variance": (variance / norm**2).item(),
        "cosine": (mean @ exact / (mean.norm() * norm).clamp(min=1e-300)).item(),
        "cosine_of_one": single.mean().item(),
    }


def _copies(network, draws):
    """The weights, once for each draw: leaves [draws, neurons, inputs], so that each draw has its own gradient."""
    return [weight.expand(draws, *weight.shape).clone().requires_grad_() for weight in network.weights]


def drawn_spikes(network, weights, draws, mode="noisy", detach_reset=False):
    """Spikes of each layer [T, draws, neurons]."""
    below = network.inputs[:, None].expand(-1, draws, -1)
    spikes = []
    for weight in weights:
        below, _ = noisy_lif(
            currents(weight, below),
            network.law,
            threshold=network.threshold,
            decay=network.decay,
            placement="escape",
            detach_reset=detach_reset,
            mode=mode,
        )
        spikes.append(below)
    return spikes
