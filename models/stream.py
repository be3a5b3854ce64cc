"""Networks that run one time step at a time."""

import contextlib
import copy
import dataclasses
import enum
import functools
import inspect
import numbers
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map, tree_map_only

from .checkpointing import is_checkpointed
from .contexts import STREAM
from .parameters import ArgumentError

State = tuple[Any, ...]


class Stream:
    """A network that takes one step at a time and keeps the states of its neurons in between.

    `stream(x_t)`, x_t [B, ...] -> one step of the output, gives step by step what `net(x)`, x [T, B, ...], gives at
    once. The network itself keeps nothing: it may be in several streams. `noiseless`, `mean_field` and
    `noise_generator` work as usual; noise is drawn step by step, not layer by layer. If a step fails, the state does
    not change.

    Layers between the neurons must treat steps independently: batch normalisation in training mode and PyTorch's
    recurrent layers are errors, but a layer of your own that mixes steps goes unnoticed, unless it hands its state on
    as `models.calibration.MaxOfSums` does. Each neuron must be called once at each step, as `neuron(x)`.

    Args:
        net: a network that is not compiled, whose neurons are instances of `SpikingNeuron`.
        time_first: if false, the layers of the network take one step [B, ...] instead of a sequence [1, B, ...].

    Note:
        Gradients flow back through all earlier steps: `detach` truncates them, as does `torch.no_grad`.
    """

    def __init__(self, net: nn.Module, time_first: bool = True) -> None:
        self.net = net
        self.time_first = time_first
        self.reset()

    @property
    def state(self) -> State:
        """The state of each neuron (or layer that `is_streamed`), in the order of `net.named_modules`; None is rest."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        count = len(_neurons(self.net))
        if not isinstance(state, tuple) or len(state) != count:
            got = f"{len(state)} of them" if isinstance(state, tuple) else type(state).__name__
            raise ArgumentError(f"the state must be a tuple of the states of {count} neurons, got {got}")
        self._state = state
        self._neurons = list(_neurons(self.net))  # whose states they are
        self._shapes: dict[int, torch.Size] = {}  # of the inputs of the neurons at the step before

    def reset(self) -> None:
        """Start again from rest."""
        self.state = (None,) * len(_neurons(self.net))

    def detach(self) -> None:
        """Stop gradients from flowing to earlier steps."""
        self._state = tree_map(_detached, self._state)

    def __call__(self, x_t: Tensor) -> Any:
        """One step: x_t [B, ...] -> the output of the network for it, [B, ...]."""
        if torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
            raise RuntimeError("a Stream cannot be called in a compiled function: compile the code around its calls")
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("torch.func cannot follow the states of a Stream: pass them to `neuron.run` yourself")
        _check_layers(self.net)
        neurons = _neurons(self.net)
        if list(neurons) != self._neurons:
            if any(state is not None for state in self._state):
                raise RuntimeError(
                    "the network has other neurons than at the step before: call reset(), or set the state"
                )
            self.reset()
        step = _Step(self, neurons)
        token = STREAM.set(step)
        try:
            with _refused_attention(step):
                output = self.net(x_t.unsqueeze(0) if self.time_first else x_t)
        finally:
            STREAM.reset(token)
        if self.time_first:
            output = tree_map_only(Tensor, lambda tensor: _without_time(tensor, len(x_t)), output)
        state = step.finished()
        if self._state is not step.before:
            raise RuntimeError("the state was changed during the step: give each thread a Stream of its own")
        self._state, self._shapes = state, step.shapes
        return output


class _Step:
    """One step of a stream."""

    def __init__(self, stream: Stream, neurons: dict[nn.Module, tuple[int, str]]) -> None:
        self.stream = stream
        self.neurons = neurons
        self.time_first = stream.time_first
        self.before, self.shapes_before = stream.state, stream._shapes
        self.after: dict[int, Any] = {}
        self.shapes: dict[int, torch.Size] = {}

    def advance(self, neuron: Any, x: Tensor) -> Tensor:
        """The spikes of `neuron(x)` in this step; RuntimeError or ValueError if a Stream cannot follow the call."""
        if neuron not in self.neurons:  # of another network
            return neuron.run(x, keep_state=False)[0]
        place, name = self.neurons[neuron]
        if place in self.shapes:
            raise RuntimeError(f"layer {name!r} is called twice in a step, but has one state: make it two neurons")
        if self.time_first and x.shape[0] != 1:
            raise RuntimeError(f"layer {name!r} gets {x.shape[0]} steps at once, but a Stream is fed one at a time")
        _refuse_checkpoint(name)
        shape = x.shape[1:] if self.time_first else x.shape
        if self.shapes_before.get(place, shape) != shape:
            raise ArgumentError(
                f"layer {name!r} gets {list(shape)}, but {list(self.shapes_before[place])} at the step before: call "
                "reset() where another batch begins"
            )
        self.shapes[place] = shape
        run = neuron.run if self.time_first else neuron.step
        spikes, self.after[place] = run(x, self.before[place])
        if self.after[place] is None:
            raise RuntimeError(f"layer {name!r} ({type(neuron).__name__}) gave no state, though a Stream asked for it")
        return spikes

    def finished(self) -> State:
        """The states after the step; RuntimeError if it did not call every neuron."""
        for neuron, (place, name) in self.neurons.items():
            if place not in self.after:
                raise RuntimeError(
                    f"layer {name!r} ({type(neuron).__name__}) was not called as `neuron(x)` in this step, or is not a "
                    "SpikingNeuron, so a Stream does not know its state"
                )
        return tuple(self.after[place] for place in range(len(self.after)))


def _neurons(net: nn.Module) -> dict[nn.Module, tuple[int, str]]:
    """{neuron: (its place in the state, its name)}, without the neurons inside of neurons."""
    found: dict[nn.Module, tuple[int, str]] = {}
    inside: tuple[str, ...] = ()  # what names of modules inside of neurons begin with
    for name, module in net.named_modules(remove_duplicate=False):
        has_state = getattr(module, "emits_spikes", False) or getattr(module, "is_streamed", False)
        if not has_state or name.startswith(inside):
            continue
        inside += (f"{name}." if name else "",)
        found.setdefault(module, (len(found), name))
    if not found:
        raise ArgumentError(f"{type(net).__name__} has no spiking neuron")
    return found


def _check_layers(net: nn.Module) -> None:
    for name, module in net.named_modules():
        layer = f"layer {name!r} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            way_out = "call net.eval()" if module.training else "it needs running statistics"
            raise RuntimeError(f"{layer} normalises by the statistics of all steps at once: {way_out}")
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise RuntimeError(f"{layer} has a state over time, which a Stream does not keep")
        if hasattr(module, "of_library"):
            raise RuntimeError(f"{layer} is called as a neuron of another library, and keeps its state itself")
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise RuntimeError(f"{layer} is compiled: give a Stream the network without torch.compile")


@contextlib.contextmanager
def _refused_attention(step: _Step) -> Iterator[None]:
    """Context manager: RuntimeError where PyTorch's attention is over time, of which there is one step."""

    def check(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if STREAM.get() is not step or kwargs is None:  # another thread's: it has no kwargs while that removes it
            return
        key = inspect.signature(module.forward).bind(*args, **kwargs).arguments.get("key")
        if not isinstance(key, Tensor):
            return
        if key.shape[1 if module.batch_first and key.dim() == 3 else 0] == 1:
            layer = f"layer {name!r} ({type(module).__name__})"
            raise RuntimeError(f"{layer} attends over time, of which a Stream has one step")

    with contextlib.ExitStack() as hooks:
        is_checked = not step.time_first or step.shapes_before  # later steps are like the first
        for name, module in step.stream.net.named_modules():
            if isinstance(module, nn.MultiheadAttention) and not is_checked:
                hooks.enter_context(module.register_forward_pre_hook(functools.partial(check, name), with_kwargs=True))
        yield


def _detached(leaf: Any) -> Any:
    """A leaf of a state without its graph."""
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        twin = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            object.__setattr__(twin, field.name, tree_map(_detached, getattr(leaf, field.name)))  # it may be frozen
        return twin
    if leaf is None or isinstance(
        leaf, (numbers.Number, str, bytes, enum.Enum, torch.dtype, torch.device, torch.Generator)
    ):
        return leaf
    raise TypeError(f"detach() does not look into {type(leaf).__name__}: make the state of tuples or dataclasses")


def _without_time(output: Tensor, batch: int) -> Tensor:
    if output.shape[:2] != (1, batch):
        raise ArgumentError(
            f"the output of the network must be [1, {batch}, ...], time first; got {list(output.shape)}"
        )
    return output.squeeze(0)


def _refuse_checkpoint(name: str) -> None:
    """Raise RuntimeError inside activation checkpointing, which would rerun the step from another state."""
    if is_checkpointed():
        reason = "is inside activation checkpointing, which would rerun the step from another state"
        raise RuntimeError(f"layer {name!r} {reason}")
