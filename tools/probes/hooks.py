"""Find the spiking neurons of a network by what they offer, and hook them.

`models.SpikingNeuron` documents the attributes; a neuron of any class takes part that has those that are asked for.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tools.errors import UserError


def spiking_neurons(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module of `net` that emits spikes, in the order of `named_modules`."""
    return [(name, module) for name, module in net.named_modules() if getattr(module, "emits_spikes", False)]


def require(name: str, neuron: nn.Module, attribute: str, purpose: str) -> Any:
    """An attribute of a neuron.

    Args:
        name: of the layer, for the error.
        purpose: what needs the attribute, for the error.

    Raises:
        UserError: if the neuron does not have it.
    """
    if not hasattr(neuron, attribute):
        raise UserError(
            f"layer {name!r} ({type(neuron).__name__}) lacks {attribute!r}, which {purpose} needs: "
            "see models.SpikingNeuron"
        )
    return getattr(neuron, attribute)


def is_noisy(net: nn.Module) -> bool:
    """Whether two passes over the same input may differ.

    Raises:
        UserError: if a neuron does not say so of itself.
    """
    answers = [require(name, neuron, "is_noisy", "an evaluation") for name, neuron in spiking_neurons(net)]
    return any(answers)


@contextlib.contextmanager
def neuron_hooks(net: nn.Module, attach: Callable[[str, nn.Module], RemovableHandle]) -> Iterator[nn.Module]:
    """Context manager: attach a hook to every spiking neuron of `net`, and remove them all afterwards.

    Args:
        net: the network.
        attach: (name, neuron) -> handle, as `register_forward_hook` and its like return.

    Raises:
        UserError: if there is no spiking neuron.
    """
    neurons = spiking_neurons(net)
    if not neurons:
        raise UserError(f"{type(net).__name__} has no spiking neuron")
    with removed_afterwards([attach(name, neuron) for name, neuron in neurons]):
        yield net


@contextlib.contextmanager
def removed_afterwards(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Context manager: the hooks of these handles are gone after the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
