"""Hooks on the spiking neurons of a network, gone after use."""

import contextlib


def spiking_neurons(net):
    """[(name, module)] of the spiking neurons of a network, in the order of its modules."""
    return [(name, module) for name, module in net.named_modules() if getattr(module, "emits_spikes", False)]


def is_noisy(net):
    """Whether a neuron of a network draws noise in its present mode, so that two calls may differ."""
    modes = [getattr(neuron, "mode", None) for _, neuron in spiking_neurons(net)]
    return "noisy" in modes


@contextlib.contextmanager
def neuron_hooks(net, attach):
    """Context manager: attach a hook to every spiking neuron of `net`, and remove them all afterwards.

    Args:
        net: the network.
        attach: (name, neuron) -> handle, as `register_forward_hook` and its like return.

    Raises:
        ValueError: if there is no spiking neuron.
    """
    neurons = spiking_neurons(net)
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
