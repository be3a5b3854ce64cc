"""Spiking neurons as modules: they map an input current [T, B, ...] to spikes [T, B, ...].

`neuron(x)` starts from rest and keeps nothing, so there is nothing to reset between batches. `neuron.run` and
`neuron.step` stream: they take the state and hand it back. The equations are in `models.functional`. An argument out of
range is a ValueError or TypeError.
"""

import abc
import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import functional, parameters
from .contexts import MODES, STREAM, refuse_reentrant
from .functional import PLACEMENTS, RESETS, check_choice, check_law, check_surrogate
from .noise import Gaussian, NoiseLaw
from .settings import SavesSettings

ERF = Gaussian(math.sqrt(0.5))  # the erf surrogate of sharpness a = 1; its density is a / sqrt(pi) exp(-(a z)^2)


def _learnt(parameter: Tensor) -> Tensor:
    """The value of a parameter, 0-d if it is one: such a parameter has shape [1], as `fully_shard` refuses 0-d ones."""
    return parameter if parameter.numel() > 1 or parameters.is_sharded(parameter) else parameter.reshape(())


def _like_values(value: float | Tensor) -> nn.Parameter:
    """An uninitialised parameter for one value, or for as many as a tensor has."""
    return nn.Parameter(value.new_empty(value.numel()) if isinstance(value, Tensor) else torch.empty(1))


def _is_parametrized(module: nn.Module, attribute: str) -> bool:
    """Whether an attribute is computed by `torch.nn.utils.parametrize`."""
    return "parametrizations" in module._modules and hasattr(module._modules["parametrizations"], attribute)


def _fill(
    module: nn.Module, attribute: str, name: str, value: float | Tensor, function: Callable[[float], float]
) -> None:
    """Write function(value) into a parameter; one value into all its elements."""
    parameter: Tensor = getattr(module, attribute)
    if is_parametrized := _is_parametrized(module, attribute):
        parameter = torch.empty_like(parameter)
    values: list[float]
    if not isinstance(value, Tensor):
        values = [value]
    elif not value.is_meta:
        values = value.flatten().tolist()
    elif parameter.is_meta:
        return
    else:
        raise RuntimeError(f"the {name} was given on the meta device, and has no values to start from")
    if len(values) not in (1, parameter.numel()):
        raise ValueError(f"this neuron learns {parameter.numel()} values of its {name}, and was given {len(values)}")
    with torch.no_grad():
        if len(values) == 1:  # not by `copy_`, which refuses what is sharded
            parameter.fill_(function(values[0]))
        elif parameters.is_sharded(parameter):
            raise RuntimeError(f"the {name} is sharded: set it for each channel before `fully_shard`, or to one value")
        else:
            parameter.copy_(torch.tensor([function(v) for v in values], dtype=parameter.dtype, device="cpu"))
        if is_parametrized:
            setattr(module, attribute, parameter)  # by its `right_inverse`, or an error that it has none


def _refuse_computed(name: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(f"a {name} that requires a gradient must be an nn.Parameter: it would not be learnt otherwise")


class SpikingNeuron(SavesSettings, abc.ABC):
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
        threshold: firing threshold, in the units of the potential; positive. A number, a tensor of one value, or one
            of a value for each channel, [C] for x [T, B, C, ...]. A parameter is registered as `threshold`, and learnt;
            another tensor is a buffer.
        decay: factor of the potential per step, in [0, 1]; given as `threshold` is.
        reset: "zero", "subtract" (by the threshold) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].

    Shape:
        x [T, B, ...] -> spikes [T, B, ...], 0 or 1, in the dtype of `x`.

    Note:
        What a parameter has learnt may leave its range: clamp it after a step of the optimiser. On the CPU, the next
        call is a ValueError otherwise. `ParametricLIF` and `learnable_scale` learn values that stay in their ranges.
        `load_state_dict` warns if the weights were saved with other settings, or do not say with which.
    """

    emits_spikes = True
    backend = "auto"  # see `models.functional.noisy_lif`
    threshold: float | Tensor
    decay: float | Tensor
    surrogate: NoiseLaw | None

    def __init__(
        self, threshold: float | Tensor, decay: float | Tensor, reset: str, detach_reset: bool, decay_input: bool
    ) -> None:
        super().__init__()
        check_choice("reset", reset, RESETS)
        self._given: dict[str, float | Tensor] = {}  # what `reset_parameters` starts from
        self._hold("threshold", threshold)
        self._hold("decay", decay)
        ends = parameters.extremes(decay)
        if decay_input and ends is not None and ends[1] == 1:
            raise ValueError("decay_input=True with decay=1 would ignore the input, which enters as (1 - decay) * x")
        self.reset = reset
        self.detach_reset = detach_reset
        self.decay_input = decay_input

    def _hold(self, name: str, value: float | Tensor) -> None:
        """Keep a value under its name: a parameter is learnt, another tensor is a buffer."""
        parameters.check(name, value)
        if isinstance(getattr(type(self), name, None), property):  # of a subclass that keeps it in its own way
            object.__setattr__(self, name, value)
        elif isinstance(value, Tensor):
            self._register(name, value)
        else:
            setattr(self, name, float(value))

    def _register(self, name: str, value: Tensor) -> None:
        # Not by `register_parameter` and `register_buffer`, which refuse the name of a property.
        _refuse_computed(name, value)
        if isinstance(value, nn.Parameter):
            self._buffers.pop(name, None)
            self._parameters[name] = value
        else:
            self._buffers[name] = value.clone()  # neurons that are given one tensor do not share it
        self._given[name] = value.detach().clone()

    def reset_parameters(self) -> None:
        """Start again from the values that were given as tensors."""
        for name, value in vars(self).get("_given", {}).items():  # a neuron pickled by an earlier version has none
            _fill(self, name, name, value, float)

    @property
    def is_noisy(self) -> bool:
        """Whether two calls on the same input may differ."""
        raise AttributeError(f"{type(self).__name__} has its own dynamics, and must say whether it `is_noisy`")

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        """Take the density of `law` for d spike / d u; spikes do not change. None leaves `detach_reset` as it is."""
        check_surrogate(law)
        scale: float | Tensor = law.scale
        if isinstance(scale, Tensor) and scale.numel() == 1 and (ends := parameters.extremes(scale)) is not None:
            law = functional.unscaled("surrogate", law).with_scale(ends[0])
        self.surrogate = law
        self.detach_reset = self.detach_reset if detach_reset is None else detach_reset

    def __init_subclass__(cls, **options: Any) -> None:
        """Where a class, or its mixin, overrides `run` or `step`, the other one follows, and it must say `is_noisy`."""
        super().__init_subclass__(**options)
        bases: list[Any] = list(cls.__mro__[: cls.__mro__.index(SpikingNeuron)])
        for base in bases:  # a mixin too is given what it lacks: the next class is then reached both ways
            own = {"run", "step"} & vars(base).keys()
            if own == {"run"}:
                _check_run(cls, base.run)
                base.step = _step_by(base.run)
            elif own == {"step"}:
                base.run = _run_by(base.step)
        for base in bases:
            if "is_noisy" in vars(base):
                break
            if "run" in vars(base) and cls.is_noisy is False:  # type: ignore[comparison-overlap]
                cls.is_noisy = SpikingNeuron.is_noisy  # the override may draw noise

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
        threshold, decay = parameters.shown(self.threshold), parameters.shown(self.decay)
        return f"threshold={threshold}, decay={decay}, reset={self.reset!r}"


def _check_run(neuron: type[SpikingNeuron], run: Callable[..., Any]) -> None:
    """Raise TypeError if `forward` cannot call this `run`."""
    if neuron.forward is not SpikingNeuron.forward or not inspect.isfunction(run):
        return
    arguments = inspect.signature(run).parameters.values()
    if not any(one.name == "keep_state" or one.kind is inspect.Parameter.VAR_KEYWORD for one in arguments):
        raise TypeError(f"{run.__qualname__} lacks keep_state: it must be run(self, x, state=None, keep_state=True)")


def _refuse_circle(name: str, other: str) -> NoReturn:
    raise TypeError(
        f"{name} recurses too deeply: if it calls self.{other}, that goes through {name} again; call super().{other}, "
        f"or override {other} too"
    ) from None


def _step_by(run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Tensor, Any]]:
    def step(self: SpikingNeuron, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        try:
            spikes, state = run(self, x_t.unsqueeze(0), state)
        except RecursionError:
            _refuse_circle(run.__qualname__, "step")
        return spikes.squeeze(0), state

    return step


def _run_by(step: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    def run(
        self: SpikingNeuron, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        if potentials:
            raise TypeError(f"{type(self).__name__} overrides `step`, which has no potentials: override `run`")
        spikes = []
        try:
            for x_t in x:
                spike, state = step(self, x_t, state)
                spikes.append(spike)
        except RecursionError:
            _refuse_circle(step.__qualname__, "run")
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
        threshold: float | Tensor = 1.0,
        decay: float | Tensor = 0.5,
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
        self,
        surrogate: NoiseLaw = ERF,
        threshold: float | Tensor = 1.0,
        reset: str = "zero",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(surrogate, threshold, 1.0, reset, detach_reset)


class ParametricLIF(LIF):
    """A `LIF` that learns its decay, decay = sigmoid(decay_logit), in (0, 1).

    It is one value for the layer; given a tensor [C] to start from, one for each channel.

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
        if isinstance(value, Tensor):
            parameters.check("decay", value)
            if isinstance(value, nn.Parameter) or value.requires_grad:
                raise ValueError("ParametricLIF learns the logit of its decay: give a number, or a LIF the parameter")
            value = value.clone()
        else:
            value = float(value)
        ends = parameters.extremes(value)
        if ends is not None and not 0.0 < ends[0] <= ends[1] < 1.0:
            came = parameters.shown(value) if isinstance(value, Tensor) else value
            raise ValueError(f"a learnable decay must be in (0, 1), got {came}")
        self._decay_set = value
        if not hasattr(self, "decay_logit"):
            self.decay_logit = _like_values(value)
        self._start_decay()  # keeps the parameter that an optimiser may hold

    def reset_parameters(self) -> None:
        """Start again from the decay that was last set."""
        super().reset_parameters()
        self._start_decay()

    def _start_decay(self) -> None:
        _fill(self, "decay_logit", "decay", self._decay_set, lambda decay: math.log(decay / (1 - decay)))


class NoisyLIF(SpikingNeuron):
    """Noisy leaky integrate-and-fire neuron: P(spike) = F(u - threshold), gradient F'(u - threshold).

    Args:
        noise: the law F of the noise (see `models.noise`). If its scale is a parameter, such as in
            Gaussian(nn.Parameter(torch.full((C,), 0.3))), that is registered as `scale`, and learnt; another tensor is
            a buffer. It has one value for the layer, or one for each channel.
        placement: "both", "escape" (threshold noise alone) or "membrane" (membrane noise alone).
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
        learnable_scale: if true, the layer learns the scale of its noise, kept positive by scale = exp(log_scale), by
            the gradient of the firing probability: one value, or as many as the scale of `noise` has.
        surrogate: a law whose density is the gradient, in place of that of `noise`.

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
    ) -> None:
        super().__init__(threshold, decay, reset, detach_reset, decay_input)
        check_choice("placement", placement, PLACEMENTS)
        check_law("noise", noise)
        self.log_scale = _like_values(noise.scale) if learnable_scale else None
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
        held = self._held_scale()
        return law if held is None else law.with_scale(held)

    @noise.setter
    def noise(self, law: NoiseLaw) -> None:
        check_law("noise", law)
        scale: float | Tensor = law.scale
        parameters.check("scale", scale)
        _refuse_computed("scale", scale)
        unscaled = functional.unscaled("noise", law)
        learnt = self._parameters.get("scale")
        if self.log_scale is not None:
            if isinstance(scale, nn.Parameter):
                raise ValueError("learnable_scale learns the logarithm of the scale: leave it out to learn a parameter")
            _fill(self, "log_scale", "scale", scale, math.log)  # keeps the parameter that an optimiser may hold
            self.__dict__["noise"] = law
        elif learnt is not None and not isinstance(scale, nn.Parameter):
            _fill(self, "scale", "scale", scale, float)
            self._given["scale"] = scale
            self.__dict__["noise"] = unscaled
        else:
            if isinstance(scale, Tensor):
                self._register("scale", scale)
            else:
                self._drop_scale()
            self.__dict__["noise"] = unscaled

    def _held_scale(self) -> Tensor | None:
        """A scale that was given as a tensor."""
        return self._parameters.get("scale", self._buffers.get("scale"))

    def _drop_scale(self) -> None:
        self._parameters.pop("scale", None)
        self._buffers.pop("scale", None)
        self._given.pop("scale", None)

    def reset_parameters(self) -> None:
        """Start again from the values that were given as tensors, and from the scale of the law, where it is learnt."""
        super().reset_parameters()
        if self.log_scale is not None:
            _fill(self, "log_scale", "scale", self.noise.scale, math.log)

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
        """Scale of the noise: a number, the tensor that was given, or what `learnable_scale` has learnt."""
        if self.log_scale is not None:
            return torch.exp(_learnt(self.log_scale))
        held, law = self._held_scale(), self.__dict__["noise"]
        return law.scale if held is None else held

    @property
    def is_noisy(self) -> bool:
        return self.mode == "noisy"

    @property
    def gradient_law(self) -> NoiseLaw:
        return self._noise_as_learnt() if self.surrogate is None else self.surrogate

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        learnt = [self._parameters.get(name) for name in ("log_scale", "scale")]
        if any(parameter is not None and parameter.requires_grad for parameter in learnt):
            raise ValueError("a scale is learnt by the density of the noise itself: give no surrogate")
        super().set_gradient(law, detach_reset)

    def scale_noise(self, factor: float) -> None:
        """Stretch the noise about its centre by a factor; the gradient stays as it is."""
        if parameters.is_sharded(self.scale):
            raise RuntimeError("the scale of the noise is sharded: call scale_noise before `fully_shard`")
        if _is_parametrized(self, "log_scale"):
            raise RuntimeError(
                "log_scale is parametrized: use torch.nn.utils.parametrize.remove_parametrizations first"
            )
        noise = self._noise_as_learnt().widened(factor)
        self.surrogate = self.gradient_law
        self.log_scale = None
        self._drop_scale()
        self.noise = noise

    def as_mean_field(self) -> "NoisyLIF":
        neuron = copy.deepcopy(self)
        neuron.mode = "mean_field"
        return neuron

    def _noise_as_learnt(self) -> NoiseLaw:
        """The law with the present scale, not learnt further: a number, or a tensor of many or that cannot be read."""
        law, scale = self.__dict__["noise"], self.scale
        if not isinstance(scale, Tensor):
            return law
        ends = parameters.extremes(scale)
        if ends is None or scale.numel() > 1:
            return law.with_scale(scale.detach().clone())
        return law.with_scale(ends[0]) if isinstance(law.scale, Tensor) else law.widened(ends[0] / law.scale)

    def _noise(self) -> dict[str, Any]:
        scale = self.scale
        return dict(noise=self.__dict__["noise"], scale=scale if isinstance(scale, Tensor) else None)

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        return functional.noisy_lif(
            x,
            placement=self.placement,
            state=state,
            surrogate=self.surrogate,
            mode=self.mode,
            keep_state=keep_state,
            potentials=potentials,
            **self._noise(),
            **self._dynamics(),
        )

    def firing_probability(self, x: Tensor, spikes: Tensor) -> Tensor:
        """`models.functional.firing_probability` of this neuron, from rest; ValueError if there is membrane noise."""
        if self.placement != "escape":
            raise ValueError(f"membrane noise hides the potential: placement must be 'escape', is {self.placement!r}")
        dynamics = self._dynamics()
        del dynamics["detach_reset"], dynamics["backend"]
        return functional.firing_probability(x, spikes, **self._noise(), **dynamics)

    def extra_repr(self) -> str:
        learnt = "" if self.log_scale is None else f", scale={parameters.shown(self.scale)} (learnt)"
        return f"{self.noise}{learnt}, {super().extra_repr()}, placement={self.placement!r}"
