"""Hooks on the spiking neurons of a network, gone after use."""

import contextlib

from models import NoisyLIF, SpikingNeuron


def is_noisy(net):
    """Whether two passes over the same images may differ."""
    return any(isinstance(module, NoisyLIF) and module.mode == "noisy" for module in net.modules())


@contextlib.contextmanager
def neuron_hooks(net, attach):
    """Context manager: attach a hook to every spiking neuron of `net`, and remove them all afterwards.

    Args:
        net: the network.
        attach: (name, neuron) -> handle, as `register_forward_hook` and its like return.

    Raises:
        ValueError: if there is no spiking neuron.
    """
    neurons = [(name, module) for name, module in net.named_modules() if isinstance(module, SpikingNeuron)]
    if not neurons:
        raise ValueError(f"{type(net).__name__} has no spiking neuron")
    with removed_afterwards([attach(name, neuron) for name, neuron in neurons]):
        yield net


@contextlib.contextmanager
def removed_afterwards(handles):
    """Context manager: the hooks of these handles are gone after the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
