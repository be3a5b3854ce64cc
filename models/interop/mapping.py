"""From the dynamics of another library's neuron, in the words of this package, to a neuron of this package."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..base import SpikingNeuron
from ..checkpointing import is_checkpointed
from ..composed import AdaptiveLIF, Recurrent, Synaptic
from ..functional import PLACEMENTS, check_choice, value_over
from ..neurons import LIF, NoisyLIF
from ..noise import NoiseLaw
from ..parameters import ArgumentError
from .surrogates import Function, NotMapped, observe

SETTINGS = "the settings are those of its `neuron`, such as layer.neuron.threshold"
Kinds = tuple[type[SpikingNeuron], type[SpikingNeuron]]  # of the deterministic and of the noisy neuron


class Adapter(nn.Module):
    """Base of layers that are called like neurons of another library, and have their settings in `neuron`."""

    neuron: SpikingNeuron
    keeps_state = True  # from call to call
    of_library: tuple[str, ...] = ()  # settings of the library's own neurons, which this does not have

    def start_from(self, state: Any) -> None:
        """Take the state that a neuron of the library keeps, as its module's `state_of` gives it."""

    def _check_call(self, x_t: Tensor) -> None:
        """Raise an error if the layer cannot be called here, or with one step of an input like this."""
        if x_t.dim() != 2 and has_features(self.neuron):
            # Other libraries broadcast values of features over the last dimension, this package over the channels.
            raise ArgumentError(
                f"this layer has a value for each feature, and takes [B, features] at each step; got {list(x_t.shape)}"
            )
        self._refuse_checkpoint()

    def _refuse_checkpoint(self) -> None:
        if self.keeps_state and not torch.compiler.is_compiling() and self._runs_again():
            raise RuntimeError(
                "this layer keeps a state, and activation checkpointing would run it a second time from a later one: "
                "leave it outside of the checkpoint, or call `neuron.run(x, state)` there, which takes the state"
            )

    def _runs_again(self) -> bool:
        """Whether the backward pass will run this call again, from whatever state is kept then."""
        return is_checkpointed()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}; {SETTINGS}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.of_library:
            raise AttributeError(f"this layer has no {name!r}; {SETTINGS}")
        super().__setattr__(name, value)


def build(
    function: Function, noise: NoiseLaw | None, placement: str, kinds: Kinds = (LIF, NoisyLIF), **settings: Any
) -> SpikingNeuron:
    """A neuron that fires as another library's does, by its surrogate function, and has these settings.

    Args:
        function: the surrogate function, of u - threshold; without `noise`, the neuron has its gradient.
        noise: the law of the noise; None makes a deterministic neuron.
        settings: of the neuron; the other library's own threshold.

    Raises:
        NotMapped: if the function is not a step, or if no law has its gradient and there is no noise.
    """
    check_choice("placement", placement, PLACEMENTS)
    firing = observe(function)
    if firing.at_threshold:
        threshold, rest = settings["threshold"], settings.get("v_leak", 0.0)
        if settings["reset"] == "subtract":
            settings.setdefault("reset_by", threshold)
        settings["threshold"] = rest + _next_below(threshold - rest)  # kernels count potentials from rest
    deterministic, noisy = kinds
    if noise is not None:
        return noisy(noise=noise, placement=placement, **settings)  # type: ignore[call-arg]
    if firing.law is None:
        raise NotMapped("no noise law has its surrogate gradient: give `noise`, whose density is then the gradient")
    return deterministic(surrogate=firing.law, **settings)  # type: ignore[call-arg]


def _next_below(threshold: float | Tensor) -> float | Tensor:
    """The next smaller float32: to exceed it is to reach the threshold."""
    if isinstance(threshold, Tensor) and threshold.requires_grad:
        raise NotMapped("it fires at its threshold itself, and learns it")
    below = torch.nextafter(torch.as_tensor(threshold, dtype=torch.float32), torch.tensor(-math.inf))
    return below if isinstance(threshold, Tensor) else below.item()


def value_of(name: str, value: Any) -> float | Tensor:
    """A setting of another library as a number, or as a tensor with one value for each feature.

    Raises:
        NotMapped: if its values differ along other dimensions, or it is computed from what is learnt.
    """
    value = torch.as_tensor(value)
    if value.requires_grad and not value.is_leaf:
        raise NotMapped(f"{name} is computed from what is learnt")
    if value.numel() == 1:
        return value.item()
    if value.dim() > 1:
        raise NotMapped(f"{name} has shape {list(value.shape)}: only one value, or one for each feature, is mapped")
    return value.detach().float()


def check_state(neuron: SpikingNeuron) -> None:
    """Raise ArgumentError if the state of a neuron is more than a potential."""
    if isinstance(neuron, AdaptiveLIF | Recurrent | Synaptic):
        raise ArgumentError(f"this layer keeps a potential, and {type(neuron).__name__} has more state than that")


def has_features(neuron: nn.Module) -> bool:
    """Whether some values of a neuron, or of one inside it, differ between features."""
    names = ("threshold", "decay", "reset_by", "v_reset", "v_leak", "alpha")
    values = (getattr(part, name, None) for part in neuron.modules() for name in names)
    return any(isinstance(value, Tensor) and value.numel() > 1 for value in values)


def after_reset(neuron: SpikingNeuron, u: Tensor, spikes: Tensor) -> Tensor:
    """The potentials after the reset [T, B, ...], from those before it."""
    spikes = spikes.to(u.dtype)
    if neuron.reset == "zero":
        return u * (1 - spikes) + value_over("v_reset", neuron.v_reset, u) * spikes
    if neuron.reset == "subtract":
        return u - spikes * value_over("reset_by", neuron.threshold if neuron.reset_by is None else neuron.reset_by, u)
    return u


def learnt_like(parameter: Tensor) -> nn.Parameter:
    """A parameter of its own that starts from the value of another one."""
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
