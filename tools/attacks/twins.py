"""Relatives of a network: copies that no gradient of a weight is computed for, whose neurons were exchanged.

A network whose noise hides its gradient looks robust and is not. So gradients are also taken by other paths; the
forward pass stays that of the network itself, but for the mean field and the noiseless twin.
"""

import copy
import math

import torch

from models import LIF, Cauchy, NoiseLaw, NoisyLIF

VANISHING = 1e-6  # factor of the noise of a network that has as good as none


class StraightThrough(NoiseLaw):
    """Density 1 everywhere: no law to draw from, but a gradient that takes a neuron for the identity.

    Note:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
        computation", arXiv 1308.3432, 2013.
    """

    def __init__(self):
        super().__init__(1.0)

    def cdf(self, x):
        return x

    def pdf(self, x):
        return torch.ones_like(x)

    def icdf(self, p):
        return p


# By name: the law whose density is the gradient, given the neuron's own law, and whether the reset passes none.
GRADIENT_PATHS = {
    "own": (lambda law: law, None),
    "widened2": (lambda law: law.widened(2), None),
    "widened4": (lambda law: law.widened(4), None),
    # 1 / (1 + (pi u)^2), SpikingJelly's ATan surrogate of alpha = 2
    "arctangent": (lambda law: Cauchy(1 / math.pi), None),
    # Through the reset, neurons taken for the identity would feed back and diverge.
    "straight_through": (lambda law: StraightThrough(), True),
}


def with_gradient_path(net, name):
    """The network, with the gradient of one of `GRADIENT_PATHS`, or that of its mean field ("mean_field")."""
    if name == "mean_field":
        return mean_field_twin(net)
    choose, detach_reset = GRADIENT_PATHS[name]

    def change(neuron):
        neuron.surrogate = choose(own_law(neuron))
        if detach_reset is not None:
            neuron.detach_reset = detach_reset

    return _changed(net, change)


def mean_field_twin(net):
    """Spikes replaced by their probabilities; for a deterministic neuron, by its surrogate's distribution function."""

    def change(neuron):
        if isinstance(neuron, LIF):
            decay = float(neuron.decay)
            options = {name: getattr(neuron, name) for name in ("threshold", "reset", "detach_reset", "decay_input")}
            neuron = NoisyLIF(neuron.surrogate, decay=decay, **options)
        neuron.mode = "mean_field"
        return neuron

    return _changed(net, change)


def noiseless_twin(net):
    """Neurons fire where u > threshold; the gradient is the density of their noise."""
    return _changed(net, lambda neuron: setattr(neuron, "mode", "noiseless") if isinstance(neuron, NoisyLIF) else None)


def vanishing_noise_twin(net):
    """Noise scaled by `VANISHING`, and the gradient of the noise as it was: it must behave as `noiseless_twin` does."""

    def change(neuron):
        if isinstance(neuron, NoisyLIF):
            law = own_law(neuron)
            neuron.noise, neuron.surrogate, neuron.log_scale = law.widened(VANISHING), law, None

    return _changed(net, change)


class Planted(torch.nn.Module):
    """A network with a weakness of known strength: a linear function of the pixels turns its logits round.

    The logits are multiplied by 1 - q(images). q is 0 on the given images, and within radius `eps` (Linf) of them it
    reaches `strength`, but for the bounds of the pixels: above 1, the best class becomes the worst.

    Args:
        net: images, timesteps -> logits [T, B, K].
        images: [B, C, H, W], fewer than there are pixels.
        eps: radius, in pixel units.
        strength: of q, above 1.
    """

    def __init__(self, net, images, eps, strength):
        super().__init__()
        self.net = net
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(images[0].numel(), generator=generator, dtype=torch.float64).to(images.device)
        span, _ = torch.linalg.qr(images.flatten(1).double().T)
        direction -= span @ (span.T @ direction)
        self.register_buffer("direction", (strength / eps * direction / direction.abs().sum()).float())

    def forward(self, images, timesteps):
        q = images.flatten(1) @ self.direction
        return self.net(images, timesteps) * (1 - q)[:, None]


def own_law(neuron):
    """The law whose density is the gradient of a neuron, at the scale that it has learnt."""
    if isinstance(neuron, LIF):
        return neuron.surrogate
    if neuron.surrogate is not None:
        return neuron.surrogate
    return neuron.noise if neuron.log_scale is None else neuron.noise.widened(float(neuron.scale) / neuron.noise.scale)


def is_noisy(net):
    """Whether two passes over the same images may differ."""
    return any(isinstance(module, NoisyLIF) and module.mode == "noisy" for module in net.modules())


def _changed(net, change):
    """A copy in evaluation mode, without gradients of weights; `change` alters a neuron, or returns another one."""
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    for name, module in list(twin.named_modules()):
        if isinstance(module, (LIF, NoisyLIF)):
            replaced = change(module)
            if replaced is not None and replaced is not module:
                parent, _, attribute = name.rpartition(".")
                setattr(twin.get_submodule(parent), attribute, replaced)
    return twin
