"""Neurons of sinabs."""

from typing import Any

import torch
from sinabs import activation
from sinabs import layers as theirs
from torch import Tensor, nn

from ..base import SpikingNeuron
from ..neurons import LIF, NoisyLIF
from ..noise import NoiseLaw
from ..parameters import ArgumentError, device_of
from .mapping import Adapter, build, check_state, learnt_like, value_of
from .surrogates import NotMapped


class _LearnsTau:
    """Mixin: decay = exp(-1 / tau_mem), tau_mem being learnt, as in sinabs."""

    tau_mem: nn.Parameter

    @property
    def decay(self) -> Tensor:
        return torch.exp(-1 / self.tau_mem)

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        self.tau_mem = nn.Parameter(-1 / torch.log(torch.as_tensor(value, dtype=torch.float32)))


class _LIF(_LearnsTau, LIF):  # type: ignore[misc]
    pass


class _NoisyLIF(_LearnsTau, NoisyLIF):  # type: ignore[misc]
    pass


class _Memory(theirs.StatefulLayer):
    """The potential, in a module of its own without children: sinabs resets no others."""

    v_mem: Tensor

    def __init__(self) -> None:
        super().__init__(["v_mem"])

    def reset_states(self, randomize: bool = False, value_ranges: Any = None) -> None:
        """Forget the potential, so that the neuron starts from rest; or draw it, as sinabs does."""
        if randomize:
            super().reset_states(randomize, value_ranges)
        else:
            self.v_mem = self.v_mem.new_zeros(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Memory":
        twin = _Memory()
        twin.v_mem = self.v_mem.detach().clone()
        return twin


class Layer(Adapter):
    """A neuron of this package as a layer of sinabs: x [B, T, ...] -> spikes; `sinabs.reset_states` resets it.

    Args:
        neuron: any `SpikingNeuron` whose state is a potential.
    """

    of_library = (
        "tau_mem", "alpha_mem", "tau_syn", "alpha_syn", "spike_threshold", "spike_fn", "reset_fn", "surrogate_grad_fn",
        "min_v_mem", "norm_input", "train_alphas", "record_states",
    )  # fmt: skip

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        check_state(neuron)
        self.neuron = neuron
        self.memory = _Memory()

    @property
    def v_mem(self) -> Tensor:
        return self.memory.v_mem

    def start_from(self, state: Tensor) -> None:
        self.memory.v_mem = state

    def forward(self, input_data: Tensor) -> Tensor:
        x = input_data.transpose(0, 1)
        self._check_call(x[0])
        v = self.memory.v_mem if self.memory.is_state_initialised() else None
        if v is not None and v.shape != x.shape[1:]:
            got = f"the state of this layer is {list(v.shape)}, one step of the input {list(x.shape[1:])}"
            raise ArgumentError(f"{got}: call sinabs.reset_states before another batch")
        spikes, self.memory.v_mem = self.neuron.run(x, v)
        return spikes.transpose(0, 1)


class SqueezeLayer(Layer, theirs.SqueezeMixin):
    """A `Layer` whose input is [B * T, ...], as in sinabs's "Squeeze" layers; `sinabs.set_batch_size` changes B.

    Args:
        batch_size, num_timesteps: one of them, or both.
    """

    def __init__(self, neuron: SpikingNeuron, batch_size: int | None = None, num_timesteps: int | None = None) -> None:
        super().__init__(neuron)
        theirs.SqueezeMixin.squeeze_init(self, batch_size, num_timesteps)

    def forward(self, input_data: Tensor) -> Tensor:
        return theirs.SqueezeMixin.squeeze_forward(self, input_data, super().forward)


def from_sinabs(layer: Any, noise: NoiseLaw | None = None, placement: str = "both") -> Layer:
    """The same neuron with noise, from a `LIF`, an `IAF`, or one of their "Squeeze" forms.

    Inside `models.noiseless` it fires as `layer` does. Learnt values start from those of `layer`.

    Args:
        noise: None makes a deterministic neuron, with the surrogate gradient of `layer`.

    Raises:
        NotMapped: if no neuron of this package is exactly the same.
    """
    if type(layer) not in _KINDS:
        raise NotMapped(f"{type(layer).__name__} is not one of {', '.join(kind.__name__ for kind in _KINDS)}")
    _refuse(layer)
    threshold = layer.spike_threshold
    settings: dict[str, Any] = dict(threshold=value_of("spike_threshold", threshold), decay_input=layer.norm_input)
    if isinstance(layer.reset_fn, activation.MembraneReset):
        settings |= dict(reset="zero", detach_reset=True)
    else:
        settings["reset"] = "subtract"
        if layer.reset_fn.subtract_value is not None:
            settings["reset_by"] = float(layer.reset_fn.subtract_value)
    kinds: Any = (LIF, NoisyLIF)
    learns_tau = isinstance(layer, theirs.LIF) and not isinstance(layer, theirs.IAF) and not layer.train_alphas
    if isinstance(layer, theirs.IAF):
        settings["decay"] = 1.0
    elif layer.train_alphas:
        settings["decay"] = learnt_like(layer.alpha_mem)
    else:
        kinds, settings["decay"] = (_LIF, _NoisyLIF), torch.exp(-1 / layer.tau_mem.detach())
    at_zero = torch.as_tensor(settings["threshold"]).flatten()[0]  # a surrogate may be as wide as the threshold

    def function(x: Tensor) -> Tensor:
        return layer.spike_fn.apply(x + at_zero, at_zero, layer.surrogate_grad_fn)

    neuron: Any = build(function, noise, placement, kinds, **settings)
    if learns_tau:
        neuron.tau_mem = learnt_like(layer.tau_mem)
    is_squeezed = isinstance(layer, theirs.SqueezeMixin)
    made = SqueezeLayer(neuron, layer.batch_size, layer.num_timesteps) if is_squeezed else Layer(neuron)
    return made.to(device_of(layer)).train(layer.training)


_KINDS = (theirs.LIF, theirs.IAF, theirs.LIFSqueeze, theirs.IAFSqueeze)


def _refuse(layer: Any) -> None:
    """Raise NotMapped for settings whose dynamics no neuron of this package has."""
    reset, threshold = layer.reset_fn, layer.spike_threshold
    reasons = {
        "it may fire more than once in a step, as it has no SingleSpike": (
            layer.spike_fn is not activation.SingleSpike
        ),
        "its potential has a lower bound": layer.min_v_mem is not None,
        "its synapse filters the input": layer.alpha_syn_calculated is not None,
        "its reset is neither MembraneReset nor MembraneSubtract": (
            not isinstance(reset, activation.MembraneReset | activation.MembraneSubtract)
        ),
        "its reset_value is added whether or not it fired": getattr(reset, "reset_value", 0) != 0,
        "it records its states": layer.record_states,
        "it fires at its threshold itself, and learns it": threshold.requires_grad,
        "its surrogate gradient depends on the threshold, which differs between features": threshold.numel() > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise NotMapped(reason)


def is_neuron(module: nn.Module) -> bool:
    """Whether `convert` should replace this module, or say why not."""
    return isinstance(module, theirs.LIF | theirs.ALIF) and module.does_spike


from_neuron = from_sinabs


def leave(module: nn.Module) -> None:
    """Nothing to do: a copied neuron works as it is."""


def reset(net: nn.Module) -> None:
    """Start the neurons of a copy from rest."""
    for module in net.modules():
        if isinstance(module, theirs.StatefulLayer):
            module.reset_states()


def state_of(module: Any) -> Tensor:
    """The potential of a neuron; empty before its first call."""
    return module.v_mem
