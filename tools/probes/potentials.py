"""Membrane potentials of a network over time, by layer."""

import contextlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tools.errors import UserError
from tools.inference import ForwardPass

from .hooks import Traces, in_one_thread, neuron_hooks, spiking_neurons


@torch.no_grad()
def record_potentials(
    net: nn.Module, inputs: Tensor, forward: ForwardPass, layers: Collection[str] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (potentials before the reset, spikes)}, each [T, B, ...], for one batch and one draw of the noise.

    A neuron that is used again is "<layer>#2", and so on.

    Args:
        layers: names of neurons; None for all.

    Raises:
        UserError: for a name that is not a neuron's, and for a neuron whose `run` does not take `potentials`.
    """
    neurons = dict(spiking_neurons(net))
    if unknown := set(layers or ()) - set(neurons):
        raise UserError(f"no neuron is called {sorted(unknown)[0]!r}; choose from {', '.join(neurons)}")
    chosen = {layer: neurons[layer] for layer in (neurons if layers is None else layers)}
    traces = Traces()
    with contextlib.ExitStack() as blocks:
        blocks.enter_context(in_one_thread(net))
        for layer, neuron in chosen.items():
            _check_run(layer, neuron)
        blocks.enter_context(neuron_hooks(net, lambda *call: None))  # nothing runs compiled
        for layer, neuron in chosen.items():
            blocks.enter_context(_recorded(layer, neuron, traces))
        forward(net, inputs)
    return traces.found


def _check_run(layer: str, neuron: Any) -> None:
    try:
        inspect.signature(neuron.run).bind(None, None, True, potentials=True)
    except (AttributeError, TypeError) as error:
        raise _no_potentials(layer, neuron) from error


def _no_potentials(layer: str, neuron: Any) -> UserError:
    return UserError(f"layer {layer!r} ({type(neuron).__name__}) has no `run` that takes `potentials`")


@contextlib.contextmanager
def _recorded(layer: str, neuron: Any, traces: Traces) -> Iterator[None]:
    """Context manager: add (potentials, spikes) of each call of `run` and `step` to `traces`."""
    run, attributes = neuron.run, vars(neuron)
    before = {name: attributes[name] for name in ("run", "step") if name in attributes}

    def recording(x: Tensor, state: Any = None, keep_state: bool = True) -> tuple[Any, ...]:
        try:
            spikes, after, *potentials = run(x, state, keep_state, potentials=True)
        except TypeError as error:
            run(x, state, keep_state)  # which fails again if the error is another one
            raise _no_potentials(layer, neuron) from error
        if not potentials:
            raise _no_potentials(layer, neuron)
        traces.add(layer, state is not None, *potentials, spikes)
        return spikes, after

    def step(x_t: Tensor, state: Any = None) -> tuple[Any, ...]:
        spikes, after = recording(x_t.unsqueeze(0), state)
        return spikes.squeeze(0), after

    attributes.update(run=recording, step=step)
    try:
        yield
    finally:
        del attributes["run"], attributes["step"]
        attributes.update(before)
