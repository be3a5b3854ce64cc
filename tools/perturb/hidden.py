"""Perturbations at the spiking neurons of a network: seeded context managers that leave it unchanged."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from tools.probes.hooks import neuron_hooks, require

from .perturbation import Perturbation
from .pixels import draw

Block = AbstractContextManager[nn.Module]


def flip_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every output of every neuron flips (0 to 1, 1 to 0) with probability `p` per time step.

    What the neuron passes on flips; its own reset follows the spike it fired. The same holds for `delete_spikes`
    and `insert_spikes`.
    """
    return _change_spikes(net, p, generator, lambda spikes: 1 - spikes)


def delete_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every spike is lost with probability `p`."""
    return _change_spikes(net, p, generator, torch.zeros_like)


def insert_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every neuron that is silent in a time step passes on a spike with probability `p`."""
    return _change_spikes(net, p, generator, torch.ones_like)


def _change_spikes(net: nn.Module, p: float, generator: Generator, changed: Callable[[Tensor], Tensor]) -> Block:
    def change(module: nn.Module, args: tuple[Tensor], spikes: Tensor) -> Tensor:
        return torch.where(draw(torch.rand, spikes.shape, generator, spikes) < p, changed(spikes), spikes)

    return neuron_hooks(net, lambda name, neuron: neuron.register_forward_hook(change))


def membrane_noise(net: nn.Module, sigma: float, generator: Generator) -> Block:
    """Every potential gets extra normal noise of standard deviation `sigma` at every time step.

    It is added to the input current, which enters the potential additively (so it is divided by 1 - decay where
    the neuron multiplies its input by that).

    Raises:
        UserError: if a neuron does not say its `decay_input`, or `decay` where that is needed.
    """

    def attach(name: str, neuron: nn.Module) -> RemovableHandle:
        def disturb(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = args
            is_scaled = require(name, neuron, "decay_input", "membrane noise")
            gain = 1 - require(name, neuron, "decay", "membrane noise") if is_scaled else 1
            return (x + sigma / gain * draw(torch.randn, x.shape, generator, x),)

        return neuron.register_forward_pre_hook(disturb)

    return neuron_hooks(net, attach)


_spike = partial(Perturbation, "hidden", highest=1)
FEW, MANY = (0.001, 0.003, 0.01, 0.03, 0.1), (0.05, 0.1, 0.2, 0.3, 0.5)
PERTURBATIONS = {
    "spike_level": _spike(flip_spikes, "spike_p", "probability of a flipped spike per neuron and step", FEW),
    "spike_delete": _spike(delete_spikes, "spike_p", "probability that a spike is lost", MANY),
    "spike_insert": _spike(insert_spikes, "spike_p", "probability of an extra spike per silent neuron and step", FEW),
    "membrane": Perturbation(
        "hidden",
        membrane_noise,
        "membrane_sigma",
        "standard deviation of extra membrane noise",
        (0.1, 0.2, 0.3, 0.5, 1.0),
    ),
}
