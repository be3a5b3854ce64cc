"""Base class of spiking neurons: the protocol that the rest of the project relies on."""

import abc
import inspect
import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import functional, parameters
from .contexts import STREAM
from .functional import check_reset, check_surrogate, check_switch
from .noise import NoiseLaw
from .parameters import ArgumentError
from .settings import SavesSettings

LATER_SETTINGS = {"reset_by": None, "v_reset": 0.0, "v_leak": 0.0}  # that earlier versions did not have, as they were


class SpikingNeuron(SavesSettings, abc.ABC):
    """Base of the neurons, and the protocol by which the rest of the project knows a neuron.

    Any module whose `emits_spikes` is true is a spiking neuron, whatever its class. A class of your own, or from
    another copy of this package, needs only the attributes that its use requires:

    - evaluation, attacks, `noiseless` and `mean_field`: `is_noisy`, whether two calls on the same input may differ. A
      class that overrides `run` or `step` must define it, unless it inherits from a noisy neuron. A neuron draws by
      `law.sample(...)`, which `noise_generator` reaches, unlike `torch.rand`.
    - `noiseless`, `mean_field` and the noiseless twins of attacks: `mode`, which is "noisy", "noiseless" (fires where
      u > threshold) or "mean_field" (outputs its firing probability). Only neurons that can be noisy have one. It
      applies to all threads, which must agree on it; `NoisyLIF` has one per thread (see `models.contexts`).
    - gradient paths of attacks: `gradient_law`, the law whose density is the gradient at present, and `set_gradient`;
      `as_mean_field()`, a neuron of the same dynamics that outputs its firing probability; `scale_noise`, if noisy.
    - membrane noise as a perturbation: `decay` and `decay_input`.

    A subclass overrides `run` or `step`, whichever is easier; the other one and `forward` then go through it. `super()`
    is the neuron without the override. A method that is replaced later, on the class or on an instance, is not picked
    up.

    Args:
        threshold: firing threshold, in the units of the potential; infinite for neurons that never fire. A number, a
            tensor of one value, or one with a value for each channel, [C] for x [T, B, C, ...]. An nn.Parameter is
            learnt (give it shape [1], not [], if it is to be sharded); any other tensor becomes a buffer.
        decay: factor of the potential per step, in [0, 1]; given as `threshold` is.
        reset: "zero" (to `v_reset`), "subtract" (by `reset_by`) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].
        reset_by: what the reset "subtract" takes off, given as `threshold` is; None means the threshold.
        v_reset: the potential after the reset "zero", given as `threshold` is.
        v_leak: the rest potential, to which the potential leaks, and from which it starts; given as `threshold` is.

    Shape:
        x [T, B, ...] -> spikes [T, B, ...], 0 or 1, in the dtype of `x`.

    Note:
        A learnt value may leave its range: clamp it after each step of the optimiser. Otherwise the next call on the
        CPU is a ValueError. `ParametricLIF` and `learnable_scale` learn values that stay in their ranges.
        `load_state_dict` warns if the weights were saved with other settings, or do not say with which.
    """

    emits_spikes = True
    backend = "auto"  # see `models.functional.noisy_lif`
    threshold: float | Tensor
    decay: float | Tensor
    reset_by: float | Tensor | None
    v_reset: float | Tensor
    v_leak: float | Tensor
    surrogate: NoiseLaw | None

    def __init__(
        self,
        threshold: float | Tensor,
        decay: float | Tensor,
        reset: str,
        detach_reset: bool,
        decay_input: bool,
        reset_by: float | Tensor | None = None,
        v_reset: float | Tensor = 0.0,
        v_leak: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        check_reset(reset, reset_by, v_reset)
        check_switch("detach_reset", detach_reset)
        check_switch("decay_input", decay_input)
        self._given: dict[str, float | Tensor] = {}  # what `reset_parameters` starts from
        self._hold("threshold", threshold)
        self._hold("decay", decay)
        self._hold("v_reset", v_reset)
        self._hold("v_leak", v_leak)
        ends = parameters.extremes(threshold)
        if reset == "subtract" and reset_by is None and ends is not None and math.isinf(ends[1]):
            raise ArgumentError("an infinite threshold cannot be subtracted: give reset_by, or another reset")
        if reset_by is not None:
            self._hold("reset_by", reset_by)
        elif not isinstance(getattr(type(self), "reset_by", None), property):  # computed by the subclass
            self.reset_by = None
        ends = parameters.extremes(decay)
        if decay_input and ends is not None and ends[1] == 1:
            raise ArgumentError("decay_input=True with decay=1 would ignore the input, which enters as (1 - decay) * x")
        self.reset = reset
        self.detach_reset = detach_reset
        self.decay_input = decay_input

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, usual in LATER_SETTINGS.items():
            is_held = any(name in held for held in (state, state["_parameters"], state["_buffers"]))
            is_computed = isinstance(getattr(type(self), name, None), property)  # by the subclass
            if "reset" in state and not is_held and not is_computed:
                state = {**state, name: usual}  # pickled by an earlier version
        super().__setstate__(state)

    def _hold(self, name: str, value: float | Tensor) -> None:
        """Keep a value under its name: a parameter is learnt, another tensor is a buffer."""
        parameters.check(name, value)
        if isinstance(getattr(type(self), name, None), property):  # the subclass stores it differently
            object.__setattr__(self, name, value)
        elif isinstance(value, Tensor):
            self._register(name, value)
        else:
            setattr(self, name, float(value))

    def _register(self, name: str, value: Tensor) -> None:
        # Not by `register_parameter` and `register_buffer`, which refuse the name of a property.
        parameters.refuse_computed(name, value)
        if isinstance(value, nn.Parameter):
            self._buffers.pop(name, None)
            self._parameters[name] = value
        else:
            self._buffers[name] = value.clone()  # neurons that are given one tensor do not share it
        self._given[name] = value.detach().clone()

    def reset_parameters(self) -> None:
        """Start again from the values that were given as tensors."""
        given = vars(self).get("_given", {})  # a neuron pickled by an earlier version has none
        for name in given:
            parameters.refuse_derived(self, name)
        for name, value in given.items():
            parameters.fill(self, name, name, value, float)

    @property
    def is_noisy(self) -> bool:
        """Whether two calls on the same input may differ."""
        raise AttributeError(f"{type(self).__name__} has its own dynamics, and must say whether it `is_noisy`")

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        """Take the density of `law` for d spike / d u; spikes do not change. None leaves `detach_reset` as it is.

        Raises:
            TypeError: if `law` is not a noise law.
            ValueError: if the scale of `law` requires a gradient: a surrogate's scale is not learnt.
        """
        check_surrogate(law)
        if detach_reset is not None:
            check_switch("detach_reset", detach_reset)
        scale: float | Tensor = law.scale
        if isinstance(scale, Tensor):  # neurons that are given one law do not share the tensor
            ends = parameters.extremes(scale) if scale.numel() == 1 else None
            functional.unscaled("surrogate", law)  # an error where it has no `with_scale`
            law = law.with_scale(scale.clone() if ends is None else ends[0])
        self.surrogate = law
        self.detach_reset = self.detach_reset if detach_reset is None else detach_reset

    def __init_subclass__(cls, **options: Any) -> None:
        """Derive `run` from an overridden `step` and vice versa; a class that overrides one must define `is_noisy`."""
        super().__init_subclass__(**options)
        bases: list[Any] = list(cls.__mro__[: cls.__mro__.index(SpikingNeuron)])
        for base in bases:  # mixins too, so that `super()` reaches the next class by both methods
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
        """Run T steps: x [T, B, ...] -> spikes [T, B, ...] and the state [B, ...] after them.

        The state is the membrane potential, in float32 (float64 for float64 input). The argument None means rest; the
        result is None if `keep_state` is false. With `potentials`, the third result is the potentials [T, B, ...]
        before the reset, which are compared with the threshold.
        """

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step: input [B, ...] and state [B, ...] -> spike [B, ...] and the next state."""
        spikes, state = self.run(x_t.unsqueeze(0), state)
        return spikes.squeeze(0), state

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "nn.DataParallel would split images along the batch but gather logits [T, B, ...] along time: use "
            "DistributedDataParallel"
        )

    def _dynamics(self) -> dict[str, Any]:
        return dict(
            threshold=self.threshold,
            decay=self.decay,
            reset=self.reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
            backend=self.backend,
            reset_by=self.reset_by,
            v_reset=self.v_reset,
            v_leak=self.v_leak,
        )

    def extra_repr(self) -> str:
        threshold, decay = parameters.shown(self.threshold), parameters.shown(self.decay)
        shown = f"threshold={threshold}, decay={decay}, reset={self.reset!r}"
        for name, usual in LATER_SETTINGS.items():
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != usual:
                shown += f", {name}={parameters.shown(value)}"
        return shown


def _check_run(neuron: type[SpikingNeuron], run: Callable[..., Any]) -> None:
    """Raise TypeError if `forward` cannot call this `run`."""
    if neuron.forward is not SpikingNeuron.forward or not inspect.isfunction(run):
        return
    arguments = inspect.signature(run).parameters.values()
    if not any(one.name == "keep_state" or one.kind is inspect.Parameter.VAR_KEYWORD for one in arguments):
        signature = "run(self, x, state=None, keep_state=True, potentials=False)"
        raise TypeError(f"{run.__qualname__} lacks keep_state: it must be {signature}")


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
