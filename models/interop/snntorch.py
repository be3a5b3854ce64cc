"""Neurons of snnTorch."""

import copy
import dataclasses
from collections import deque
from typing import Any

import snntorch as theirs
import torch
from torch import Tensor, nn

from ..base import SpikingNeuron
from ..composed import Recurrent, Synaptic
from ..neurons import LIF, NoisyLIF
from ..noise import NoiseLaw
from ..parameters import ArgumentError, device_of
from .mapping import (
    Adapter,
    after_reset,
    build,
    check_state,
    learnt_like,
    value_of,
)
from .surrogates import NotMapped


class _SubtractsLater:
    """Mixin: snnTorch takes off the threshold one step later, after the leak; here right after the spike, before it."""

    threshold: Any
    decay: Any
    reset: str

    @property
    def reset_by(self) -> Any:
        return self.threshold / self.decay if self.reset == "subtract" else None


class _LIF(_SubtractsLater, LIF):  # type: ignore[override]
    pass


class _NoisyLIF(_SubtractsLater, NoisyLIF):  # type: ignore[override]
    pass


class _LearnsBeta(_SubtractsLater):
    """Mixin: decay = beta, clamped to [0, 1] as in snnTorch, where beta is learnt."""

    beta: nn.Parameter

    @property
    def decay(self) -> Tensor:
        return self.beta.clamp(1e-15, 1)  # learnt values may reach 0, where `reset_by` would be infinite

    @decay.setter
    def decay(self, value: nn.Parameter) -> None:
        self.beta = value


class _LIFOfBeta(_LearnsBeta, LIF):  # type: ignore[misc, override]
    pass


class _NoisyLIFOfBeta(_LearnsBeta, NoisyLIF):  # type: ignore[misc, override]
    pass


class _LearnsAlpha:
    """Mixin: alpha is `unclamped`, clamped to [0, 1] as in snnTorch, where it is learnt."""

    unclamped: nn.Parameter

    @property
    def alpha(self) -> Tensor:
        return self.unclamped.clamp(0, 1)

    @alpha.setter
    def alpha(self, value: nn.Parameter) -> None:
        self.unclamped = value


class _SynapticOfAlpha(_LearnsAlpha, Synaptic):  # type: ignore[misc]
    pass


@dataclasses.dataclass
class _Fired:
    """What a layer returned as `mem`, and the spikes that it fired, which `mem` does not show where there is noise."""

    mem: Tensor | None  # shares the memory of what was returned; None in copies
    u: Tensor  # the values at that time
    spikes: Tensor


class _Stepped(Adapter):
    """What the kinds of layers share."""

    mem: Tensor
    of_library = (
        "alpha", "beta", "threshold", "spike_grad", "surrogate_disable", "inhibition", "reset_mechanism", "state_quant",
        "graded_spikes_factor", "recurrent", "V",
    )  # fmt: skip
    other: str | None = None  # the state beside `mem`
    around: type | None = None  # the class that must be around the neuron with the potential

    def __init__(
        self, neuron: SpikingNeuron, init_hidden: bool = False, output: bool = False, reset_delay: bool = True
    ) -> None:
        nn.Module.__init__(self)  # snnTorch's class would hold settings of its own
        self.neuron = neuron
        if self.around is not None and not isinstance(neuron, self.around):
            raise ArgumentError(f"this layer takes a {self.around.__name__}, not a {type(neuron).__name__}")
        check_state(neuron if self.around is None else self._potential)
        if isinstance(self._potential.v_leak, nn.Parameter) or bool(torch.as_tensor(self._potential.v_leak != 0).any()):
            raise ArgumentError("snnTorch's layers start from a potential of 0: the neuron must have v_leak=0")
        self.init_hidden, self.output, self.reset_delay = init_hidden, output, reset_delay
        self._fired: deque[_Fired] = deque(maxlen=2)  # a layer may be called in turn with two states
        self._init_mem()
        theirs.SpikingNeuron.instances.append(self)  # which snnTorch resets

    def start_from(self, state: dict[str, Tensor]) -> None:
        self._fired.clear()
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def _potential(self) -> Any:
        """The neuron that has the potential."""
        return getattr(self.neuron, "neuron", self.neuron)

    def _advance(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One step: sets `mem`, and returns the spikes and the next state beside `mem`, if there is one."""
        self._check_call(x)
        v = self._after_reset(_fitting(self.mem, x))
        state = v if other is None else (_fitting(other, x), v)
        spikes, state, u = self.neuron.run(x.unsqueeze(0), state, potentials=True)
        spikes, u = spikes.squeeze(0), u.squeeze(0)
        other, v = (None, state) if other is None else (state[0].clone(), state[1])
        self.mem = u.clone() if self.reset_delay else v.clone()  # no views, which snnTorch cannot detach
        neuron = self._potential
        if self.reset_delay and neuron.reset != "none" and (hasattr(neuron, "mode") or not neuron.detach_reset):
            fired = spikes.detach() if neuron.detach_reset else spikes
            self._fired.append(_Fired(self.mem.detach(), u.detach(), fired.clone()))
        return spikes, other

    def _after_reset(self, mem: Tensor) -> Tensor:
        """The potential after the reset, from what snnTorch returns: with `reset_delay`, that before the reset."""
        neuron = self._potential
        always_fires = not hasattr(neuron, "mode")  # above the threshold; with noise, it need not
        if not self.reset_delay and neuron.reset == "zero" and always_fires:
            self._refuse_above(mem)
        if not self.reset_delay or neuron.reset == "none":
            return mem
        spikes = self._spikes_of(mem)
        if spikes is None:
            if getattr(neuron, "mode", "noiseless") != "noiseless" and bool(mem.any()):
                raise ArgumentError(
                    "with noise, `mem` does not say which neurons fired: pass what one of the last two calls of the "
                    "layer returned, or zeros"
                )
            spikes = mem > neuron.threshold
        spikes = spikes if mem.requires_grad else spikes.detach()
        return after_reset(neuron, mem.unsqueeze(0), spikes.unsqueeze(0)).squeeze(0)

    def _refuse_above(self, mem: Tensor) -> None:
        neuron = self._potential
        if bool(((mem > neuron.threshold) & (mem > neuron.v_reset)).any()):
            raise ArgumentError(
                "without reset_delay, `mem` cannot be above the threshold: it is after the reset, or where it starts"
            )

    def _spikes_of(self, mem: Tensor) -> Tensor | None:
        """The spikes fired when `mem`, a copy of it, or a tensor that begins with it was returned; None if unknown."""
        # By its values, as `mem.data.zero_()` would go unnoticed.
        same = []
        for fired in reversed(self._fired):
            u = fired.u[: len(mem)].to(mem)
            if torch.equal(u, mem) or torch.equal(u.nan_to_num(), mem.nan_to_num()):
                same.append(fired.spikes[: len(mem)])
                if fired.mem is not None and fired.mem.data_ptr() == mem.data_ptr():
                    return same[-1]
        if not same or any(not torch.equal(one, same[0]) for one in same) or not mem.any():  # zeros: a new start
            return None
        return same[0]

    def __getstate__(self) -> dict[str, Any]:
        copies = [_Fired(None, fired.u, fired.spikes.detach()) for fired in self._fired]
        return {**vars(self), "_fired": deque(copies, maxlen=2)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        theirs.SpikingNeuron.instances.append(self)  # a copy, too, is reset

    def _step(self, x: Tensor, mem: Tensor | None, other: Tensor | None = None) -> Tensor:
        """One step, from the states that are given, or else kept."""
        for name, state in {"mem": mem, self.other: other}.items():
            if state is not None and self.init_hidden:
                raise TypeError("states cannot be passed as arguments while `init_hidden=True`")
            if state is not None:
                setattr(self, str(name), state)
        if self.other is None:
            return self._advance(x, None)[0]
        spikes, state = self._advance(x, getattr(self, self.other))
        setattr(self, self.other, state)
        return spikes

    def extra_repr(self) -> str:
        return f"init_hidden={self.init_hidden}, output={self.output}, reset_delay={self.reset_delay}"


def _fitting(state: Tensor, x: Tensor) -> Tensor:
    """A state, or zeros where the input has another shape."""
    return state if state.shape == x.shape else torch.zeros_like(x)


class Layer(_Stepped, theirs.Leaky):
    """A neuron of this package that is called as a `Leaky`: one step at a time, `init_hidden`, `utils.reset`.

    `mem` is what it is in snnTorch: with `reset_delay`, the potential before the reset, which the next step makes up
    for.

    Args:
        neuron: any `SpikingNeuron` whose state is a potential, and whose v_leak is 0, from which snnTorch starts.
        init_hidden, output, reset_delay: as in snnTorch.
    """

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        spikes = self._step(input_, mem)
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)


class SynapticLayer(_Stepped, theirs.Synaptic):
    """A `models.Synaptic` that is called as snnTorch's `Synaptic`; see `Layer`."""

    syn: Tensor
    other = "syn"
    around = Synaptic

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        spikes = self._step(input_, mem, syn)
        return spikes if self.init_hidden and not self.output else (spikes, self.syn, self.mem)


class RecurrentLayer(_Stepped, theirs.RLeaky):
    """A `models.Recurrent` that is called as snnTorch's `RLeaky`; see `Layer`."""

    spk: Tensor
    other = "spk"
    around = Recurrent

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        spikes = self._step(input_, mem, spk)
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)


def from_leaky(leaky: Any, noise: NoiseLaw | None = None, placement: str = "both") -> nn.Module:
    """The same neuron with noise, from a `Leaky`, `Synaptic` or `RLeaky`, to be called as that is.

    Inside `models.noiseless` it fires as `leaky` does. Learnt values start from those of `leaky`.

    Args:
        noise: None makes a deterministic neuron, with the surrogate gradient of `leaky`.

    Raises:
        NotMapped: if no neuron of this package is exactly the same.
    """
    if type(leaky) not in (theirs.Leaky, theirs.Synaptic, theirs.RLeaky):
        raise NotMapped(f"{type(leaky).__name__} is not one of Leaky, Synaptic, RLeaky")
    _refuse(leaky)
    threshold, decay = _value("threshold", leaky.threshold), _clamped("beta", leaky.beta)
    settings: dict[str, Any] = dict(threshold=threshold, decay=decay, reset=leaky.reset_mechanism)
    kinds: Any = (LIF, NoisyLIF)
    if isinstance(decay, nn.Parameter):
        kinds = (_LIFOfBeta, _NoisyLIFOfBeta)
    elif leaky.reset_mechanism == "subtract":
        kinds = (_LIF, _NoisyLIF)
    neuron: Any = build(leaky.spike_grad, noise, placement, kinds, detach_reset=leaky.reset_delay, **settings)
    if isinstance(decay, nn.Parameter):
        neuron.beta = learnt_like(leaky.beta)
    layer: Any = Layer
    if type(leaky) is theirs.Synaptic:
        alpha = _clamped("alpha", leaky.alpha)
        is_learnt = isinstance(alpha, nn.Parameter)
        neuron, layer = (_SynapticOfAlpha if is_learnt else Synaptic)(alpha, neuron), SynapticLayer
        if is_learnt:
            neuron.unclamped = learnt_like(leaky.alpha)
    elif type(leaky) is theirs.RLeaky:
        neuron, layer = Recurrent(neuron, copy.deepcopy(leaky.recurrent)), RecurrentLayer
    made = layer(neuron, leaky.init_hidden, leaky.output, leaky.reset_delay)
    return made.to(device_of(leaky)).train(leaky.training)


def _refuse(leaky: Any) -> None:
    """Raise NotMapped for settings whose dynamics no neuron of this package has."""
    reset, delay, factor = leaky.reset_mechanism, leaky.reset_delay, leaky.graded_spikes_factor
    parameters = [value for name, value in leaky.named_parameters(remove_duplicate=False) if name != "V"]
    reasons = {
        "inhibition lets one neuron of the layer fire": leaky.inhibition,
        "its state is quantised": leaky.state_quant,
        "one parameter has several meanings in it": len(set(parameters)) < len(parameters),  # V: that of `recurrent`
        "its spikes are graded": factor.requires_grad or bool((factor != 1).any()),
        "its reset_mechanism was changed after it was made": leaky.state_function.__name__ != _FUNCTIONS[reset],
        "without reset_delay, it subtracts again where the potential is over twice the threshold": (
            reset == "subtract" and not delay
        ),
        "with a threshold below 0 and no reset_delay, it does not reset at every spike": (
            reset == "zero" and not delay and bool((leaky.threshold < 0).any())
        ),
        "its reset discards the input of the next step, too": (
            reset == "zero" and delay and type(leaky) is not theirs.Leaky
        ),
        "its threshold is infinite, and cannot be subtracted": (
            reset == "subtract" and bool(leaky.threshold.isinf().any())
        ),
        "with a beta of 0, its reset is all that is left of a spike": (
            reset == "subtract" and bool((leaky.beta <= 0).any())
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise NotMapped(reason)


_FUNCTIONS = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}  # by reset_mechanism


def _value(name: str, value: Tensor) -> Any:
    plain = value_of(name, value)
    return learnt_like(value) if isinstance(value, nn.Parameter) else plain


def _clamped(name: str, value: Tensor) -> Any:
    """A decay, clamped to [0, 1] as in snnTorch."""
    if not isinstance(value, nn.Parameter):
        return _value(name, value.clamp(0, 1))
    value_of(name, value)  # an error for other shapes
    return nn.Parameter(value.detach().clamp(0, 1), value.requires_grad)


def is_neuron(module: nn.Module) -> bool:
    """Whether `convert` should replace this module, or say why not."""
    return isinstance(module, theirs.SpikingNeuron | theirs.LeakyParallel) and not isinstance(module, _Stepped)


from_neuron = from_leaky


def leave(module: nn.Module) -> None:
    """Let `utils.reset` know a neuron of a copied network."""
    theirs.SpikingNeuron.instances.append(module)


def reset(net: nn.Module) -> None:
    """Start the neurons of a copy from rest."""
    for module in net.modules():
        if isinstance(module, theirs.SpikingNeuron) and hasattr(module, "reset_mem"):
            module.reset_mem()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """What a neuron keeps."""
    return {name: getattr(module, name) for name in ("syn", "spk", "mem") if hasattr(module, name)}
