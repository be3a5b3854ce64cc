"""Find the spiking neurons of a network by their attributes, and hook them.

`models.SpikingNeuron` documents the attributes; a neuron may be of any class that has the ones needed.
"""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crits import watching
from crits.watching import Hook, spiking_neurons
from tools.errors import UserError
from tools.inference import ForwardPass

ROUNDING = 1e-4  # of the largest logit: sums in another order differ by less, a spike more or less by more


def require(layer: str, neuron: nn.Module, attribute: str, purpose: str) -> Any:
    """An attribute of a neuron; a UserError names the layer that lacks it and the purpose that needs it."""
    if not hasattr(neuron, attribute):
        lacks = f"layer {layer!r} ({type(neuron).__name__}) lacks {attribute!r}"
        raise UserError(f"{lacks}, which {purpose} needs: see models.SpikingNeuron")
    return getattr(neuron, attribute)


def is_noisy(net: nn.Module) -> bool:
    """Whether two forward passes of one input may differ; UserError if a neuron does not say whether it is noisy."""
    answers = [require(layer, neuron, "is_noisy", "an evaluation") for layer, neuron in spiking_neurons(net)]
    return any(answers)


@torch.no_grad()
def is_noisy_indeed(net: nn.Module, forward: ForwardPass, images: Tensor) -> bool:
    """`is_noisy(net)`; UserError if it says no, but two forward passes of a few images differ."""
    if is_noisy(net):
        return True
    precise = dataclasses.replace(forward, amp="no")
    first, second = precise(net, images), precise(net, images)
    if (first - second).abs().max() > ROUNDING * first.abs().max():
        raise UserError(
            f"no layer of this {type(net).__name__} says that it `is_noisy`, but its outputs change from call to call: "
            "a neuron that draws needs `emits_spikes = True` and `is_noisy = True`, see models.SpikingNeuron"
        )
    return False


def set_mode(net: nn.Module, mode: str, purpose: str) -> bool:
    """Put the neurons that can be noisy into one of `models.functional.MODES`; return whether there are any.

    UserError if a noisy neuron has no `mode` to obey, or stays noisy in a mode without noise.
    """
    found = False
    for layer, neuron in spiking_neurons(net):
        if require(layer, neuron, "is_noisy", purpose) or hasattr(neuron, "mode"):
            require(layer, neuron, "mode", purpose)
            neuron.mode = mode
            if mode != "noisy" and neuron.is_noisy:
                who = f"layer {layer!r} ({type(neuron).__name__})"
                raise UserError(f"{who} says that it `is_noisy` in the mode {mode!r} too: see models.SpikingNeuron")
            found = True
    return found


def neuron_hooks(net: nn.Module, hook: Hook, on_input: bool = False) -> contextlib.AbstractContextManager[nn.Module]:
    """`crits.watching.neuron_hooks`; UserError if the network has no spiking neuron."""
    if not spiking_neurons(net):
        raise UserError(f"{type(net).__name__} has no spiking neuron")
    return watching.neuron_hooks(net, hook, on_input)


class Traces:
    """What neurons do in one forward pass, tensors [T, B, ...] by layer; where a layer is used again, by "<layer>#2".

    A use begins where no state is given, and the steps of a stream are added to it.
    """

    def __init__(self) -> None:
        self.found: dict[str, tuple[Tensor, ...]] = {}
        self._uses: dict[str, int] = {}

    def add(self, layer: str, continues: bool, *traces: Tensor) -> None:
        """Add one call of a layer; UserError if it continues one of several uses."""
        traces = tuple(trace.float().cpu() for trace in traces)
        uses = self._uses.get(layer, 0)
        if continues and uses:
            before = self.found[layer]
            if uses > 1 or before[0].shape[1:] != traces[0].shape[1:]:
                raise UserError(
                    f"layer {layer!r} is used several times, so its steps cannot be told apart: make it as many neurons"
                )
            self.found[layer] = tuple(map(torch.cat, zip(before, traces)))
        else:
            self._uses[layer] = uses + 1
            self.found[f"{layer}#{uses + 1}" if uses else layer] = traces


_threads: weakref.WeakKeyDictionary[nn.Module, list[int]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextlib.contextmanager
def in_one_thread(net: nn.Module) -> Iterator[None]:
    """Context manager; UserError if another thread has opened one for a module of the same network."""
    mine, modules = threading.get_ident(), list(net.modules())
    with _lock:
        if any(set(_threads.get(module, ())) - {mine} for module in modules):
            raise UserError(f"another thread measures this {type(net).__name__}: give each thread a copy")
        for module in modules:
            _threads.setdefault(module, []).append(mine)
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _threads[module].remove(mine)
