"""Spiking neurons as modules: they map an input current [T, B, ...] to spikes [T, B, ...].

`neuron(x)` starts from rest and keeps nothing, so there is nothing to reset between batches. `neuron.run` and
`neuron.step` stream: they take the state and hand it back. The equations are in `models.functional`. An argument out of
range is a ValueError or TypeError.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import functional, parameters
from .base import SpikingNeuron
from .checkpointing import refuse_reentrant
from .contexts import MODE_BLOCKS
from .functional import LEARNT_SCALE_AND_SURROGATE, PLACEMENTS, check_choice, check_law, check_switch
from .noise import Gaussian, NoiseLaw
from .parameters import ArgumentError

ERF = Gaussian(math.sqrt(0.5))  # the erf surrogate of sharpness a = 1; its density is a / sqrt(pi) exp(-(a z)^2)


class LIF(SpikingNeuron):
    """Deterministic leaky integrate-and-fire neuron: fires where u > threshold, strictly.

    Args:
        surrogate: the law whose density is d spike / d u in the backward pass; erf of sharpness 1 by default.
        threshold, decay, reset, detach_reset, decay_input, reset_by, v_reset, v_leak: see `SpikingNeuron`.
    """

    surrogate: NoiseLaw
    is_noisy = False
    _is_mean_field = False  # true in what `as_mean_field` returns

    def __init__(
        self,
        surrogate: NoiseLaw = ERF,
        threshold: float | Tensor = 1.0,
        decay: float | Tensor = 0.5,
        reset: str = "zero",
        detach_reset: bool = False,
        decay_input: bool = False,
        reset_by: float | Tensor | None = None,
        v_reset: float | Tensor = 0.0,
        v_leak: float | Tensor = 0.0,
    ) -> None:
        super().__init__(threshold, decay, reset, detach_reset, decay_input, reset_by, v_reset, v_leak)
        self.set_gradient(surrogate)

    @property
    def gradient_law(self) -> NoiseLaw:
        """The law whose density is the gradient."""
        return self.surrogate

    def as_mean_field(self) -> "LIF":
        """A copy that outputs F(u - threshold), F being the distribution function of the surrogate.

        A subclass that overrides `run` or `step` must call that of `super()` for this.
        """
        neuron = copy.deepcopy(self)
        neuron._is_mean_field = True
        return neuron

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        return self._fire(x, state=state, keep_state=keep_state, potentials=potentials)

    def _fire(self, x: Tensor, **settings: Any) -> tuple[Any, ...]:
        return functional.lif(x, self.surrogate, mean_field=self._is_mean_field, **settings, **self._dynamics())

    def extra_repr(self) -> str:
        return f"{self.surrogate}, {super().extra_repr()}"


class IF(LIF):
    """Integrate-and-fire neuron without leak: a `LIF` with decay 1."""

    def __init__(
        self,
        surrogate: NoiseLaw = ERF,
        threshold: float | Tensor = 1.0,
        reset: str = "zero",
        detach_reset: bool = False,
        reset_by: float | Tensor | None = None,
        v_reset: float | Tensor = 0.0,
        v_leak: float | Tensor = 0.0,
    ) -> None:
        super().__init__(surrogate, threshold, 1.0, reset, detach_reset, False, reset_by, v_reset, v_leak)


class _LearntDecay(SpikingNeuron):
    """Mixin: the neuron learns its decay, decay = sigmoid(decay_logit)."""

    decay_logit: nn.Parameter

    @property
    def decay(self) -> Tensor:
        decay = torch.sigmoid(parameters.learnt(self.decay_logit))
        eps = torch.finfo(decay.dtype).eps  # where the sigmoid is rounded to 0 or 1, its slope is 0 already
        return decay.clamp(eps, 1 - eps)

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            parameters.check("decay", value)
            if isinstance(value, nn.Parameter) or value.requires_grad:
                raise ArgumentError(
                    f"{type(self).__name__} learns the logit of its decay: give it a number, or the parameter to a LIF"
                )
            value = value.clone()
        else:
            value = float(value)
        ends = parameters.extremes(value)
        if ends is not None and not 0.0 < ends[0] <= ends[1] < 1.0:
            got = parameters.shown(value) if isinstance(value, Tensor) else value
            raise ArgumentError(f"a learnable decay must be in (0, 1), got {got}")
        if not hasattr(self, "decay_logit"):
            self.decay_logit = parameters.like_values(value)
        parameters.refuse_derived(self, "decay_logit")
        self._decay_set = value
        self._start_decay()  # keeps the parameter that an optimiser may hold

    def reset_parameters(self) -> None:
        """Start again from the decay that was last set."""
        parameters.refuse_derived(self, "decay_logit")
        super().reset_parameters()
        self._start_decay()

    def _start_decay(self) -> None:
        parameters.fill(self, "decay_logit", "decay", self._decay_set, lambda decay: math.log(decay / (1 - decay)))


class ParametricLIF(_LearntDecay, LIF):
    """A `LIF` that learns its decay, decay = sigmoid(decay_logit), in (0, 1).

    One value for the layer, or one per channel if the initial decay is a tensor [C].

    Raises:
        ValueError: if the initial decay is not in (0, 1), or requires a gradient.

    Note:
        Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking neural networks",
        ICCV 2021. The paper has decay_input=True.
    """


class NoisyLIF(SpikingNeuron):
    """Noisy leaky integrate-and-fire neuron: P(spike) = F(u - threshold), gradient F'(u - threshold).

    Args:
        noise: the law F of the noise (see `models.noise`). If its scale is an nn.Parameter, as in
            Gaussian(nn.Parameter(torch.full((C,), 0.3))), it is registered as `scale`, and learnt; any other tensor
            becomes a buffer. It has one value for the layer, or one per channel.
        placement: "both", "escape" (threshold noise alone) or "membrane" (membrane noise alone).
        threshold, decay, reset, detach_reset, decay_input, reset_by, v_reset, v_leak: see `SpikingNeuron`.
        learnable_scale: if true, the layer learns the scale of its noise, kept positive by scale = exp(log_scale), by
            the gradient of the firing probability: one value, or as many as the scale of `noise` has.
        surrogate: a law whose density is the gradient instead of that of `noise`.

    Note:
        Noise is part of the model: it is drawn in training and in evaluation alike. Use `noiseless` or `mean_field` for
        its deterministic relatives.
    """

    knows_contexts = True  # its `mode` is that of the blocks of `noiseless` and `mean_field` that hold where it runs

    def __init__(
        self,
        noise: NoiseLaw = Gaussian(0.3),
        threshold: float | Tensor = 1.0,
        decay: float | Tensor = 0.5,
        placement: str = "both",
        reset: str = "zero",
        detach_reset: bool = False,
        decay_input: bool = False,
        learnable_scale: bool = False,
        surrogate: NoiseLaw | None = None,
        reset_by: float | Tensor | None = None,
        v_reset: float | Tensor = 0.0,
        v_leak: float | Tensor = 0.0,
    ) -> None:
        super().__init__(threshold, decay, reset, detach_reset, decay_input, reset_by, v_reset, v_leak)
        check_choice("placement", placement, PLACEMENTS)
        check_switch("learnable_scale", learnable_scale)
        check_law("noise", noise)
        self.log_scale = parameters.like_values(noise.scale) if learnable_scale else None
        self.noise = noise
        self.surrogate = None
        self.placement = placement
        self.mode = "noisy"
        if surrogate is not None:
            self.set_gradient(surrogate)

    @property
    def noise(self) -> NoiseLaw:
        """The law of the noise; set another to anneal it. A learnt scale continues from that of the new law.

        Raises:
            RuntimeError: if the scale is computed from other parameters, or is a parameter and was parametrized.
            ValueError: if `learnable_scale` is given a parameter.
        """
        law: NoiseLaw = self.__dict__["noise"]
        return law.with_scale(self.scale) if self._is_scale_given() else self._noise_as_learnt()

    @noise.setter
    def noise(self, law: NoiseLaw) -> None:
        check_law("noise", law)
        scale: float | Tensor = law.scale
        parameters.check("scale", scale)
        parameters.refuse_computed("scale", scale)
        unscaled = functional.unscaled("noise", law)
        is_learnt = "scale" in self._parameters or parameters.is_parametrized(self, "scale")
        self._refuse_derived_scale()
        if isinstance(scale, nn.Parameter):
            self._refuse_parametrized_scale()
        if self.log_scale is not None:
            if isinstance(scale, nn.Parameter):
                raise ArgumentError(
                    "learnable_scale learns the logarithm of the scale: leave it out to learn a parameter"
                )
            # This keeps the parameter that an optimiser may hold.
            parameters.fill(self, "log_scale", "scale", scale, math.log)
            self.__dict__["noise"] = law
        elif is_learnt and not isinstance(scale, nn.Parameter):
            parameters.fill(self, "scale", "scale", scale, float)
            self._given["scale"] = scale
            self.__dict__["noise"] = unscaled
        else:
            if isinstance(scale, Tensor):
                self._register("scale", scale)
            else:
                self._drop_scale()
            self.__dict__["noise"] = unscaled

    def _is_scale_given(self) -> bool:
        """Whether the scale was given as a tensor."""
        return "scale" in vars(self).get("_given", {})  # a neuron pickled by an earlier version has none

    def _drop_scale(self) -> None:
        if self._is_scale_given():
            del self.scale, self._given["scale"]

    def reset_parameters(self) -> None:
        """Start again from the values that were given as tensors, and from the scale of the law, where it is learnt."""
        self._refuse_derived_scale()
        super().reset_parameters()
        if self.log_scale is not None:
            parameters.fill(self, "log_scale", "scale", self.__dict__["noise"].scale, math.log)

    @property
    def mode(self) -> str:
        """The mode of an enclosing `noiseless` or `mean_field`, else the one set ("noisy" by default)."""
        for block in MODE_BLOCKS.in_effect():
            mode, neurons = block.value
            if id(self) in neurons:
                if not torch.compiler.is_compiling():
                    refuse_reentrant(block)
                return mode
        return self.__dict__["mode"]

    @mode.setter
    def mode(self, value: str) -> None:
        check_choice("mode", value, functional.MODES)
        self.__dict__["mode"] = value

    @property
    def scale(self) -> float | Tensor:
        """Scale of the noise: a number, the tensor that was given, or what `learnable_scale` has learnt."""
        if self.log_scale is not None:
            return torch.exp(parameters.learnt(self.log_scale))
        if not self._is_scale_given():
            return self.__dict__["noise"].scale
        for place in (self._parameters, self._buffers, self.__dict__):
            if "scale" in place:
                held: Tensor | None = place["scale"]
                if held is None:  # an AttributeError would look for it, and find None
                    raise RuntimeError("the scale was set to None: set neuron.noise to a law with another scale")
                return held
        raise AttributeError("scale")  # deleted

    @scale.setter
    def scale(self, value: Tensor) -> None:
        if not self._is_scale_given() or not isinstance(value, Tensor):
            raise AttributeError("the scale is that of the law: set neuron.noise instead")
        self.__dict__["scale"] = value  # computed from parameters, as by pruning, weight_norm or FSDP

    @scale.deleter
    def scale(self) -> None:
        if not self._is_scale_given():
            raise AttributeError("the scale is that of the law, and cannot be deleted")
        for place in (self._parameters, self._buffers, self.__dict__):
            place.pop("scale", None)

    def _refuse_derived_scale(self) -> None:
        if self.log_scale is not None:
            parameters.refuse_derived(self, "log_scale")
        elif self._is_scale_given():
            parameters.refuse_derived(self, "scale")

    def _refuse_parametrized_scale(self) -> None:
        for name in ("log_scale", "scale"):
            if parameters.is_parametrized(self, name):
                raise RuntimeError(
                    f"{name} is parametrized: use torch.nn.utils.parametrize.remove_parametrizations first"
                )

    @property
    def is_noisy(self) -> bool:
        """Whether two calls on the same input may differ here: not inside `noiseless` or `mean_field`."""
        return self.mode == "noisy"

    @property
    def gradient_law(self) -> NoiseLaw:
        """The law whose density is the gradient at present."""
        return self._noise_as_learnt() if self.surrogate is None else self.surrogate

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        """As `SpikingNeuron.set_gradient`; ValueError also if the scale of the noise is learnt."""
        with torch.enable_grad():
            scale = self.scale
        if isinstance(scale, Tensor) and scale.requires_grad:
            raise ArgumentError(LEARNT_SCALE_AND_SURROGATE)
        super().set_gradient(law, detach_reset)

    def scale_noise(self, factor: float) -> None:
        """Stretch the noise about its centre by a factor; the gradient stays as it is.

        Raises:
            RuntimeError: if the scale is sharded, parametrized, or computed from other parameters.
        """
        if parameters.is_sharded(self.scale):
            raise RuntimeError("the scale of the noise is sharded: call scale_noise before `fully_shard`")
        self._refuse_derived_scale()
        self._refuse_parametrized_scale()
        noise = self._noise_as_learnt().widened(factor)
        self.surrogate = self.gradient_law
        self.log_scale = None
        self._drop_scale()
        self.noise = noise

    def as_mean_field(self) -> "NoisyLIF":
        """A copy that outputs its firing probability, wherever it is called."""
        neuron = copy.deepcopy(self)
        neuron.mode = "mean_field"
        return neuron

    def _noise_as_learnt(self) -> NoiseLaw:
        """The law at its present scale, detached: a number, or a tensor if it has several values or cannot be read."""
        law, scale = self.__dict__["noise"], self.scale
        if not isinstance(scale, Tensor):
            return law
        ends = parameters.extremes(scale)
        return law.with_scale(scale.detach().clone() if ends is None or scale.numel() > 1 else ends[0])

    def _noise(self) -> dict[str, Any]:
        scale = self.scale
        return dict(noise=self.__dict__["noise"], scale=scale if isinstance(scale, Tensor) else None)

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        return self._fire(x, state=state, keep_state=keep_state, potentials=potentials)

    def _fire(self, x: Tensor, **settings: Any) -> tuple[Any, ...]:
        return functional.noisy_lif(
            x,
            placement=self.placement,
            surrogate=self.surrogate,
            mode=self.mode,
            **settings,
            **self._noise(),
            **self._dynamics(),
        )

    def firing_probability(self, x: Tensor, spikes: Tensor) -> Tensor:
        """`models.functional.firing_probability` of this neuron, from rest; ValueError if there is membrane noise."""
        if self.placement != "escape":
            raise ArgumentError(
                f"membrane noise hides the potential: placement must be 'escape', is {self.placement!r}"
            )
        dynamics = self._dynamics()
        del dynamics["detach_reset"], dynamics["backend"]
        return functional.firing_probability(x, spikes, **self._noise(), **dynamics)

    def extra_repr(self) -> str:
        learnt = "" if self.log_scale is None else ", learnt scale"
        return f"{self.noise}{learnt}, {super().extra_repr()}, placement={self.placement!r}"


class NoisyIF(NoisyLIF):
    """Noisy integrate-and-fire neuron without leak: a `NoisyLIF` with decay 1."""

    def __init__(
        self,
        noise: NoiseLaw = Gaussian(0.3),
        threshold: float | Tensor = 1.0,
        placement: str = "both",
        reset: str = "zero",
        detach_reset: bool = False,
        learnable_scale: bool = False,
        surrogate: NoiseLaw | None = None,
        reset_by: float | Tensor | None = None,
        v_reset: float | Tensor = 0.0,
        v_leak: float | Tensor = 0.0,
    ) -> None:
        super().__init__(
            noise,
            threshold,
            1.0,
            placement,
            reset,
            detach_reset,
            False,
            learnable_scale,
            surrogate,
            reset_by,
            v_reset,
            v_leak,
        )


class NoisyParametricLIF(_LearntDecay, NoisyLIF):
    """A `NoisyLIF` that learns its decay, as `ParametricLIF` does."""
