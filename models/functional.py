"""Spiking neurons as functions: the dynamics, the argument checks, and the choice of kernel.

For t = 1..T and each neuron on its own, with `u` the membrane potential::

    u <- decay * u + x[t] - eps1               eps1 ~ law   membrane ("diffusive") noise
    spike[t] = [u - threshold > eps2]          eps2 ~ law   threshold ("escape") noise
    u <- u * (1 - spike[t])                    reset="zero" ("hard"); "subtract" ("soft"): u - threshold * spike[t];
                                               "none": u

A reset to `v_reset`, or by `reset_by`, and a rest potential `v_leak`, to which u leaks, generalise this::

    u <- v_leak + decay * (u - v_leak) + x[t] - eps1
    u <- u + (v_reset - u) * spike[t]          or u - reset_by * spike[t]

so that P(spike | u) = F(u - threshold), F being the distribution function of the law. One draw decides both the spike
and the reset. The backward pass takes d spike / d u = F'(u - threshold), the density of the law at the (noisy)
potential, and flows through the reset as well. An argument out of range is a ValueError or TypeError.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import parameters
from .kernels import eager, fused, normed, traceable
from .kernels.common import RESETS, Neuron, arithmetic_dtype, check_values, step_of
from .kernels.eager import law_of
from .kernels.normed import Before
from .kernels.potentials import before_reset
from .noise import NoiseLaw
from .parameters import ArgumentError

PLACEMENTS = ("both", "escape", "membrane")
MODES = ("noisy", "noiseless", "mean_field")
LEARNT_SCALE_AND_SURROGATE = "a learnt scale takes its gradient from the noise's own density: leave out the surrogate"
SET_BY_CONSTRUCTOR = {"scale", "loc", "_complete"}  # of a law; of these, only the scale may be learnt
LAW_ATTRIBUTES = ("cdf", "pdf", "icdf", "sample", "widened", "scale", "loc")
Kernel = Callable[[Tensor, Tensor | None, Neuron, bool, bool], tuple[Tensor, Tensor, Tensor]]
KERNELS: dict[str, Kernel] = {
    "eager": eager.lif_sequence,
    "fused": fused.lif_sequence,
    "plain": eager.plain_sequence,
    "traceable": traceable.lif_sequence,
}


def noisy_lif(
    x: Tensor,
    noise: NoiseLaw,
    *,
    threshold: float | Tensor = 1.0,
    decay: float | Tensor = 0.5,
    placement: str = "both",
    reset: str = "zero",
    detach_reset: bool = False,
    decay_input: bool = False,
    state: Tensor | None = None,
    scale: Tensor | None = None,
    surrogate: NoiseLaw | None = None,
    mode: str = "noisy",
    backend: str = "auto",
    keep_state: bool = True,
    potentials: bool = False,
    reset_by: float | Tensor | None = None,
    v_reset: float | Tensor = 0.0,
    v_leak: float | Tensor = 0.0,
    before: Before | None = None,
) -> tuple[Any, ...]:
    """Noisy leaky integrate-and-fire neurons over a sequence x of currents; the module's docstring has the equations.

    Threshold, decay, scale, reset_by, v_reset and v_leak may be tensors with one value, or one per channel ([C] for
    x [T, B, C, ...]), and receive gradients. A step of an optimiser may take them out of range: clamp them afterwards.
    On the CPU, a value out of range is a ValueError at the next call. Other devices do not check: a scale that is not
    positive makes the results NaN; other values are used as they are.

    Args:
        noise: the `NoiseLaw` of eps1 and eps2; its density is the gradient.
        threshold: firing threshold, in the units of the potential. Neurons with an infinite one never fire: they
            accumulate.
        decay: factor of the potential per step, in [0, 1]. The command line's tau is 1 / decay; SpikingJelly's tau is
            1 / (1 - decay); snnTorch's beta is decay.
        placement: "both" noises (the spike's marginal noise is then wider than the law), "escape" (threshold noise
            alone) or "membrane" (membrane noise alone: fires where u > threshold).
        reset: "zero" (to `v_reset`), "subtract" (by `reset_by`) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].
        state: membrane potential before the first step; None means `v_leak`, at rest.
        scale: a tensor that replaces the scale of `noise`.
        surrogate: a law whose density is the gradient instead; the mean field, whose gradient is exact, ignores it. Its
            scale is not learnt.
        mode: "noisy"; "noiseless" fires where u > threshold; "mean_field" replaces spikes by their probabilities
            F(u - threshold), in the reset too.
        backend: "eager" (any law and device; torch.compile unrolls its loop and recompiles for each T), "fused"
            (compiled; the laws of this package), "plain" (operations that `torch.func` and forward mode differentiate),
            "traceable" (for exporters, see `models.deploy`; spikes have no gradient) or "auto": plain under
            `torch.func` and in forward mode, else fused if possible, else eager.
        keep_state: if false, the second result is None, and need not be computed.
        potentials: if true, the third result is the potentials u before the reset, which are compared with the
            threshold. They have a gradient.
        reset_by: what the reset "subtract" takes off; None means the threshold.
        v_reset: the potential after the reset "zero".
        v_leak: the rest potential.
        before: what makes the currents x, of which `normed.serves` must be true, to be one operation with the neurons
            where these run on a fused kernel; x is then `before.shown()`.

    Shape:
        x [T, B, ...], state [B, ...] -> spikes [T, B, ...] in the dtype of `x`, and the potential after the last step
        [B, ...] in float32 (float64 for float64 input), as all arithmetic is; and the potentials [T, B, ...], the same.

    Note:
        The gradient of `scale` is that of the firing probability: through F(u - threshold) for threshold noise, and
        through eps1 = loc + scale * (standard draw) for membrane noise. Ma, Yan and Tang, Patterns 4 (2023) 100831,
        give the model and the learning rule.
    """
    check_choice("placement", placement, PLACEMENTS)
    check_choice("mode", mode, MODES)
    check_switch("detach_reset", detach_reset)
    check_switch("decay_input", decay_input)
    check_layer(x)
    law, scale_now = _scaled_law("noise", noise, scale, x)
    surrogate_scale = None
    if surrogate is not None:
        surrogate, surrogate_scale = _scaled_surrogate(surrogate, scale_now, x)
        if mode == "mean_field":
            surrogate = surrogate_scale = None
    values = _values(x, threshold, decay, reset, reset_by, v_reset, v_leak)
    neuron = Neuron(
        law=law,
        scale=scale_now,
        decay=values.decay,
        threshold=values.threshold,
        reset=reset,
        detach_reset=detach_reset,
        decay_input=decay_input,
        membrane_noise=mode == "noisy" and placement != "escape",
        threshold_noise=mode == "noisy" and placement != "membrane",
        mean_field=mode == "mean_field",
        surrogate=surrogate,
        surrogate_scale=surrogate_scale,
        reset_value=values.reset,
    )
    kernel = _choose_kernel(backend, x, neuron)
    if kernel is KERNELS["fused"] and not potentials:
        before = before or _where_less_is_kept(x)
    elif before is not None:
        x, before = before.currents(), None
    state, rest = checked_state(x, state), values.rest
    if rest is not None and state is not None:
        state = state - rest
    if before is not None:
        spikes, last = normed.lif_sequence(before, state, neuron, keep_state)
    else:
        spikes, last, u = kernel(x, state, neuron, keep_state, potentials)
    kept = None
    if keep_state:
        kept = last if rest is None else last + rest
    if not potentials:
        return spikes, kept
    u = before_reset(x, state, spikes, u, neuron)
    return spikes, kept, u if rest is None else u + rest


def lif(x: Tensor, surrogate: NoiseLaw, *, mean_field: bool = False, **settings: Any) -> tuple[Any, ...]:
    """Deterministic neurons: they fire where u > threshold, strictly, and the density of `surrogate` is d spike / d u.

    Args:
        mean_field: if true, spikes are replaced by F(u - threshold), F being the distribution function of `surrogate`.
        settings: threshold, decay, reset, detach_reset, decay_input, state, backend, keep_state, potentials, reset_by,
            v_reset and v_leak, as for `noisy_lif`.
    """
    check_surrogate(surrogate)
    return noisy_lif(x, surrogate, mode="mean_field" if mean_field else "noiseless", **settings)


def firing_probability(
    x: Tensor,
    spikes: Tensor,
    noise: NoiseLaw,
    *,
    threshold: float | Tensor = 1.0,
    decay: float | Tensor = 0.5,
    reset: str = "zero",
    decay_input: bool = False,
    state: Tensor | None = None,
    scale: Tensor | None = None,
    reset_by: float | Tensor | None = None,
    v_reset: float | Tensor = 0.0,
    v_leak: float | Tensor = 0.0,
) -> Tensor:
    r"""Probability of a spike at each step, given the earlier spikes, for neurons with threshold noise alone.

    .. math::
        P(s_t = 1 \mid s_1, \ldots, s_{t-1}) = F(u_t - \theta)

    The potential follows from the input and is reset after each given spike. The likelihood of a recorded train is the
    product over time of P where it has a spike and 1 - P where it has none; its gradient is exact.

    Args:
        x: input current.
        spikes: the given spikes, 0 or 1, which need not be the neuron's own.
        noise: the `NoiseLaw` of the threshold, with distribution function F.
        threshold, decay, reset, decay_input, state, scale, reset_by, v_reset, v_leak: see `noisy_lif`.

    Shape:
        x and spikes [T, B, ...], state [B, ...] -> [T, B, ...] in float32 (float64 for float64 input).

    Note:
        Pillow, Paninski and Simoncelli, "Maximum likelihood estimation of a stochastic integrate-and-fire neural
        encoding model", Neural Computation 16, 2004; with escape noise, Gerstner et al., "Neuronal dynamics", 2014,
        section 10.2. Plain PyTorch: differentiable as often as the law is.
    """
    check_switch("decay_input", decay_input)
    check_layer(x)
    _check_shape("spikes", spikes, x.shape, "as the input current")
    law, scale_now = _scaled_law("noise", noise, scale, x)
    values = _values(x, threshold, decay, reset, reset_by, v_reset, v_leak)
    neuron = Neuron(law, scale_now, values.decay, values.threshold, reset=reset, decay_input=decay_input)
    neuron.reset_value = values.reset
    check_values(neuron, x)
    x = x.to(arithmetic_dtype(x.dtype))
    spikes = spikes.to(x.dtype)
    start = checked_state(x, state)
    if values.rest is not None and start is not None:
        start = start - values.rest
    v = torch.zeros_like(step_of(x)) if start is None else start
    z = []
    for current, fired in zip(x, spikes):
        u = neuron.charged(v, current)
        z.append(neuron.above_threshold(u))
        v = neuron.after_reset(u, fired)
    return law_of(neuron).cdf(torch.stack(z) if z else x.clone())


def check_law(name: str, law: object) -> None:
    """Raise TypeError unless `law` has the attributes of a `NoiseLaw`, whichever copy of this package it comes from."""
    if isinstance(law, NoiseLaw):  # the common case, and faster
        if not torch.compiler.is_compiling():
            _refuse_unlearnt(name, law)
        return
    missing = [attribute for attribute in LAW_ATTRIBUTES if not hasattr(law, attribute)]
    if missing or isinstance(law, type):
        reason = f"which lacks {', '.join(missing)}" if missing else "a class, not an instance of it"
        raise TypeError(f"{name} must be a NoiseLaw such as Gaussian(0.3), got {law!r}, {reason}")


def _refuse_unlearnt(name: str, law: NoiseLaw) -> None:
    """Raise ValueError for a law with parameters besides its scale, TypeError for one that is a module."""
    if isinstance(law, nn.Module):
        raise TypeError(f"{name} must be a NoiseLaw that is not an nn.Module, got a {type(law).__name__}")
    if vars(law).keys() <= SET_BY_CONSTRUCTOR:  # the common case, and faster
        return
    learns_scale = isinstance(law.scale, Tensor) and law.scale.requires_grad
    for attribute, value in vars(law).items():
        if isinstance(value, NoiseLaw):  # of Rescaled
            _refuse_unlearnt(name, value)
        if not isinstance(value, Tensor) or not value.requires_grad or attribute == "scale":
            continue
        is_computed = isinstance(getattr(type(law), attribute, None), functools.cached_property)
        if not (is_computed and learns_scale):
            raise ArgumentError(f"{attribute} of the {name} would not be learnt, as only the scale of a law is")


def check_surrogate(law: object) -> None:
    """Raise TypeError unless this is a law, ValueError if its scale is to be learnt."""
    check_law("surrogate", law)
    if isinstance(law.scale, Tensor) and law.scale.requires_grad:  # type: ignore[attr-defined]
        raise ArgumentError("the scale of a surrogate has no gradient, and would not be learnt: give a number")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`, naming them."""
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """Raise ValueError unless `value` is true or false itself: as a condition, a text such as "no" is true."""
    if value not in (True, False):
        raise ArgumentError(f"{name} must be True or False, got {value!r}")


def _choose_kernel(backend: str, x: Tensor, neuron: Neuron) -> Kernel:
    check_choice("backend", backend, ("auto", *KERNELS))
    if backend == "traceable":
        return KERNELS["traceable"]
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _kernel_under_transforms(backend)
    if backend == "plain":
        return KERNELS["plain"]
    law, surrogate = neuron.law, neuron.surrogate
    is_served = backend != "eager" and fused.serves(x, law, neuron.channel_bits())
    if is_served and (surrogate is None or fused.serves(x, surrogate, neuron.of_gradient().channel_bits())):
        return KERNELS["fused"]
    if backend == "fused":
        where = f"for {x.dtype} on {x.device.type} here"
        raise ArgumentError(f"no fused kernel supports {law!r} {where}: use backend='auto'")
    return KERNELS["eager"]


def _where_less_is_kept(x: Tensor) -> Before | None:
    """Keep currents, not potentials, where they are smaller, in a network that is to keep less."""
    if torch.compiler.is_compiling() or x.element_size() >= 4:
        return None
    before = Before(x)
    return before if normed.serves(before) else None


def _kernel_under_transforms(backend: str) -> Kernel:
    if backend in ("eager", "fused"):
        raise ArgumentError(f"backend={backend!r} does not run under torch.func or forward mode; 'auto' and 'plain' do")
    # Compiled, a spike would lose its density. After a graph break, the compiler still takes the functions that are
    # called from here, and only its callback shows that.
    if torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
        raise RuntimeError("torch.func and forward mode of spiking neurons cannot be compiled: leave out torch.compile")
    return KERNELS["plain"]


def _scaled_law(name: str, law: NoiseLaw, scale: float | Tensor | None, x: Tensor) -> tuple[NoiseLaw, float | Tensor]:
    """The law with a number for its scale, and the scale for the kernels: `scale` or, if None, the law's own."""
    check_law(name, law)
    if scale is not None and not isinstance(scale, Tensor):
        raise TypeError(f"scale replaces that of the law, and must be a tensor; got {scale!r}")
    if scale is None and not isinstance(law.scale, Tensor):  # the common case, and faster
        return law, law.scale
    return unscaled(name, law), value_over("scale", law.scale if scale is None else scale, x)


def _scaled_surrogate(law: NoiseLaw, noise_scale: float | Tensor, x: Tensor) -> tuple[NoiseLaw, Tensor | None]:
    """The surrogate with a number for its scale, and the tensor that replaces that number, if there is one."""
    if isinstance(noise_scale, Tensor) and noise_scale.requires_grad:
        raise ArgumentError(LEARNT_SCALE_AND_SURROGATE)
    check_surrogate(law)
    law, scale = _scaled_law("surrogate", law, None, x)
    return law, scale if isinstance(scale, Tensor) else None


def unscaled(name: str, law: NoiseLaw) -> NoiseLaw:
    """The law at scale 1 if its scale is a tensor, else as it is; TypeError if it must be rescaled and cannot be."""
    if not isinstance(law.scale, Tensor):
        return law
    if not hasattr(law, "with_scale"):
        raise TypeError(f"the scale of the {name} {law!r} must be a number, as that law has no `with_scale`")
    return law.with_scale(1.0)


def value_over(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """A threshold, a decay or a scale as kernels take it; see `Neuron`."""
    if not isinstance(value, Tensor):
        parameters.check_range(name, value)
        return value
    return parameters.over_channels(name, value, x).to(x.device, arithmetic_dtype(x.dtype))


class _Values(NamedTuple):
    """Values of neurons as kernels take them: potentials from rest on."""

    threshold: float | Tensor
    decay: float | Tensor
    reset: float | Tensor
    rest: float | Tensor | None  # None for 0


def _values(
    x: Tensor,
    threshold: float | Tensor,
    decay: float | Tensor,
    reset: str,
    reset_by: float | Tensor | None,
    v_reset: float | Tensor,
    v_leak: float | Tensor,
) -> _Values:
    check_reset(reset, reset_by, v_reset)
    decay_now, threshold_now = value_over("decay", decay, x), value_over("threshold", threshold, x)
    reset_now: float | Tensor = 0.0
    if reset == "zero":
        reset_now = value_over("v_reset", v_reset, x)
    elif reset == "subtract":
        reset_now = value_over("reset_by", threshold if reset_by is None else reset_by, x)
    if not isinstance(v_leak, Tensor) and v_leak == 0:
        return _Values(threshold_now, decay_now, reset_now, None)
    rest = value_over("v_leak", v_leak, x)
    return _Values(threshold_now - rest, decay_now, reset_now - rest if reset == "zero" else reset_now, rest)


def check_reset(reset: str, reset_by: float | Tensor | None, v_reset: float | Tensor) -> None:
    """Raise ValueError unless `reset` is known and the values that are given for it are of this reset."""
    check_choice("reset", reset, RESETS)
    if reset_by is not None and reset != "subtract":
        raise ArgumentError(f'reset_by is what reset="subtract" takes off, but reset is {reset!r}')
    if reset != "zero" and (isinstance(v_reset, Tensor) or v_reset != 0):
        raise ArgumentError(f'v_reset is where reset="zero" puts the potential, but reset is {reset!r}')


def check_layer(x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` can be an input current [T, B, ...]."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"the input current must be a floating point tensor, got {got}")
    if x.dim() < 2:
        raise ArgumentError(f"the input current must be [T, B, ...], time first; got shape {list(x.shape)}")


def _check_shape(name: str, value: Tensor, shape: torch.Size, meaning: str) -> None:
    if not isinstance(value, Tensor) or value.shape != shape:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"the {name} must be {list(shape)}, {meaning}; got {got}")


def checked_state(x: Tensor, state: Tensor | None) -> Tensor | None:
    """A state [B, ...] in the dtype of the arithmetic; ValueError unless it fits the input current."""
    if state is None:
        return None
    _check_shape("state", state, x.shape[1:], "one step of the input")
    if state.device != x.device:
        raise ArgumentError(f"the state is on {state.device}, the input current on {x.device}")
    return state.to(arithmetic_dtype(x.dtype))
