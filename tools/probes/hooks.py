"""Find the spiking neurons of a network by what they offer, and hook them.

`models.SpikingNeuron` documents the attributes; a neuron of any class takes part that has those that are asked for.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tools.errors import UserError


def spiking_neurons(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module of `net` that emits spikes, in the order of `named_modules`."""
    return [(name, module) for name, module in net.named_modules() if getattr(module, "emits_spikes", False)]


def require(layer: str, neuron: nn.Module, attribute: str, purpose: str) -> Any:
    """An attribute of a neuron; where it is missing, a UserError that says of which layer, and what needs it."""
    if not hasattr(neuron, attribute):
        lacks = f"layer {layer!r} ({type(neuron).__name__}) lacks {attribute!r}"
        raise UserError(f"{lacks}, which {purpose} needs: see models.SpikingNeuron")
    return getattr(neuron, attribute)


def is_noisy(net: nn.Module) -> bool:
    """Whether two passes over the same input may differ; UserError if a neuron does not say so of itself."""
    answers = [require(layer, neuron, "is_noisy", "an evaluation") for layer, neuron in spiking_neurons(net)]
    return any(answers)


@contextlib.contextmanager
def neuron_hooks(net: nn.Module, attach: Callable[[str, nn.Module], RemovableHandle]) -> Iterator[nn.Module]:
    """Context manager: attach a hook to every spiking neuron of `net`, and remove them all afterwards.

    Args:
        attach: (layer name, neuron) -> handle, as `register_forward_hook` and its like return.

    Raises:
        UserError: if there is no spiking neuron.
    """
    neurons = spiking_neurons(net)
    if not neurons:
        raise UserError(f"{type(net).__name__} has no spiking neuron")
    with contextlib.ExitStack() as hooks:
        for layer, neuron in neurons:
            hooks.enter_context(attach(layer, neuron))
        yield net
