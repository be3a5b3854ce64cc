r"""Exact expected losses and gradients of networks so small that all spike patterns can be listed.

Layers l = 1..D of noisy neurons with threshold noise only, over steps t = 1..T:

.. math::
    u^l_t = \beta v^l_{t-1} + W^l s^{l-1}_t, \quad
    P(s^l_t = 1) = F(u^l_t - \theta), \quad v^l_t = u^l_t (1 - s^l_t)

Given its own past and the layer below, each spike is a Bernoulli variable. A pattern s of all spikes therefore has a
probability p(s), a product of factors F and 1 - F, and

.. math::
    \mathbb{E} L = \sum_s p(s) L(s), \quad \nabla \mathbb{E} L = \sum_s \nabla p(s) L(s).
"""

import dataclasses
import functools
from collections.abc import Sequence

import torch

from models import NoiseLaw
from models.functional import firing_probability

MOST_BITS = 20  # spikes in a pattern; there are 2^bits patterns


def _linear(output: torch.Tensor, target: float) -> torch.Tensor:
    return output


def _squared(output: torch.Tensor, target: float) -> torch.Tensor:
    return (output - target).square()


LOSSES = {"linear": _linear, "squared": _squared}  # functions of the output y and the target y*


@dataclasses.dataclass(frozen=True)
class SmallNetwork:
    r"""Weights, input and loss of a network whose output is :math:`y = \frac1T \sum_t c \cdot s^D_t`."""

    weights: tuple[torch.Tensor, ...]  # D of [neurons, inputs], float64
    readout: torch.Tensor  # c, [neurons of the last layer]
    inputs: torch.Tensor  # [T, inputs]
    law: NoiseLaw
    loss: str = "squared"  # one of `LOSSES`
    target: float = 0.5  # y*
    decay: float = 0.5  # beta
    threshold: float = 1.0  # theta

    @staticmethod
    def random(law: NoiseLaw, depth: int, width: int, steps: int, seed: int, loss: str = "squared") -> "SmallNetwork":
        """A network whose weights and inputs keep neurons near threshold, and the loss neither near 0 nor saturated."""
        draw = functools.partial(torch.rand, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = tuple((3.5 * draw(width, width) - 0.75) / width**0.5 for _ in range(depth))
        readout = (2 * draw(width) - 0.5) / width
        return SmallNetwork(weights, readout, draw(steps, width), law, loss)

    @property
    def bits(self) -> int:
        """Number of spikes in a pattern."""
        return len(self.inputs) * sum(len(weight) for weight in self.weights)

    def loss_of(self, spikes: torch.Tensor) -> torch.Tensor:
        """Losses [M] of the last layer's spikes [T, M, neurons]."""
        output = (spikes @ self.readout).mean(0)
        return LOSSES[self.loss](output, self.target)

    def probabilities(self, weights: Sequence[torch.Tensor], spikes: list[torch.Tensor]) -> list[torch.Tensor]:
        """Probability of each spike, given its past and the layer below; lists have an entry per layer.

        Shape: weights [neurons, inputs], or [M, neurons, inputs] for each pattern; spikes [T, M, neurons] -> the same.
        """
        below = self.inputs[:, None].expand(-1, spikes[0].shape[1], -1)
        found = []
        for weight, fired in zip(weights, spikes):
            current = currents(weight, below)
            found.append(firing_probability(current, fired, self.law, threshold=self.threshold, decay=self.decay))
            below = fired
        return found

    def patterns(self) -> list[torch.Tensor]:
        """All spike patterns: for each layer, [T, 2^bits, neurons]; ValueError for more than `MOST_BITS`."""
        if self.bits > MOST_BITS:
            raise ValueError(f"a pattern has {self.bits} spikes; at most {MOST_BITS} can be enumerated")
        T = len(self.inputs)
        bits = torch.arange(2**self.bits)[:, None] >> torch.arange(self.bits) & 1
        sizes = [T * len(weight) for weight in self.weights]
        return [part.double().unflatten(1, (T, -1)).transpose(0, 1) for part in bits.split(sizes, dim=1)]

    def expected_loss(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The exact expected loss, differentiable with respect to the weights."""
        spikes = self.patterns()
        likelihood = torch.ones(2**self.bits, dtype=torch.float64)
        for p, fired in zip(self.probabilities(weights, spikes), spikes):
            likelihood = likelihood * torch.where(fired > 0, p, 1 - p).prod(0).prod(1)
        return (likelihood * self.loss_of(spikes[-1])).sum()

    def exact_gradient(self) -> torch.Tensor:
        """Gradient of the expected loss with respect to all weights, [parameters]."""
        weights = [weight.clone().requires_grad_() for weight in self.weights]
        return flat(torch.autograd.grad(self.expected_loss(weights), weights), 0)


def currents(weight: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Input current of a layer: weights [neurons, inputs] or [M, neurons, inputs], spikes below [T, M, inputs]."""
    return torch.einsum("...oi,t...i->t...o", weight, below) if weight.dim() == 3 else below @ weight.T


def flat(gradients: Sequence[torch.Tensor], start: int) -> torch.Tensor:
    """Gradients of all layers, each [..., neurons, inputs], flattened from dimension `start`: [..., parameters]."""
    return torch.cat([gradient.flatten(start) for gradient in gradients], dim=-1)
