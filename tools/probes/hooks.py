"""Find the spiking neurons of a network by their attributes, and hook them.

`models.SpikingNeuron` documents the attributes; a neuron may be of any class that has those that are needed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tools.errors import UserError

Hook = Callable[[str, nn.Module, Tensor], Tensor | None]


def spiking_neurons(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module of `net` that emits spikes, in the order of `named_modules`."""
    return [(name, module) for name, module in net.named_modules() if getattr(module, "emits_spikes", False)]


def require(layer: str, neuron: nn.Module, attribute: str, purpose: str) -> Any:
    """An attribute of a neuron; a UserError names the layer that lacks it and the purpose that needs it."""
    if not hasattr(neuron, attribute):
        lacks = f"layer {layer!r} ({type(neuron).__name__}) lacks {attribute!r}"
        raise UserError(f"{lacks}, which {purpose} needs: see models.SpikingNeuron")
    return getattr(neuron, attribute)


def is_noisy(net: nn.Module) -> bool:
    """Whether two passes over the same input may differ; UserError if a neuron does not say whether it is noisy."""
    answers = [require(layer, neuron, "is_noisy", "an evaluation") for layer, neuron in spiking_neurons(net)]
    return any(answers)


@contextlib.contextmanager
def neuron_hooks(net: nn.Module, hook: Hook, on_input: bool = False) -> Iterator[nn.Module]:
    """Context manager: in each call of a spiking neuron, run a hook on its spikes (or its input) [T, B, ...].

    Args:
        hook: (layer name, neuron, tensor) -> a tensor to replace it, or None.

    Raises:
        UserError: if the network has no spiking neuron.
    """

    def attach(layer: str, neuron: nn.Module) -> RemovableHandle:
        if on_input:
            return neuron.register_forward_pre_hook(lambda module, args: hook(layer, neuron, args[0]))
        return neuron.register_forward_hook(lambda module, args, spikes: hook(layer, neuron, spikes))

    neurons = spiking_neurons(net)
    if not neurons:
        raise UserError(f"{type(net).__name__} has no spiking neuron")
    with contextlib.ExitStack() as handles:
        for layer, neuron in neurons:
            handles.enter_context(attach(layer, neuron))
        yield net
