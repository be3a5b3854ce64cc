"""Perturbations at the spiking neurons of a network: seeded context managers that leave it unchanged."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Generator, Tensor, nn

from tools.probes.hooks import neuron_hooks, require
from tools.runtime.seeds import draw

from .perturbation import Perturbation, entry

Block = AbstractContextManager[nn.Module]
FEW, MANY = (0.001, 0.003, 0.01, 0.03, 0.1), (0.05, 0.1, 0.2, 0.3, 0.5)
PERTURBATIONS: dict[str, Perturbation] = {}
_entry = partial(entry, PERTURBATIONS, "hidden")
_of_spikes = partial(_entry, highest=1, needs_spikes=True)


@_of_spikes("spike_level", "spike_p", "probability of a flipped spike per neuron and step", FEW)
def flip_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every output of every neuron flips (0 to 1, 1 to 0) with probability `p` per time step.

    Here and below, the neuron's own reset follows the spike that it fired, not the changed one.
    """
    return _change_spikes(net, p, generator, lambda spikes: 1 - spikes)


@_of_spikes("spike_delete", "spike_p", "probability that a spike is lost", MANY)
def delete_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every spike is lost with probability `p`."""
    return _change_spikes(net, p, generator, torch.zeros_like)


@_of_spikes("spike_insert", "spike_p", "probability of an extra spike per silent neuron and step", FEW)
def insert_spikes(net: nn.Module, p: float, generator: Generator) -> Block:
    """Every neuron that is silent in a time step emits a spike with probability `p`."""
    return _change_spikes(net, p, generator, torch.ones_like)


def _change_spikes(net: nn.Module, p: float, generator: Generator, changed: Callable[[Tensor], Tensor]) -> Block:
    def change(layer: str, neuron: nn.Module, spikes: Tensor, continues: bool) -> Tensor:
        return torch.where(draw(torch.rand, spikes.shape, generator, spikes) < p, changed(spikes), spikes)

    return neuron_hooks(net, change)


@_entry("membrane", "membrane_sigma", "standard deviation of extra membrane noise", (0.1, 0.2, 0.3, 0.5, 1.0))
def membrane_noise(net: nn.Module, sigma: float, generator: Generator) -> Block:
    """Every potential gets extra normal noise of standard deviation `sigma` at every time step.

    It is added to the input current, divided by 1 - decay if the neuron multiplies its input by that.
    """

    def disturb(layer: str, neuron: nn.Module, x: Tensor, continues: bool) -> Tensor:
        is_scaled = require(layer, neuron, "decay_input", "membrane noise")
        gain = 1 - require(layer, neuron, "decay", "membrane noise") if is_scaled else 1
        if isinstance(gain, Tensor) and gain.numel() > 1:  # one for each channel of x [T, B, C, ...]
            gain = gain.reshape(-1, *[1] * (x.dim() - 3))
        return x + sigma / gain * draw(torch.randn, x.shape, generator, x)

    return neuron_hooks(net, disturb, on_input=True)
