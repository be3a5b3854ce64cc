"""Neurons around a neuron: with a filter of the current, with recurrent connections, with an adaptive threshold."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import functional, parameters
from .base import SpikingNeuron
from .kernels.common import arithmetic_dtype, in_batches, refuse_graph_of_batches, stacked, step_of
from .neurons import ERF, LIF
from .noise import NoiseLaw
from .settings import NAMES

RATE_OF_SLOW_ADAPTATION = math.exp(-1 / 700)  # per millisecond: a time constant of 700 ms


def _of_part(name: str) -> Any:
    """A property that is that of the neuron inside."""

    def get(self: Any) -> Any:
        return getattr(self.neuron, name)

    def put(self: Any, value: Any) -> None:
        setattr(self.neuron, name, value)

    return property(get, put)


class _Around(SpikingNeuron):
    """A neuron around another one: only the whole is seen by monitors, attacks and streams.

    Noise, gradient and mode are those of the part, and its settings are set there. There is no `decay`, so that
    membrane noise as a perturbation is refused: added to the input current, it would not be noise of the potential.
    """

    knows_contexts = True  # the part does
    is_noisy = _of_part("is_noisy")
    mode = _of_part("mode")
    backend = _of_part("backend")
    gradient_law = _of_part("gradient_law")
    scale_noise = _of_part("scale_noise")

    def __init__(self, neuron: SpikingNeuron) -> None:
        nn.Module.__init__(self)
        if not isinstance(neuron, nn.Module) or not getattr(neuron, "emits_spikes", False):
            raise TypeError(f"expected a spiking neuron, got {neuron!r}")
        self.neuron: Any = neuron
        self._given = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES or name in ("scale", "detach_reset"):
            raise AttributeError(f"{name} is a setting of the neuron inside this {type(self).__name__}: set it there")
        super().__setattr__(name, value)

    def set_gradient(self, law: NoiseLaw, detach_reset: bool | None = None) -> None:
        self.neuron.set_gradient(law, detach_reset)

    def as_mean_field(self) -> "_Around":
        """A copy that outputs its firing probability, wherever it is called."""
        whole = copy.deepcopy(self)
        whole.neuron = whole.neuron.as_mean_field()
        return whole

    def reset_parameters(self) -> None:
        """Start again from the values that were given as tensors, here and in the neuron inside."""
        super().reset_parameters()
        self.neuron.reset_parameters()

    def _settings(self) -> dict[str, Any]:
        """What the neuron inside does not save itself."""
        return {name: vars(self)[name] for name in ("alpha", "beta", "rho") if name in vars(self)}

    def extra_repr(self) -> str:
        values = {name: getattr(self, name, None) for name in ("alpha", "beta", "rho")}
        return ", ".join(f"{name}={parameters.shown(value)}" for name, value in values.items() if value is not None)


class Synaptic(_Around):
    """A neuron that gets the exponentially filtered current i[t] = alpha * i[t-1] + x[t], as of a synapse.

    Args:
        alpha: factor of the current per step, in [0, 1]: a number, a tensor of one value, or one for each channel; an
            nn.Parameter is learnt.
        neuron: the neuron inside. With `decay_input`, it scales i[t].

    Shape:
        x [T, B, ...] -> spikes [T, B, ...]; the state is (i, the state of the neuron).
    """

    alpha: float | Tensor

    def __init__(self, alpha: float | Tensor, neuron: SpikingNeuron) -> None:
        super().__init__(neuron)
        self._hold("alpha", alpha)

    def run(self, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False) -> tuple[Any, ...]:
        start, inside = _parted(state, x)
        current = exponential_filter(x, self.alpha, start, self.backend)
        spikes, inside, *more = self.neuron.run(current, inside, keep_state, potentials)
        if not keep_state:
            return spikes.to(x.dtype), None, *more
        if len(current):
            start = current[-1]
        elif start is None:
            start = current.new_zeros(current.shape[1:])
        return spikes.to(x.dtype), (start, inside), *more


class Recurrent(_Around):
    """A neuron with recurrent connections: at each step it gets x[t] + linear(spikes[t-1]); spikes[-1] = 0.

    Args:
        neuron: the neuron inside.
        linear: a stateless layer from spikes [B, ...] to currents of the same shape, such as nn.Linear(N, N).

    Shape:
        x [T, B, ...] -> spikes [T, B, ...]; the state is (the last spikes, the state of the neuron).
    """

    def __init__(self, neuron: SpikingNeuron, linear: nn.Module) -> None:
        super().__init__(neuron)
        self.linear = linear

    def run(self, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False) -> tuple[Any, ...]:
        spike, inside = _parted(state, x)
        if spike is None:
            spike = torch.zeros_like(step_of(x))
        weights = next((one for one in self.linear.parameters() if one.is_floating_point()), x)
        spikes, found = [], []
        for x_t in x:
            fed_back = self.linear(spike.to(weights.dtype))
            if fed_back.shape != x_t.shape:
                raise parameters.ArgumentError(
                    f"the recurrent layer gives currents {list(fed_back.shape)} for inputs {list(x_t.shape)}"
                )
            current = x_t + fed_back
            at_once, inside, *more = self.neuron.run(current.unsqueeze(0), inside, True, potentials)
            spike = at_once.squeeze(0).to(x.dtype)
            spikes.append(spike)
            found += [u.squeeze(0) for u in more]
        state = (spike, inside) if keep_state else None
        return _outputs(x, spikes, state, found, potentials)


class AdaptiveLIF(_Around):
    r"""A neuron whose threshold rises with its own spikes.

    .. math::
        \theta_t = \theta + \beta a_t, \qquad a_{t+1} = \rho a_t + (1 - \rho) s_t

    The reset "subtract" takes off the present threshold, if the neuron has no `reset_by`.

    Args:
        neuron: the neuron inside, whose threshold is theta. By default, a `LIF` that subtracts.
        beta: how far the threshold rises: a number, a tensor of one value, or one for each channel; an nn.Parameter is
            learnt.
        rho: factor of the adaptation per step, in [0, 1]; given as `beta` is.

    Shape:
        x [T, B, ...] -> spikes [T, B, ...]; the state is (a, the state of the neuron).

    Note:
        Bellec, Salaj, Subramoney, Legenstein and Maass, "Long short-term memory and learning-to-learn in networks of
        spiking neurons", NeurIPS 2018: beta = 1.8, and a time constant of 700 steps for sequential MNIST.
    """

    beta: float | Tensor
    rho: float | Tensor

    def __init__(
        self,
        neuron: SpikingNeuron | None = None,
        beta: float | Tensor = 1.8,
        rho: float | Tensor = RATE_OF_SLOW_ADAPTATION,
    ) -> None:
        super().__init__(LIF(reset="subtract") if neuron is None else neuron)
        if isinstance(neuron, _Around):
            name = type(neuron).__name__
            raise TypeError(f"a {name} has no threshold of its own: put the AdaptiveLIF inside the {name}")
        self._hold("beta", beta)
        self._hold("rho", rho)

    def run(self, x: Tensor, state: Any = None, keep_state: bool = True, potentials: bool = False) -> tuple[Any, ...]:
        a, v = _parted(state, x)
        neuron, dtype = self.neuron, arithmetic_dtype(x.dtype)
        beta, rho = _over(x, "beta", self.beta), _over(x, "rho", self.rho)
        gain = 1 - _over(x, "decay", neuron.decay) if neuron.decay_input else 1
        adds_threshold = neuron.reset == "none" or neuron.reset_by is not None
        a = torch.zeros_like(step_of(x), dtype=dtype) if a is None else a
        spikes, found = [], []
        for x_t in x.to(dtype):
            # The neuron runs below its own potential by the rise of the threshold.
            rise = beta * a
            spike, v, *more = neuron.run((x_t - rise / gain).unsqueeze(0), v, True, potentials)
            spike = spike.squeeze(0)
            by_reset = spike.detach() if neuron.detach_reset else spike  # which has put the potential where it belongs
            v = v + (rise if adds_threshold else rise * (1 - by_reset))
            a = rho * a + (1 - rho) * spike
            spikes.append(spike.to(x.dtype))
            found += [u.squeeze(0) + rise for u in more]
        state = (a, v) if keep_state else None
        return _outputs(x, spikes, state, found, potentials)


def exponential_filter(x: Tensor, alpha: float | Tensor, start: Tensor | None = None, backend: str = "auto") -> Tensor:
    """i[t] = alpha * i[t-1] + x[t], with i[-1] = start, or 0: x [T, B, ...] -> [T, B, ...] in float32, or float64.

    It is a neuron that never fires; so is its gradient, backwards in time.
    """
    functional.check_layer(x)
    x = x.to(arithmetic_dtype(x.dtype))
    by_channel = _over(x, "alpha", alpha)
    is_direct = backend in ("auto", "eager", "fused") and not torch.compiler.is_compiling()
    if is_direct and not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0:
        return _Filter.apply(x, by_channel, start, backend)
    return _accumulated(x, by_channel, start, backend)


def _accumulated(x: Tensor, alpha: float | Tensor, start: Tensor | None, backend: str) -> Tensor:
    decay = alpha.flatten() if isinstance(alpha, Tensor) and alpha.dim() > 0 else alpha
    settings: dict[str, Any] = dict(threshold=math.inf, decay=decay, reset="none", state=start, backend=backend)
    current: Tensor = functional.lif(x, ERF, keep_state=False, potentials=True, **settings)[2]
    return current


class _Filter(torch.autograd.Function):
    """`exponential_filter`, with a gradient that is one too, instead of a graph of T steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float | Tensor, start: Tensor | None, backend: str) -> Tensor:
        current = _accumulated(x, alpha, start, backend)
        ctx.alpha, ctx.backend = None if isinstance(alpha, Tensor) else alpha, backend
        ctx.save_for_backward(alpha if isinstance(alpha, Tensor) else None, start, current)
        return current

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        alpha, start, current = ctx.saved_tensors
        factor = ctx.alpha if alpha is None else alpha
        if in_batches((grad, None)):
            if torch.is_grad_enabled():
                refuse_graph_of_batches((grad, None))
            grad_x = _filtered_back(grad, factor)
        else:
            grad_x = _Filter.apply(grad.flip(0), factor, None, ctx.backend).flip(0)
        grad_start = grad_alpha = None
        if ctx.needs_input_grad[1]:
            before = torch.cat([torch.zeros_like(current[:1]) if start is None else start.unsqueeze(0), current[:-1]])
            grad_alpha = (grad_x * before[: len(grad_x)]).sum_to_size(alpha.shape)
        if start is not None and ctx.needs_input_grad[2]:
            grad_start = factor * grad_x[0] if len(grad_x) else torch.zeros_like(start)
        return grad_x, grad_alpha, grad_start, None


def _outputs(x: Tensor, spikes: list[Tensor], state: Any, found: list[Tensor], potentials: bool) -> tuple[Any, ...]:
    """The results of `run`, of spikes and potentials [B, ...] of each step."""
    whole = stacked(spikes, step_of(x), x.dtype)
    return (whole, state, stacked(found, step_of(x), arithmetic_dtype(x.dtype))) if potentials else (whole, state)


def _filtered_back(grad: Tensor, alpha: float | Tensor) -> Tensor:
    """The gradient of x, step by step."""
    steps = [grad[-1]]
    for t in reversed(range(grad.shape[0] - 1)):
        steps.append(grad[t] + alpha * steps[-1])
    return torch.stack(steps[::-1])


def _parted(state: Any, x: Tensor) -> tuple[Any, Any]:
    """The state of a whole, and that of the neuron inside; both None for rest."""
    functional.check_layer(x)
    if state is None:
        return None, None
    if not isinstance(state, tuple) or len(state) != 2:
        raise parameters.ArgumentError("the state must be a tuple of two, the second being that of the neuron inside")
    return functional.checked_state(x, state[0]), state[1]


def _over(x: Tensor, name: str, value: float | Tensor) -> float | Tensor:
    """A value as it broadcasts over x [T, B, C, ...]."""
    if isinstance(value, Tensor) and x.device.type == "cpu":  # elsewhere, this would have to wait for the device
        parameters.check_range(name, value)
    return functional.value_over(name, value, x)
