"""Neurons of SpikingJelly 2."""

import sys
from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import neuron as theirs
from torch import Tensor, nn

from ..base import SpikingNeuron
from ..contexts import calling
from ..neurons import LIF, NoisyLIF, NoisyParametricLIF, ParametricLIF
from ..noise import NoiseLaw
from ..parameters import ArgumentError, device_of
from .mapping import Adapter, after_reset, build, check_state
from .surrogates import NotMapped

if not hasattr(base.MemoryModule, "functional_forward"):
    raise ImportError("SpikingJelly 2 or newer is needed")

MEMOPT = "spikingjelly.activation_based.memopt.checkpointing"  # which runs layers again from the state that they had


class Node(Adapter, theirs.BaseNode):
    """A neuron of this package as a `MemoryModule`: step modes "s" and "m", `v`, `v_seq`, `reset_net`, monitors.

    In step mode "m" the time steps run in one fused kernel. `v` is in float32, after the reset.

    Args:
        neuron: any `SpikingNeuron` whose state is a potential; it has the settings.
        step_mode, store_v_seq: as in SpikingJelly.
    """

    of_library = (
        "tau", "w", "decay_input", "v_threshold", "v_reset", "surrogate_function", "detach_reset", "backend",
    )  # fmt: skip

    def __init__(self, neuron: SpikingNeuron, step_mode: str = "s", store_v_seq: bool = False) -> None:
        check_state(neuron)
        base.MemoryModule.__init__(self)  # a BaseNode would hold settings of its own
        self.neuron = neuron
        self._rest = self._read_rest()
        self.register_memory("v", self._rest)
        self.step_mode = step_mode
        self.store_v_seq = store_v_seq

    def _read_rest(self) -> float:
        rest = self.neuron.v_leak
        if isinstance(rest, Tensor) and rest.numel() > 1:
            raise ArgumentError("`v` of SpikingJelly starts from one value: the neuron must have one v_leak")
        return rest.item() if isinstance(rest, Tensor) else rest

    def reset(self) -> None:
        if self.get_reset_value("v") == self._rest:  # unless it was set to another value
            self._rest = self._read_rest()
            self.set_reset_value("v", self._rest)
        super().reset()

    def start_from(self, state: Any) -> None:
        self.v = state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse_checkpoint()
        return super().forward(*args, **kwargs)

    def _runs_again(self) -> bool:
        in_memopt = (frame.f_globals.get("__name__") == MEMOPT for frame in calling(sys._getframe()))
        return super()._runs_again() and not any(in_memopt)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str) -> tuple[Any]:
        """The potential to start from; where the batch has another size than before, start from rest."""
        x_t = inputs[0][0] if step_mode == "m" else inputs[0]
        (v,) = states
        if isinstance(v, Tensor) and v.shape == x_t.shape:
            return (v.to(x_t.device),)
        start = self.get_reset_value("v") if isinstance(v, Tensor) else v
        return (None if start == self._rest else torch.full_like(x_t, start, dtype=torch.float32),)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: Any
    ) -> tuple[tuple[Tensor], tuple[Any]]:
        spike, v = self.neuron.step(inputs[0], states[0])
        return (spike,), (v,)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: Any
    ) -> tuple[tuple[Tensor], tuple[Any]]:
        spikes, v = self.neuron.run(inputs[0], states[0])
        return (spikes,), (v,)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.store_v_seq:
            return base.MemoryModule.multi_step_forward(self, x_seq, *args, **kwargs)
        (start,) = self.materialize_states((x_seq,), tuple(self.memories()), "m")
        spikes, self.v, potentials = self.neuron.run(x_seq, start, potentials=True)
        self.v_seq = after_reset(self.neuron, potentials, spikes)
        return spikes

    def extra_repr(self) -> str:
        return f"step_mode={self.step_mode}"


class _LIFNode(Node, theirs.LIFNode):  # for monitors of this class; the methods are those of `Node`
    pass


class _IFNode(Node, theirs.IFNode):
    pass


class _ParametricLIFNode(Node, theirs.ParametricLIFNode):
    pass


def from_lifnode(node: Any, noise: NoiseLaw | None = None, placement: str = "both") -> Node:
    """The same neuron with noise, from a `LIFNode`, `IFNode` or `ParametricLIFNode`.

    Inside `models.noiseless` it fires as `node` does. Learnt values start from those of `node`.

    Args:
        noise: None makes a deterministic neuron, with the surrogate gradient of `node`.

    Raises:
        NotMapped: if no neuron of this package is exactly the same.
    """
    if type(node) not in _KINDS:
        raise NotMapped(f"{type(node).__name__} is not one of {', '.join(kind.__name__ for kind in _KINDS)}")
    if node._neuron_precision is not None:
        raise NotMapped("its potentials are stored with another precision")
    kind, decay_of = _KINDS[type(node)]
    hard = node.v_reset is not None
    rest = node.v_reset if hard else 0.0
    neuron: Any = build(
        node.surrogate_function,
        noise,
        placement,
        kinds=(ParametricLIF, NoisyParametricLIF) if type(node) is theirs.ParametricLIFNode else (LIF, NoisyLIF),
        threshold=node.v_threshold,
        decay=decay_of(node),
        reset="zero" if hard else "subtract",
        v_reset=rest,
        v_leak=rest,
        detach_reset=node.detach_reset,
        decay_input=getattr(node, "decay_input", False),
    )
    if isinstance(node, theirs.ParametricLIFNode):
        neuron.decay_logit = nn.Parameter(-node.w.detach().reshape(1), node.w.requires_grad)  # 1 - sigmoid(w)
    made = kind(neuron.to(device_of(node)), node.step_mode, node.store_v_seq)
    return made.train(node.training)


_KINDS: dict[type, tuple[type[Node], Any]] = {  # what a node becomes, and its decay
    theirs.LIFNode: (_LIFNode, lambda node: 1 - 1 / node.tau),
    theirs.IFNode: (_IFNode, lambda node: 1.0),
    theirs.ParametricLIFNode: (_ParametricLIFNode, lambda node: torch.sigmoid(-node.w.detach()).item()),
}


def is_neuron(module: nn.Module) -> bool:
    """Whether `convert` should replace this module, or say why not."""
    if isinstance(module, Node | theirs.NonSpikingBaseNode):
        return False
    return any(kind.__module__.startswith(theirs.__name__ + ".") for kind in type(module).__mro__)


from_neuron = from_lifnode


def leave(module: nn.Module) -> None:
    """Nothing to do: a copied neuron works as it is."""


def reset(net: nn.Module) -> None:
    """Start the neurons of a copy from rest; `functional.reset_net` would remember which they are."""
    for module in net.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()


def state_of(module: Any) -> Any:
    """The potential of a neuron."""
    return module.v
