"""Twins of a network: frozen copies with another gradient path, or another noise.

A network whose noise hides its gradient looks robust and is not, so gradients are also taken along other paths. The
forward pass is that of the network itself, except in twins of another mode. A neuron that lacks what a
twin needs is a UserError.
"""

import copy
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import Cauchy, Gaussian, NoiseLaw
from tools.probes.hooks import require, set_mode, spiking_neurons

VANISHING = 1e-6  # factor on the scale of vanishing noise


class StraightThrough(NoiseLaw):
    """Density 1 everywhere: the gradient of the identity, not a law to draw from.

    Note:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
        computation", arXiv 1308.3432, 2013.
    """

    def cdf(self, x: Tensor) -> Tensor:
        return x

    def pdf(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def icdf(self, p: Tensor) -> Tensor:
        return p


# By name: a function from the neuron's own law to the law whose density is the gradient; whether to detach the reset.
GRADIENT_PATHS: dict[str, tuple[Callable[[NoiseLaw], NoiseLaw], bool | None]] = {
    "own": (lambda law: law, None),
    "narrow": (lambda law: Gaussian(0.2), True),
    "middle": (lambda law: Gaussian(0.35), True),
    "wide": (lambda law: Gaussian(0.6), True),
    "arctangent": (lambda law: Cauchy(1 / math.pi), None),  # 1 / (1 + (pi u)^2), SpikingJelly's ATan of alpha = 2
    "straight_through": (lambda law: StraightThrough(1.0), True),  # through the reset it would feed back and diverge
}


def with_gradient_path(net: nn.Module, name: str) -> nn.Module:
    """The twin with the gradient of one of `GRADIENT_PATHS`, or that of the mean field ("mean_field")."""
    if name == "mean_field":
        return mean_field_twin(net)
    twin, purpose = _frozen_copy(net), f"the gradient path {name!r}"
    choose, detach_reset = GRADIENT_PATHS[name]
    for layer, neuron in spiking_neurons(twin):
        law = require(layer, neuron, "gradient_law", purpose)
        require(layer, neuron, "set_gradient", purpose)(choose(law), detach_reset)
    return twin


def mean_field_twin(net: nn.Module) -> nn.Module:
    """Spikes replaced by their probabilities; for a deterministic neuron, by its surrogate's distribution function."""
    twin = _frozen_copy(net)
    for layer, neuron in spiking_neurons(twin):
        replacement = require(layer, neuron, "as_mean_field", "the mean field")()
        if not layer:  # the network is one neuron
            return replacement
        parent, _, attribute = layer.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, replacement)
    return twin


def noiseless_twin(net: nn.Module) -> nn.Module:
    """Neurons that fire where u > threshold, with the density of their noise as gradient."""
    twin = _frozen_copy(net)
    set_mode(twin, "noiseless", "the noiseless twin")
    return twin


def noisy_twin(net: nn.Module) -> nn.Module:
    """Noisy neurons draw, in whatever mode they are deployed."""
    twin = _frozen_copy(net)
    set_mode(twin, "noisy", "the noisy twin")
    return twin


def gradient_paths(net: nn.Module) -> list[str]:
    """The names in `GRADIENT_PATHS` that differ: without spiking neurons, there is the network's own gradient alone."""
    return list(GRADIENT_PATHS) if spiking_neurons(net) else ["own"]


def twins_in_other_modes(net: nn.Module) -> dict[str, nn.Module]:
    """{mode: twin} for the modes in which the network could be deployed, and is not.

    With spiking neurons, the mean field always could; without, there are no modes.
    """
    neurons = [neuron for _, neuron in spiking_neurons(net)]
    if not neurons:
        return {}
    modes = {getattr(neuron, "mode", "noisy" if neuron.is_noisy else "noiseless") for neuron in neurons}
    found = {}
    if modes != {"noisy"} and any(hasattr(neuron, "mode") for neuron in neurons):
        found["noisy"] = noisy_twin(net)
    if modes != {"noiseless"}:
        found["noiseless"] = noiseless_twin(net)
    if modes != {"mean_field"}:
        found["mean field"] = mean_field_twin(net)
    return found


def vanishing_noise_twin(net: nn.Module) -> nn.Module:
    """Noise scaled by `VANISHING`, gradients as before: attacks must succeed as often as on `noiseless_twin`."""
    twin = _frozen_copy(net)
    for layer, neuron in spiking_neurons(twin):
        if require(layer, neuron, "is_noisy", "vanishing noise"):
            require(layer, neuron, "scale_noise", "vanishing noise")(VANISHING)
    return twin


class Planted(nn.Module):
    """A network with a weakness of known strength: a linear function of the pixels reverses its logits.

    The logits are multiplied by 1 - q(images). q is 0 on the given images [B, C, H, W] (there must be fewer images than
    pixels), and reaches `strength` within radius `eps` (Linf) of them, unless the bounds of the pixels prevent it.
    Where q exceeds 1, the best class becomes the worst.
    """

    def __init__(self, net: nn.Module, images: Tensor, eps: float, strength: float) -> None:
        super().__init__()
        self.net = net
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(images[0].numel(), generator=generator, dtype=torch.float64).to(images.device)
        span, _ = torch.linalg.qr(images.flatten(1).double().T)
        direction -= span @ (span.T @ direction)
        self.direction = (strength / eps * direction / direction.abs().sum()).float()

    def forward(self, images: Tensor, timesteps: int) -> Tensor:
        q = images.flatten(1) @ self.direction
        return self.net(images, timesteps) * (1 - q)[:, None]


def _frozen_copy(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients of weights, and without what need not be computed.

    Batch normalisation right after a convolution becomes part of it, which changes nothing but rounding.
    """
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    for chain in list(twin.modules()):
        if not isinstance(chain, nn.Sequential) or type(chain).forward is not nn.Sequential.forward:
            continue
        for (name, layer), (after, norm) in itertools.pairwise(list(chain.named_children())):
            if _can_be_one(layer, norm):
                setattr(chain, name, fuse_conv_bn_eval(layer, norm).requires_grad_(False))
                setattr(chain, after, nn.Identity())
    return twin


def _can_be_one(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether these are a convolution and its batch normalisation, by running statistics, and no hook sees either."""
    kinds = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    if type(norm) is not kinds.get(type(layer)) or norm.running_mean is None:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm))
