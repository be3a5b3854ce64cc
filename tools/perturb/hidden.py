"""Perturbations inside the network, at its spiking neurons, as context managers: seeded, and gone afterwards."""

import torch

from tools.probes.hooks import neuron_hooks

from .pixels import draw


def flip_spikes(net, p, generator):
    """Every output of every neuron flips (0 to 1, 1 to 0) with probability `p` per time step.

    What the neuron passes on flips; its own reset follows the spike it fired. So it is for `delete_spikes` and
    `insert_spikes` too.
    """
    return _change_spikes(net, p, generator, lambda spikes: 1 - spikes)


def delete_spikes(net, p, generator):
    """Every spike is lost with probability `p`."""
    return _change_spikes(net, p, generator, torch.zeros_like)


def insert_spikes(net, p, generator):
    """Every neuron that is silent in a time step passes on a spike all the same, with probability `p`."""
    return _change_spikes(net, p, generator, torch.ones_like)


def _change_spikes(net, p, generator, changed):
    def change(module, args, spikes):
        return torch.where(draw(torch.rand, spikes.shape, generator, spikes) < p, changed(spikes), spikes)

    return neuron_hooks(net, lambda name, neuron: neuron.register_forward_hook(change))


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
