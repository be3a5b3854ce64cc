"""Networks that run one time step at a time."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import checkpoint as torch_checkpoint
from torch.utils._pytree import tree_map_only

from .contexts import STREAM, calling

State = tuple[Any, ...]


class Stream:
    """A network that takes one step at a time and keeps the states of its neurons in between.

    `stream(x_t)`, x_t [B, ...] -> one step of the output, gives step by step what `net(x)`, x [T, B, ...], gives at
    once. The network itself keeps nothing: it may be in several streams. `noiseless`, `mean_field` and
    `noise_generator` work as usual; noise is drawn step by step, not layer by layer. If a step fails, the state does
    not change.

    Layers between the neurons must treat steps independently: batch normalisation in training mode and PyTorch's
    recurrent layers are errors, but a layer of your own that mixes steps goes unnoticed. Each neuron must be called
    once at each step, as `neuron(x)`.

    Args:
        net: a network that is not compiled, whose neurons are `SpikingNeuron`s.
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
        """The state of each neuron, in the order of `net.named_modules`; None is rest."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        count = len(_neurons(self.net))
        if not isinstance(state, tuple) or len(state) != count:
            got = f"{len(state)} of them" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"the state must be a tuple of the states of {count} neurons, got {got}")
        self._state = state
        self._shapes: dict[int, torch.Size] = {}  # of the inputs of the neurons at the step before

    def reset(self) -> None:
        """Start again from rest."""
        self.state = (None,) * len(_neurons(self.net))

    def detach(self) -> None:
        """Stop gradients from flowing to earlier steps."""
        self._state = tree_map_only(Tensor, Tensor.detach, self._state)

    def __call__(self, x_t: Tensor) -> Any:
        """One step: x_t [B, ...] -> the output of the network for it, [B, ...]."""
        if torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
            raise RuntimeError("a Stream cannot be called in a compiled function: compile the code around its calls")
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("torch.func cannot follow the states of a Stream: pass them to `neuron.run` yourself")
        _check_layers(self.net)
        step = _Step(self)
        token = STREAM.set(step)
        try:
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

    def __init__(self, stream: Stream) -> None:
        self.neurons = _neurons(stream.net)
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
            raise ValueError(
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
    """{neuron: (its place in the state, its name)}."""
    found: dict[nn.Module, tuple[int, str]] = {}
    for name, module in net.named_modules():
        if getattr(module, "emits_spikes", False):
            found[module] = (len(found), name)
    if not found:
        raise ValueError(f"{type(net).__name__} has no spiking neuron")
    return found


def _check_layers(net: nn.Module) -> None:
    for name, module in net.named_modules():
        layer = f"layer {name!r} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            way_out = "call net.eval()" if module.training else "it needs running statistics"
            raise RuntimeError(f"{layer} normalises by the statistics of all steps at once: {way_out}")
        if isinstance(module, nn.RNNBase):
            raise RuntimeError(f"{layer} has a state over time, which a Stream does not keep")
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise RuntimeError(f"{layer} is compiled: give a Stream the network without torch.compile")


def _without_time(output: Tensor, batch: int) -> Tensor:
    if output.shape[:2] != (1, batch):
        raise ValueError(f"the output of the network must be [1, {batch}, ...], time first; got {list(output.shape)}")
    return output.squeeze(0)


def _refuse_checkpoint(name: str) -> None:
    """Raise RuntimeError inside activation checkpointing, which would rerun the step from another state."""
    if any(frame.f_code.co_filename == torch_checkpoint.__file__ for frame in calling(sys._getframe())):
        reason = "is inside activation checkpointing, which would rerun the step from another state"
        raise RuntimeError(f"layer {name!r} {reason}")
