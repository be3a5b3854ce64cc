"""Spiking neurons as modules: they map an input current [T, B, ...] to spikes [T, B, ...].

`neuron(x)` starts from rest and keeps nothing, so there is nothing to reset between batches. `neuron.run` and
`neuron.step` stream: they take the state and hand it back. The equations are in `models.functional`. An argument out of
range is a ValueError or TypeError.
"""

import abc
import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .functional import PLACEMENTS, RESETS, check_choice, check_decay, check_law, check_threshold
from .noise import Gaussian, NoiseLaw

ERF = Gaussian(math.sqrt(0.5))  # the erf surrogate of sharpness a = 1; its density is a / sqrt(pi) exp(-(a z)^2)


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value  # float() warns of tensors that are learnt


def _fixed(name: str, value: float | Tensor, learnt_by: str) -> float:
    """A setting as a number; ValueError for a tensor that would silently not be learnt, or is more than one number."""
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad:
        raise ValueError(f"a {name} that is given as a parameter would not be learnt: give a number; {learnt_by}")
    if value.numel() != 1:
        raise ValueError(f"{name} must be one number for the layer, got a tensor of shape {list(value.shape)}")
    return value.item()


class SpikingNeuron(nn.Module, abc.ABC):
    """Base of the neurons, and the protocol by which the rest of the project knows a neuron.

    A module is a spiking neuron if its `emits_spikes` is true, whatever its class. A class of your own, or of another
    copy of this package, needs only the attributes for what you do with it:

    - evaluation, attacks and the switches below: `is_noisy`.
    - `noiseless`, `mean_field` and the noiseless twins of attacks: `mode`, which is "noisy", "noiseless" (fires where
      u > threshold) or "mean_field" (outputs its firing probability). Only a neuron that can be noisy has one.
    - gradient paths of attacks: `gradient_law`, the law whose density is the gradient at present, and `set_gradient`;
      `as_mean_field()`, a neuron of the same dynamics that outputs its firing probability; `scale_noise`, if noisy.
    - membrane noise as a perturbation: `decay` and `decay_input`.

    Args:
        threshold: firing threshold, in the units of the potential; positive.
        decay: factor of the potential per step, in [0, 1].
        reset: "zero", "subtract" (by the threshold) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].

    Shape:
        x [T, B, ...] -> spikes [T, B, ...], 0 or 1, in the dtype of `x`.
    """

    emits_spikes = True
    decay: float | Tensor
    surrogate: NoiseLaw | None

    def __init__(self, threshold: float, decay: float, reset: str, detach_reset: bool, decay_input: bool) -> None:
        super().__init__()
        threshold = _fixed("threshold", threshold, "no layer learns its threshold, but the weights before it do")
        decay = _fixed("decay", decay, "ParametricLIF learns its decay")
        check_threshold(threshold)
        check_decay(decay)
        check_choice("reset", reset, RESETS)
        if decay_input and decay == 1:
            raise ValueError("decay_input=True with decay=1 would ignore the input, which enters as (1 - decay) * x")
        self.threshold = float(threshold)
        self.decay = float(decay)
        self.reset = reset
        self.detach_reset = detach_reset
        self.decay_input = decay_input

    @property
    def is_noisy(self) -> bool:
        """Whether two calls on the same input may differ."""
        return False

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        """Take the density of `law` for d spike / d u; spikes do not change. None leaves `detach_reset` as it is."""
        check_law("surrogate", law)
        self.surrogate = law
        self.detach_reset = self.detach_reset if detach_reset is None else detach_reset

    def scale_noise(self, factor: float) -> None:
        """Stretch the noise about its centre by a factor; the gradient stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, keep_state=False)[0]

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step: input [B, ...] and state [B, ...] -> spike [B, ...] and the next state."""
        spikes, state = self.run(x_t.unsqueeze(0), state)
        return spikes.squeeze(0), state

    @abc.abstractmethod
    def run(self, x: Tensor, state: Tensor | None = None, keep_state: bool = True) -> tuple[Tensor, Any]:
        """Some steps of a stream: x [T, B, ...] -> spikes [T, B, ...] and the state [B, ...] after them.

        The state is the membrane potential, in float32 (float64 for float64 input). As an argument, None means rest;
        as a result, that `keep_state` was false.
        """

    def _dynamics(self) -> dict[str, Any]:
        return dict(
            threshold=self.threshold,
            decay=self.decay,
            reset=self.reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
        )

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}, decay={_number(self.decay):.4g}, reset={self.reset!r}"


class LIF(SpikingNeuron):
    """Deterministic leaky integrate-and-fire neuron: fires where u > threshold, strictly.

    Args:
        surrogate: the law whose density is d spike / d u in the backward pass; erf of sharpness 1 by default.
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
    """

    surrogate: NoiseLaw
    _mode = "noiseless"  # "mean_field" in what `as_mean_field` returns

    def __init__(
        self,
        surrogate: NoiseLaw = ERF,
        threshold: float = 1.0,
        decay: float = 0.5,
        reset: str = "zero",
        detach_reset: bool = False,
        decay_input: bool = False,
    ) -> None:
        super().__init__(threshold, decay, reset, detach_reset, decay_input)
        self.set_gradient(surrogate)

    @property
    def gradient_law(self) -> NoiseLaw:
        return self.surrogate

    def as_mean_field(self) -> "LIF":
        """A copy that outputs F(u - threshold), F being the distribution function of the surrogate.

        A subclass that overrides `run` must call `super().run` for this.
        """
        neuron = copy.deepcopy(self)
        neuron._mode = "mean_field"
        return neuron

    def run(self, x: Tensor, state: Tensor | None = None, keep_state: bool = True) -> tuple[Tensor, Any]:
        dynamics = self._dynamics()
        return functional.noisy_lif(x, self.surrogate, mode=self._mode, state=state, keep_state=keep_state, **dynamics)

    def extra_repr(self) -> str:
        return f"{self.surrogate}, {super().extra_repr()}"


class IF(LIF):
    """Integrate-and-fire neuron without leak: a `LIF` with decay 1."""

    def __init__(
        self, surrogate: NoiseLaw = ERF, threshold: float = 1.0, reset: str = "zero", detach_reset: bool = False
    ) -> None:
        super().__init__(surrogate, threshold, 1.0, reset, detach_reset)


class ParametricLIF(LIF):
    """A `LIF` that learns its decay, one value per layer: decay = sigmoid(decay_logit), in (0, 1).

    Note:
        Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking neural networks",
        ICCV 2021. There `decay_input` is on.
    """

    decay_logit: nn.Parameter

    @property
    def decay(self) -> Tensor:
        decay = torch.sigmoid(self.decay_logit)
        eps = torch.finfo(decay.dtype).eps  # where the sigmoid is rounded to 0 or 1, its slope is 0 already
        return decay.clamp(eps, 1 - eps)

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        value = float(value)
        if not 0.0 < value < 1.0:
            raise ValueError(f"a learnable decay must be in (0, 1), got {value}")
        logit = torch.tensor(math.log(value / (1 - value)))
        if "decay_logit" in self._parameters:  # keep the parameter that an optimiser may hold
            with torch.no_grad():
                self.decay_logit.copy_(logit)
        else:
            self.decay_logit = nn.Parameter(logit)


class NoisyLIF(SpikingNeuron):
    """Noisy leaky integrate-and-fire neuron: P(spike) = F(u - threshold), gradient F'(u - threshold).

    Args:
        noise: the law F of the noise (see `models.noise`).
        placement: "both", "escape" (threshold noise alone) or "membrane" (membrane noise alone).
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
        learnable_scale: if true, the layer learns the scale of its noise, kept positive by scale = exp(log_scale), by
            the gradient of the firing probability.
        surrogate: a law whose density is the gradient, in place of that of `noise`.

    Note:
        Noise is part of the model: it is drawn in training and in evaluation alike. Use `noiseless` or `mean_field` for
        its deterministic relatives.
    """

    def __init__(
        self,
        noise: NoiseLaw = Gaussian(0.3),
        threshold: float = 1.0,
        decay: float = 0.5,
        placement: str = "both",
        reset: str = "zero",
        detach_reset: bool = False,
        decay_input: bool = False,
        learnable_scale: bool = False,
        surrogate: NoiseLaw | None = None,
    ) -> None:
        super().__init__(threshold, decay, reset, detach_reset, decay_input)
        check_law("noise", noise)
        check_choice("placement", placement, PLACEMENTS)
        self.noise = noise
        self.surrogate = None
        self.placement = placement
        self.mode = "noisy"  # switched by `noiseless` and `mean_field`
        self.log_scale = nn.Parameter(torch.tensor(math.log(noise.scale))) if learnable_scale else None
        if surrogate is not None:
            self.set_gradient(surrogate)

    @property
    def scale(self) -> float | Tensor:
        """Scale of the noise: a number, or the current value (0-d tensor) where it is learnt."""
        return self.noise.scale if self.log_scale is None else torch.exp(self.log_scale)

    @property
    def is_noisy(self) -> bool:
        return self.mode == "noisy"

    @property
    def gradient_law(self) -> NoiseLaw:
        return self._noise_as_learnt() if self.surrogate is None else self.surrogate

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        if self.log_scale is not None and self.log_scale.requires_grad:
            raise ValueError("a scale is learnt by the density of the noise itself: give no surrogate")
        super().set_gradient(law, detach_reset)

    def scale_noise(self, factor: float) -> None:
        self.surrogate = self.gradient_law
        self.noise, self.log_scale = self._noise_as_learnt().widened(factor), None

    def as_mean_field(self) -> "NoisyLIF":
        neuron = copy.deepcopy(self)
        neuron.mode = "mean_field"
        return neuron

    def _noise_as_learnt(self) -> NoiseLaw:
        return self.noise if self.log_scale is None else self.noise.widened(_number(self.scale) / self.noise.scale)

    def _learnt_scale(self) -> Tensor | None:
        return None if self.log_scale is None else torch.exp(self.log_scale)

    def run(self, x: Tensor, state: Tensor | None = None, keep_state: bool = True) -> tuple[Tensor, Any]:
        return functional.noisy_lif(
            x,
            self.noise,
            placement=self.placement,
            state=state,
            scale=self._learnt_scale(),
            surrogate=self.surrogate,
            mode=self.mode,
            keep_state=keep_state,
            **self._dynamics(),
        )

    def firing_probability(self, x: Tensor, spikes: Tensor) -> Tensor:
        """`models.functional.firing_probability` of this neuron, from rest; ValueError if there is membrane noise."""
        if self.placement != "escape":
            raise ValueError(f"membrane noise hides the potential: placement must be 'escape', is {self.placement!r}")
        dynamics = self._dynamics()
        del dynamics["detach_reset"]
        return functional.firing_probability(x, spikes, self.noise, scale=self._learnt_scale(), **dynamics)

    def extra_repr(self) -> str:
        learnt = "" if self.log_scale is None else f", scale={_number(self.scale):.4g} (learnt)"
        return f"{self.noise}{learnt}, {super().extra_repr()}, placement={self.placement!r}"


def noiseless(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` fires where u > threshold; TypeError if one has no `mode`."""
    return _switched(net, "noiseless")


def mean_field(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` outputs its firing probability F(u - threshold).

    The reset uses the probability too, and the gradient is exact. Errors as for `noiseless`.
    """
    return _switched(net, "mean_field")


@contextlib.contextmanager
def _switched(net: nn.Module, mode: str) -> Iterator[nn.Module]:
    neurons: list[Any] = []
    for name, module in net.named_modules():
        if not getattr(module, "emits_spikes", False):
            continue
        if hasattr(module, "is_noisy") and hasattr(module, "mode"):
            neurons.append(module)
        elif getattr(module, "is_noisy", True):
            missing = "mode" if hasattr(module, "is_noisy") else "is_noisy"
            raise TypeError(f"layer {name!r} ({type(module).__name__}) lacks {missing!r}, which {mode}() needs")
    before = [neuron.mode for neuron in neurons]
    try:
        for neuron in neurons:
            neuron.mode = mode
        yield net
    finally:
        for neuron, previous in zip(neurons, before):
            neuron.mode = previous
