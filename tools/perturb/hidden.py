"""Perturbations inside the network, at its spiking neurons, as context managers: seeded, and gone afterwards."""

import torch

from ..hooks import neuron_hooks
from .pixels import draw


def flip_spikes(net, p, generator):
    """Every output of every neuron flips (0 to 1, 1 to 0) with probability `p` per time step.

    What the neuron passes on flips; its own reset follows the spike it fired.
    """

    def flip(module, args, spikes):
        return torch.where(draw(torch.rand, spikes.shape, generator, spikes) < p, 1 - spikes, spikes)

    return neuron_hooks(net, lambda name, neuron: neuron.register_forward_hook(flip))


def membrane_noise(net, sigma, generator):
    """Every potential gets extra normal noise of standard deviation `sigma` at every time step.

    The input current enters the potential additively, so the noise is added to the current (divided
    by 1 - decay where the neuron multiplies its input by that).
    """

    def disturb(module, args):
        (x,) = args
        gain = 1 - module.decay if module.decay_input else 1
        return (x + sigma / gain * draw(torch.randn, x.shape, generator, x),)

    return neuron_hooks(net, lambda name, neuron: neuron.register_forward_pre_hook(disturb))
