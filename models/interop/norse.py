"""Neurons of norse."""

from typing import Any

import norse.torch as theirs
import torch
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.functional.threshold import threshold
from torch import Tensor, nn

from ..base import SpikingNeuron
from ..composed import Synaptic
from ..noise import NoiseLaw
from ..parameters import ArgumentError, device_of
from .mapping import Adapter, build, value_of
from .surrogates import NotMapped


class Cell(Adapter):
    """A neuron of this package as a cell of norse, also in `SequentialState`: x [B, ...] -> spikes and state.

    Args:
        neuron: any `SpikingNeuron`; the state is its own, and may start from one of norse.
    """

    keeps_state = False
    of_library = ("p", "dt")

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self._check_call(input_tensor)
        return self.neuron.step(input_tensor, _own(self.neuron, input_tensor, state))


class Layer(Cell):
    """The same as a layer of norse: x [T, B, ...] -> spikes [T, B, ...] and the last state, in one fused kernel."""

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self._check_call(input_tensor[0])
        return self.neuron.run(input_tensor, _own(self.neuron, input_tensor[0], state))


def _own(neuron: Any, x_t: Tensor, state: Any) -> Any:
    """The state of a neuron of this package, from that or from a named tuple of norse."""
    if not hasattr(state, "_fields"):
        return state
    names = ("i", "v") if isinstance(neuron, Synaptic) else ("v",)
    if not set(names) <= set(state._fields):
        raise ArgumentError(f"this layer starts from the state of its neuron, or from {names}, not from {state}")
    u = torch.as_tensor(state.v).expand(x_t.shape)
    if "i" not in names:
        return u
    # norse's i has leaked already, and ours leaks at the next step.
    alpha = torch.as_tensor(neuron.alpha).clamp(min=torch.finfo().tiny)
    return torch.as_tensor(state.i / alpha).expand(x_t.shape), u


cell = Cell


def from_norse(module: Any, noise: NoiseLaw | None = None, placement: str = "both") -> Cell:
    """The same neuron with noise, from a `LIFBoxCell`, `LIFCell`, `LIF`, `IAFCell` or `IAF` of norse.

    Inside `models.noiseless` it fires as `module` does. Its state is that of a neuron of this package.

    Args:
        noise: None makes a deterministic neuron, with the surrogate gradient of `module`.

    Raises:
        NotMapped: if no neuron of this package is exactly the same.
    """
    if type(module) not in _KINDS:
        raise NotMapped(f"{type(module).__name__} is not one of {', '.join(kind.__name__ for kind in _KINDS)}")
    p, dt = module.p, module.dt
    if p.method == "adjoint":
        raise NotMapped("its adjoint gradient is not that of the dynamics")
    if getattr(module, "record_states", False):
        raise NotMapped("it records its states")
    given = {name: torch.as_tensor(getattr(p, name)) for name in p._fields if name not in _NOT_VALUES}
    values = {name: value_of(name, value) for name, value in given.items()}
    for name, value in given.items():  # norse itself makes v_reset require a gradient
        if isinstance(value, nn.Parameter) or (value.requires_grad and name != "v_reset"):
            raise NotMapped(f"it learns its {name}")
    resets = {reset_value: "zero", reset_subtract: "subtract"}
    reset = resets.get(getattr(p, "reset_method", reset_value))
    if reset is None:
        raise NotMapped("its reset_method is neither reset_value nor reset_subtract")
    settings: dict[str, Any] = dict(threshold=values["v_th"], reset=reset)
    if "tau_mem_inv" in values:
        settings |= dict(decay=1 - dt * values["tau_mem_inv"], decay_input=True, v_leak=values["v_leak"])
    else:
        settings |= dict(decay=1.0, v_leak=values["v_reset"])  # from which it starts
    if reset == "zero":
        settings["v_reset"] = values["v_reset"]
    neuron: Any = build(lambda x: threshold(x, p.method, p.alpha), noise, placement, **settings)
    if "tau_syn_inv" in values:
        neuron = Synaptic(1 - dt * values["tau_syn_inv"], neuron)
    return _KINDS[type(module)](neuron).to(device_of(module)).train(module.training)


_WITHOUT_SPIKES = (theirs.LICell, theirs.LI, theirs.LILinearCell, theirs.LIBoxCell)
_NOT_VALUES = ("method", "alpha", "reset_method")
_KINDS: dict[type, type[Cell]] = {
    theirs.LIFBoxCell: Cell,
    theirs.LIFCell: Cell,
    theirs.IAFCell: Cell,
    theirs.LIF: Layer,
    theirs.IAF: Layer,
}


def is_neuron(module: nn.Module) -> bool:
    """Whether `convert` should replace this module, or say why not."""
    is_norse = any(kind.__module__.startswith("norse.torch.module") for kind in type(module).__mro__)
    return is_norse and hasattr(module, "p") and not isinstance(module, _WITHOUT_SPIKES)


from_neuron = from_norse


def leave(module: nn.Module) -> None:
    """Nothing to do: a copied neuron works as it is."""


def reset(net: nn.Module) -> None:
    """Nothing to do: norse's neurons keep no state."""


def state_of(module: nn.Module) -> None:
    """The state of a neuron: norse's keep none."""
