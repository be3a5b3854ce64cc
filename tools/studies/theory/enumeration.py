r"""Networks so small that all their spike patterns can be listed: the expected loss and its gradient, exactly.

Layers l = 1..D of noisy neurons with threshold noise alone, over steps t = 1..T:

.. math::
    u^l_t = \beta v^l_{t-1} + W^l s^{l-1}_t, \quad
    P(s^l_t = 1) = F(u^l_t - \theta), \quad v^l_t = u^l_t (1 - s^l_t)

Given its own past and the layer below, each spike is a Bernoulli variable. So a pattern s of all spikes has a
probability p(s), a product of F and 1 - F, and

.. math::
    \mathbb{E} L = \sum_s p(s) L(s), \quad \nabla \mathbb{E} L = \sum_s \nabla p(s) L(s).
"""

import dataclasses

import torch

from models import NoiseLaw
from models.functional import firing_probability

MOST_BITS = 20  # spikes of a pattern; there are 2^bits patterns


@dataclasses.dataclass(frozen=True)
class SmallNetwork:
    r"""Weights, input and loss of a network as above.

    The loss is a function of the output :math:`y = \frac1T \sum_t c \cdot s^D_t`: "linear" is y, "squared" is
    :math:`(y - y^*)^2`.

    Args:
        weights: D tensors [neurons, inputs], float64.
        readout: c, [neurons of the last layer].
        inputs: [T, inputs].
        law: of the noise.
        loss: "linear" or "squared".
        target: y* of the squared loss.
        decay: beta.
        threshold: theta.
    """

    weights: tuple
    readout: torch.Tensor
    inputs: torch.Tensor
    law: NoiseLaw
    loss: str = "squared"
    target: float = 0.5
    decay: float = 0.5
    threshold: float = 1.0

    @classmethod
    def random(cls, law, depth, width, timesteps, seed, loss="squared"):
        """Weights and inputs such that neurons are near threshold, and the loss neither small nor saturated."""
        generator = torch.Generator().manual_seed(seed)
        rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        weights = tuple((3.5 * rand(width, width) - 0.75) / width**0.5 for _ in range(depth))
        readout = (2 * rand(width) - 0.5) / width
        return cls(weights, readout, rand(timesteps, width), law, loss, decay=0.5)

    @property
    def bits(self):
        """Number of spikes in a pattern."""
        return len(self.inputs) * sum(len(weight) for weight in self.weights)

    def loss_of(self, spikes):
        """Losses [M] of the last layer's spikes [T, M, neurons]."""
        output = (spikes @ self.readout).mean(0)
        return output if self.loss == "linear" else (output - self.target).square()

    def probabilities(self, weights, spikes):
        """Of each spike being 1, given what it depends on.

        Args:
            weights: as those of the network, or with a dimension for the patterns in front: [M, neurons, inputs].
            spikes: of each layer, [T, M, neurons].

        Returns:
            Of each layer, [T, M, neurons].
        """
        below = self.inputs[:, None].expand(-1, spikes[0].shape[1], -1)
        found = []
        for weight, fired in zip(weights, spikes):
            current = currents(weight, below)
            found.append(firing_probability(current, fired, self.law, threshold=self.threshold, decay=self.decay))
            below = fired
        return found

    def patterns(self):
        """All spike patterns: of each layer, [T, 2^bits, neurons].

        Raises:
            ValueError: if there are too many.
        """
        if self.bits > MOST_BITS:
            raise ValueError(f"a pattern has {self.bits} spikes, of which at most {MOST_BITS} can be enumerated")
        T = len(self.inputs)
        bits = torch.arange(2**self.bits)[:, None] >> torch.arange(self.bits) & 1
        sizes = [T * len(weight) for weight in self.weights]
        return [part.double().unflatten(1, (T, -1)).transpose(0, 1) for part in bits.split(sizes, dim=1)]

    def expected_loss(self, weights):
        """The exact expected loss, differentiable by the weights."""
        spikes = self.patterns()
        likelihood = 1.0
        for p, fired in zip(self.probabilities(weights, spikes), spikes):
            likelihood = likelihood * torch.where(fired > 0, p, 1 - p).prod(0).prod(1)
        return (likelihood * self.loss_of(spikes[-1])).sum()

    def exact_gradient(self):
        """Gradient of the expected loss by all weights, [parameters]."""
        weights = [weight.clone().requires_grad_() for weight in self.weights]
        return flat(torch.autograd.grad(self.expected_loss(weights), weights), 0)


def currents(weight, below):
    """Input current of a layer: weights [neurons, inputs] or [M, neurons, inputs], spikes below [T, M, inputs]."""
    return torch.einsum("...oi,t...i->t...o", weight, below) if weight.dim() == 3 else below @ weight.T


def flat(gradients, start):
    """Gradients by the weights of all layers, each [..., neurons, inputs], side by side: [..., parameters]."""
    return torch.cat([gradient.flatten(start) for gradient in gradients], dim=-1)
