"""Spiking neurons as modules: they map an input current [T, B, ...] to spikes [T, B, ...].

`neuron(x)` starts from rest and keeps nothing, so there is nothing to reset between batches. `neuron.run` and
`neuron.step` stream: they take the state and hand it back. The equations are in `models.functional`. An argument out of
range is a ValueError or TypeError.
"""

import abc
import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .contexts import MODES, STREAM, refuse_reentrant
from .functional import PLACEMENTS, RESETS, check_choice, check_decay, check_law, check_threshold
from .noise import Gaussian, NoiseLaw, check_scale

ERF = Gaussian(math.sqrt(0.5))  # the erf surrogate of sharpness a = 1; its density is a / sqrt(pi) exp(-(a z)^2)


def _number(value: float | Tensor) -> float:
    """The value of a number or a learnt tensor; NaN for a tensor without values, on the meta device."""
    if isinstance(value, Tensor):
        return math.nan if value.is_meta else value.item()  # float() warns of tensors that are learnt
    return value


def _learnt(parameter: Tensor) -> Tensor:
    """The value of a parameter of one element, which has shape [1]: `fully_shard` refuses 0-d ones."""
    return parameter.reshape(())


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


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

    - evaluation, attacks, `noiseless` and `mean_field`: `is_noisy`, whether two calls on the same input may differ. A
      class with a `run` or `step` of its own says it itself, unless it inherits that it is noisy.
    - `noiseless`, `mean_field` and the noiseless twins of attacks: `mode`, which is "noisy", "noiseless" (fires where
      u > threshold) or "mean_field" (outputs its firing probability). Only a neuron that can be noisy has one. It is
      set for all threads, and may not be two at once; `NoisyLIF` has one in each thread (`models.contexts`).
    - gradient paths of attacks: `gradient_law`, the law whose density is the gradient at present, and `set_gradient`;
      `as_mean_field()`, a neuron of the same dynamics that outputs its firing probability; `scale_noise`, if noisy.
    - membrane noise as a perturbation: `decay` and `decay_input`.

    A subclass overrides `run` or `step`, whichever is easier; the other one and `forward` then go through it. `super()`
    has the neuron without the override.

    Args:
        threshold: firing threshold, in the units of the potential; positive.
        decay: factor of the potential per step, in [0, 1].
        reset: "zero", "subtract" (by the threshold) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].

    Shape:
        x [T, B, ...] -> spikes [T, B, ...], 0 or 1, in the dtype of `x`.

    Note:
        `load_state_dict` warns if the weights were saved with other settings, or do not say with which.
    """

    emits_spikes = True
    backend = "auto"  # see `models.functional.noisy_lif`
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
        raise AttributeError(f"{type(self).__name__} has its own dynamics, and must say whether it `is_noisy`")

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        """Take the density of `law` for d spike / d u; spikes do not change. None leaves `detach_reset` as it is."""
        check_law("surrogate", law)
        self.surrogate = law
        self.detach_reset = self.detach_reset if detach_reset is None else detach_reset

    def __init_subclass__(cls, **options: Any) -> None:
        """Where a class, or its mixin, overrides `run` or `step`, the other one follows, and it must say `is_noisy`."""
        super().__init_subclass__(**options)
        owners: dict[str, int] = {}
        for place, base in reversed(list(enumerate(cls.__mro__))):
            for name in {"run", "step", "is_noisy"} & vars(base).keys():
                owners[name] = place
        is_below = min(owners["run"], owners["step"]) < owners["is_noisy"]
        if is_below and cls.is_noisy is False:  # type: ignore[comparison-overlap]
            cls.is_noisy = SpikingNeuron.is_noisy  # the override may draw noise
        if owners["run"] < owners["step"]:
            cls.step = _step_by(cls.run)  # type: ignore[method-assign]
        elif owners["step"] < owners["run"]:
            cls.run = _run_by(cls.step)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):  # it has no T to loop over: the neuron stays a module in the graph
            if x.tracer.root is self:
                raise RuntimeError("FX cannot trace a neuron by itself, only in a network: nn.Sequential(neuron)")
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        if not torch.compiler.is_compiling() and (stream := STREAM.get()) is not None:
            return stream.advance(self, x)
        return self.run(x, keep_state=False)[0]

    @abc.abstractmethod
    def run(self, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False) -> tuple[Any, ...]:
        """Some steps of a stream: x [T, B, ...] -> spikes [T, B, ...] and the state [B, ...] after them.

        The state is the membrane potential, in float32 (float64 for float64 input). As an argument, None means rest;
        as a result, that `keep_state` was false. With `potentials`, there is a third result: the potentials [T, B, ...]
        before the reset, which the threshold is compared with.
        """

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step: input [B, ...] and state [B, ...] -> spike [B, ...] and the next state."""
        spikes, state = self.run(x_t.unsqueeze(0), state)
        return spikes.squeeze(0), state

    def _settings(self) -> dict[str, Any]:
        """What weights depend on and do not hold, as plain data: settings that are not learnt."""
        settings = {}
        for name in ("threshold", "decay", "reset", "decay_input", "placement", "noise", "surrogate"):
            if f"{name}_logit" in self._parameters:  # learnt
                continue
            value: Any = getattr(self, name, None)
            if hasattr(value, "scale"):  # a law, whose scale may be learnt
                is_learnt = name == "noise" and getattr(self, "log_scale", None) is not None
                is_learnt |= isinstance(value.scale, Tensor)
                value = type(value).__name__ if is_learnt else f"{type(value).__name__}({value.scale:g}, {value.loc:g})"
            if value is not None and not isinstance(value, Tensor):
                settings[name] = value
        return settings

    # The settings go into the metadata of a state dictionary, beside the versions of PyTorch's own layers: its keys and
    # values are weights alone.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["settings"] = self._settings()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        for name, parameter in self._parameters.items():  # files of earlier versions have numbers of shape []
            loaded = state_dict.get(prefix + name)
            if parameter is not None and isinstance(loaded, Tensor) and loaded.dim() == 0:
                state_dict[prefix + name] = loaded.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        saved, own = local_metadata.get("settings"), self._settings()
        if not isinstance(saved, dict):
            warnings.warn(
                "these weights do not say with which threshold, decay and noise they were trained (they are from an "
                f"earlier version, or were copied to a plain dictionary); they are used with {_listed(own)}",
                stacklevel=2,
            )
        elif different := [name for name in {**own, **saved} if own.get(name) != saved.get(name)]:
            before, now = ({name: settings.get(name) for name in different} for settings in (saved, own))
            message = f"weights of neurons with {_listed(before)} were loaded into neurons with {_listed(now)}"
            warnings.warn(message, stacklevel=2)

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "nn.DataParallel splits and gathers along one dimension, which is the batch of images but the time of "
            "spikes and logits [T, B, ...]: use DistributedDataParallel"
        )

    def _dynamics(self) -> dict[str, Any]:
        return dict(
            threshold=self.threshold,
            decay=self.decay,
            reset=self.reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}, decay={_number(self.decay):.4g}, reset={self.reset!r}"


def _step_by(run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Tensor, Any]]:
    def step(self: SpikingNeuron, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        spikes, state = run(self, x_t.unsqueeze(0), state)
        return spikes.squeeze(0), state

    return step


def _run_by(step: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    def run(
        self: SpikingNeuron, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        if potentials:
            raise TypeError(f"{type(self).__name__} overrides `step`, which has no potentials: override `run`")
        spikes = []
        for x_t in x:
            spike, state = step(self, x_t, state)
            spikes.append(spike)
        return torch.stack(spikes) if spikes else torch.empty_like(x), state if keep_state else None

    return run


class LIF(SpikingNeuron):
    """Deterministic leaky integrate-and-fire neuron: fires where u > threshold, strictly.

    Args:
        surrogate: the law whose density is d spike / d u in the backward pass; erf of sharpness 1 by default.
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
    """

    surrogate: NoiseLaw
    is_noisy = False
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

        A subclass that overrides `run` or `step` must call that of `super()` for this.
        """
        neuron = copy.deepcopy(self)
        neuron._mode = "mean_field"
        return neuron

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        dynamics = self._dynamics()
        return functional.noisy_lif(
            x, self.surrogate, mode=self._mode, state=state, keep_state=keep_state, potentials=potentials, **dynamics
        )

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
        decay = torch.sigmoid(_learnt(self.decay_logit))
        eps = torch.finfo(decay.dtype).eps  # where the sigmoid is rounded to 0 or 1, its slope is 0 already
        return decay.clamp(eps, 1 - eps)

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        value = float(value)
        if not 0.0 < value < 1.0:
            raise ValueError(f"a learnable decay must be in (0, 1), got {value}")
        self._decay_set = value
        if "decay_logit" not in self._parameters:
            self.decay_logit = nn.Parameter(torch.empty(1))
        self.reset_parameters()  # keeps the parameter that an optimiser may hold

    def reset_parameters(self) -> None:
        """Start again from the decay that was last set."""
        with torch.no_grad():
            self.decay_logit.fill_(math.log(self._decay_set / (1 - self._decay_set)))


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

    knows_contexts = True  # its `mode` is that of the blocks of `noiseless` and `mean_field` that hold where it runs

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
        check_choice("placement", placement, PLACEMENTS)
        self.log_scale = nn.Parameter(torch.empty(1)) if learnable_scale else None
        self.noise = noise
        self.surrogate = None
        self.placement = placement
        self.mode = "noisy"
        if surrogate is not None:
            self.set_gradient(surrogate)

    @property
    def noise(self) -> NoiseLaw:
        """The law of the noise; set another to anneal it. A learnt scale goes on from that of the law."""
        law: NoiseLaw = self.__dict__["noise"]
        return law

    @noise.setter
    def noise(self, law: NoiseLaw) -> None:
        check_law("noise", law)
        check_scale(law.scale)
        self.__dict__["noise"] = law
        self.reset_parameters()  # keeps the parameter that an optimiser may hold

    def reset_parameters(self) -> None:
        """Start again from the scale of the law, where the scale is learnt."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.fill_(math.log(self.noise.scale))

    @property
    def mode(self) -> str:
        """ "noisy", or as set; inside `noiseless` and `mean_field`, what they say."""
        for block in MODES.in_effect():
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
        """Scale of the noise: a number, or the current value (0-d tensor) where it is learnt."""
        return self.noise.scale if self.log_scale is None else torch.exp(_learnt(self.log_scale))

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
        """Stretch the noise about its centre by a factor; the gradient stays as it is."""
        noise = self._noise_as_learnt().widened(factor)
        self.surrogate = self.gradient_law
        self.log_scale = None
        self.noise = noise

    def as_mean_field(self) -> "NoisyLIF":
        neuron = copy.deepcopy(self)
        neuron.mode = "mean_field"
        return neuron

    def _noise_as_learnt(self) -> NoiseLaw:
        return self.noise if self.log_scale is None else self.noise.widened(_number(self.scale) / self.noise.scale)

    def _learnt_scale(self) -> Tensor | None:
        return None if self.log_scale is None else torch.exp(_learnt(self.log_scale))

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        return functional.noisy_lif(
            x,
            self.noise,
            placement=self.placement,
            state=state,
            scale=self._learnt_scale(),
            surrogate=self.surrogate,
            mode=self.mode,
            keep_state=keep_state,
            potentials=potentials,
            **self._dynamics(),
        )

    def firing_probability(self, x: Tensor, spikes: Tensor) -> Tensor:
        """`models.functional.firing_probability` of this neuron, from rest; ValueError if there is membrane noise."""
        if self.placement != "escape":
            raise ValueError(f"membrane noise hides the potential: placement must be 'escape', is {self.placement!r}")
        dynamics = self._dynamics()
        del dynamics["detach_reset"], dynamics["backend"]
        return functional.firing_probability(x, spikes, self.noise, scale=self._learnt_scale(), **dynamics)

    def extra_repr(self) -> str:
        learnt = "" if self.log_scale is None else f", scale={_number(self.scale):.4g} (learnt)"
        return f"{self.noise}{learnt}, {super().extra_repr()}, placement={self.placement!r}"
