"""The CUDA kernel, in Triton: the dynamics, the random words and the draws of cpu.c.

A program takes a block of neurons through all time steps, with the potential and the noise in registers. Seeds are read
from device memory, so that a CUDA graph can capture a launch and draw fresh noise at each replay. Numbers such as the
scale are arguments, not constants of the code: a sweep over them compiles once. `TRITON_INTERPRET=1` runs the same code
on CPU tensors, for tests.

This module has the functions of `cpu.Kernel`; those of batch norm and of packed spikes are in cuda_norm.py.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import MAX_RANK, RESETS, VALUES, Affine, Gradients, Kept, Neuron, Pair, Saved
from .cuda_norm import (  # noqa: F401, for those who take this module for a kernel
    BLOCK,
    WARPS,
    at_step,
    channels_of,
    empty_bits,
    norm_backward,
    norm_gradients,
    norm_sums,
    of_channel,
    pack,
    packed,
    prepare,
    real_of,
    statistics,
    unpack,
)

# The laws that this kernel knows, and their numbers. Every choice below is between all of them.
KNOWN_LAWS = ("Gaussian", "Logistic", "Triangular", "Uniform", "Cauchy")
GAUSSIAN, LOGISTIC, TRIANGULAR, UNIFORM, CAUCHY = (tl.constexpr(number) for number in range(len(KNOWN_LAWS)))
RESET_ZERO = tl.constexpr(RESETS.index("zero"))
PI = tl.constexpr(3.14159265358979323846)


@triton.jit
def _index(at, size1, size2, stride0, stride1, stride2):
    """Row-major indices in [B, ...] of the neurons at places `at` of memory."""
    outer = at // size2
    return (outer // size1) * stride0 + (outer % size1) * stride1 + (at % size2) * stride2


@triton.jit
def _words(seed, index, neurons):
    """The two random words of each neuron: Philox 4x32-10, shared by the neurons n and n + H."""
    half = (neurons + 1) // 2
    upper = index >= half
    counter = tl.where(upper, index - half, index).to(tl.uint32)
    word0, word1, word2, word3 = tl.randint4x(seed, counter)
    return tl.where(upper, word2, word0), tl.where(upper, word3, word1)


@triton.jit
def _sin(x):
    """For |x| <= pi / 4; absolute error below 1e-7 (Cephes, sinf). `tl.sin` handles any angle but is slower."""
    s = x * x
    return ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1) * s * x + x


@triton.jit
def _cos(x):
    """For |x| <= pi / 4; absolute error below 1e-7 (polynomial: Cephes, cosf)."""
    s = x * x
    return (((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2) * s - 0.5) * s + 1.0


@triton.jit
def _draw(word, LAW: tl.constexpr):
    """A standard draw from one word, of any law but the Gaussian."""
    q = (word >> 1).to(tl.float32) * 2.0**-32 + 2.0**-33
    if LAW == LOGISTIC:
        magnitude = tl.log((1.0 - q) / q)
    elif LAW == TRIANGULAR:
        magnitude = 1.0 - tl.sqrt(2.0 * q)
    elif LAW == UNIFORM:
        magnitude = 1.0 - 2.0 * q
    else:  # 1 / tan(pi q), by the octant of the angle
        tl.static_assert(LAW == CAUCHY, "this kernel does not know the law")
        octant = tl.where(q < 0.25, q, 0.5 - q) * PI
        s = _sin(octant)
        c = _cos(octant)
        magnitude = tl.where(q < 0.25, c / s, s / c)
    return tl.where((word & 1) != 0, -magnitude, magnitude)


@triton.jit
def _noise(seed, index, neurons, scale, loc, LAW: tl.constexpr):
    """Membrane and threshold noise, float32."""
    first, second = _words(seed, index, neurons)
    if LAW == GAUSSIAN:
        radius = tl.sqrt(-2.0 * tl.log(first.to(tl.float32) * 2.0**-32 + 2.0**-33))
        radius = tl.where((second >> 31) != 0, -radius, radius)
        angle = (second << 2).to(tl.int32, bitcast=True).to(tl.float32) * (PI * 2.0**-33)
        s = _sin(angle)
        c = _cos(angle)
        swaps = ((second >> 30) & 1) != 0
        membrane = radius * tl.where(swaps, s, c)
        threshold = radius * tl.where(swaps, c, s)
    else:
        membrane = _draw(first, LAW)
        threshold = _draw(second, LAW)
    loc, scale = loc.to(tl.float32), scale.to(tl.float32)
    return loc + scale * membrane, loc + scale * threshold


@triton.jit
def _arctan(y):
    """Absolute error below 2e-7 (reduction and polynomial: Cephes, atanf)."""
    a = tl.abs(y)
    large = a > 2.414213562373095
    middle = a > 0.4142135623730950
    x = tl.where(large, -1.0 / tl.maximum(a, 1.0), tl.where(middle, (a - 1.0) / (a + 1.0), a))
    s = x * x
    p = ((8.05374449538e-2 * s - 1.38776856032e-1) * s + 1.99777106478e-1) * s - 3.33329491539e-1
    angle = tl.where(large, PI / 2, tl.where(middle, PI / 4, 0.0)) + (p * s * x + x)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _probability(z, scale, loc, LAW: tl.constexpr):
    """F(z), z = u - threshold."""
    y = (z - loc) / scale
    limited = tl.minimum(tl.maximum(y, -1.0), 1.0)
    if LAW == GAUSSIAN:
        p = 0.5 * (1.0 + tl.erf(y * 0.70710678118654752440))
    elif LAW == LOGISTIC:
        e = tl.exp(-tl.abs(y))
        p = tl.where(y > 0, 1.0, e) / (1.0 + e)
    elif LAW == TRIANGULAR:
        p = 0.5 + limited * (1.0 - 0.5 * tl.abs(limited))
    elif LAW == UNIFORM:
        p = 0.5 * (1.0 + limited)
    else:
        tl.static_assert(LAW == CAUCHY, "this kernel does not know the law")
        p = 0.5 + _arctan(y) / PI
    return p


@triton.jit
def _density(z, scale, loc, LAW: tl.constexpr):
    """F'(z), which stands for d spike / d u."""
    y = tl.abs((z - loc) / scale)
    if LAW == GAUSSIAN:
        f = 0.39894228040143267794 * tl.exp(-0.5 * y * y) / scale
    elif LAW == LOGISTIC:
        e = tl.exp(-y)
        f = e / ((1.0 + e) * (1.0 + e)) / scale
    elif LAW == TRIANGULAR:
        f = tl.where(y >= 1.0, 0.0, 1.0 - y) / scale  # written so that NaN stays NaN
    elif LAW == UNIFORM:
        f = tl.where(y > 1.0, 0.0, 0.5 + 0.0 * y) / scale
    else:
        tl.static_assert(LAW == CAUCHY, "this kernel does not know the law")
        f = 1.0 / (PI * scale * (1.0 + y * y))
    return f


@triton.jit
def _removed(u, value, RESET: tl.constexpr):
    """What the reset takes from a neuron that fires at potential u; the value of the reset is 0 for "none"."""
    return u - value if RESET == RESET_ZERO else u * 0.0 + value


@triton.jit
def _value(values, channel, number, BY_CHANNEL: tl.constexpr, REAL: tl.constexpr):
    """Threshold, decay or scale: a number, or read from device memory, by channel or one for all."""
    if values is None:
        value = tl.full((), number, REAL)
    else:
        value = tl.load(values + channel if BY_CHANNEL else values).to(REAL)
    return value


@triton.jit
def _gain(decays, decay, number, REAL: tl.constexpr):
    """1 - decay; of a number without the error of rounding it first."""
    return tl.full((), 1.0 - number, REAL) if decays is None else 1.0 - decay


@triton.jit
def _positive(scale):
    """NaN for a scale that is not positive: it is not checked here, and must not give wrong results silently."""
    return tl.where(scale > 0.0, scale, float("nan"))


@triton.jit
def _normalised(value, factors, shifts, channel, REAL: tl.constexpr):
    """As batch norm returns it, rounded to the type in which it is kept; as it is, where there is no batch norm."""
    result = value.to(REAL)
    if factors is not None:
        result = of_channel(factors, channel, REAL) * result + of_channel(shifts, channel, REAL)
        result = result.to(value.dtype).to(REAL)
    return result


@triton.jit
def _current(
    x, x_at, inside, channel, factors, shifts, residual, residual_at, residual_factors, residual_shifts,
    REAL: tl.constexpr,
):  # fmt: skip
    """The current, with the roundings of PyTorch's layers: so that spikes are those of a network that runs them."""
    given = tl.load(x + x_at, inside, 0.0)
    current = _normalised(given, factors, shifts, channel, REAL)
    if residual is not None:
        added = tl.load(residual + residual_at, inside, 0.0)
        current += _normalised(added, residual_factors, residual_shifts, channel, REAL)
        current = current.to(given.dtype).to(REAL)
    return current


@triton.jit
def _store_gradient(gradient, total, at, inside, BY_CHANNEL: tl.constexpr):
    """Store the gradient of a learnt value: per neuron if it differs between channels, else per program."""
    if BY_CHANNEL:
        tl.store(gradient + at, total, inside)
    else:
        tl.store(gradient + tl.program_id(0), tl.sum(tl.where(inside, total, 0.0), 0))


@triton.jit
def _forward(
    x, state, seeds, spikes, last, u, bits, thresholds, decays, scales, reset_values,
    factors, shifts, residual, residual_factors, residual_shifts,
    timesteps, neurons, x_stride, size1, size2, stride0, stride1, stride2, channels, channel_stride,
    threshold_number: tl.float64, decay_number: tl.float64, scale_number: tl.float64, reset_value_number: tl.float64,
    loc_number: tl.float64,
    THRESHOLD_BY_CHANNEL: tl.constexpr, DECAY_BY_CHANNEL: tl.constexpr, SCALE_BY_CHANNEL: tl.constexpr,
    RESET_VALUE_BY_CHANNEL: tl.constexpr, LAW: tl.constexpr,
    RESET: tl.constexpr, DECAY_INPUT: tl.constexpr, MEMBRANE_NOISE: tl.constexpr, THRESHOLD_NOISE: tl.constexpr,
    MEAN_FIELD: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    index = _index(at, size1, size2, stride0, stride1, stride2)
    channel = (at // channel_stride) % channels
    threshold = _value(thresholds, channel, threshold_number, THRESHOLD_BY_CHANNEL, REAL)
    decay = _value(decays, channel, decay_number, DECAY_BY_CHANNEL, REAL)
    gain = _gain(decays, decay, decay_number, REAL)
    scale = _positive(_value(scales, channel, scale_number, SCALE_BY_CHANNEL, REAL))
    loc = tl.full((), loc_number, REAL)
    value = _value(reset_values, channel, reset_value_number, RESET_VALUE_BY_CHANNEL, REAL)
    v = tl.load(state + at, inside, 0.0) if state is not None else tl.zeros((BLOCK,), REAL)
    for t in range(timesteps):
        current = _current(
            x, at_step(t, x_stride, at), inside, channel, factors, shifts,
            residual, at_step(t, neurons, at), residual_factors, residual_shifts, REAL,
        )  # fmt: skip
        u_t = v + (current - v) * gain if DECAY_INPUT else decay * v + current
        if MEMBRANE_NOISE or THRESHOLD_NOISE:
            eps_membrane, eps_threshold = _noise(tl.load(seeds + t), index, neurons, scale, loc, LAW)
        if MEMBRANE_NOISE:
            u_t -= eps_membrane
        z_t = u_t - threshold
        if MEAN_FIELD:
            fired = _probability(z_t, scale, loc, LAW)
        elif THRESHOLD_NOISE:
            fired = (z_t > eps_threshold).to(REAL)
        else:
            fired = (z_t > 0.0).to(REAL)
        tl.store(spikes + at_step(t, neurons, at), fired.to(spikes.dtype.element_ty), inside)
        if u is not None:
            tl.store(u + at_step(t, neurons, at), u_t, inside)
        if bits is not None:
            byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
            fired_bits = packed((fired > 0.0).to(tl.int32), 1, BLOCK)
            tl.store(bits + at_step(t, neurons // 8, byte), fired_bits, byte < neurons // 8)
        if MEAN_FIELD:
            v = u_t - fired * _removed(u_t, value, RESET)
        else:
            v = tl.where(fired > 0.0, value if RESET == RESET_ZERO else u_t - value, u_t)
    if last is not None:
        tl.store(last + at, v, inside)


@triton.jit
def _backward(
    x, state, seeds, spikes, u, grad_spikes, grad_last, grad_x, grad_state, thresholds, decays, scales, reset_values,
    factors, shifts, residual, residual_factors, residual_shifts,
    grad_threshold, grad_decay, grad_scale, grad_reset_value,
    timesteps, neurons, x_stride, size1, size2, stride0, stride1, stride2, channels, channel_stride,
    threshold_number: tl.float64, decay_number: tl.float64, scale_number: tl.float64, reset_value_number: tl.float64,
    loc_number: tl.float64,
    THRESHOLD_BY_CHANNEL: tl.constexpr, DECAY_BY_CHANNEL: tl.constexpr, SCALE_BY_CHANNEL: tl.constexpr,
    RESET_VALUE_BY_CHANNEL: tl.constexpr, LAW: tl.constexpr,
    RESET: tl.constexpr, DECAY_INPUT: tl.constexpr, MEMBRANE_NOISE: tl.constexpr, THRESHOLD_NOISE: tl.constexpr,
    MEAN_FIELD: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr, DETACH_RESET: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    index = _index(at, size1, size2, stride0, stride1, stride2)
    channel = (at // channel_stride) % channels
    threshold = _value(thresholds, channel, threshold_number, THRESHOLD_BY_CHANNEL, REAL)
    decay = _value(decays, channel, decay_number, DECAY_BY_CHANNEL, REAL)
    gain = _gain(decays, decay, decay_number, REAL)
    scale = _positive(_value(scales, channel, scale_number, SCALE_BY_CHANNEL, REAL))
    loc = tl.full((), loc_number, REAL)
    value = _value(reset_values, channel, reset_value_number, RESET_VALUE_BY_CHANNEL, REAL)
    threshold_sum = tl.zeros((BLOCK,), REAL)
    decay_sum = tl.zeros((BLOCK,), REAL)
    scale_sum = tl.zeros((BLOCK,), REAL)
    value_sum = tl.zeros((BLOCK,), REAL)
    grad_v = tl.load(grad_last + at, inside, 0.0) if grad_last is not None else tl.zeros((BLOCK,), REAL)
    for step in range(timesteps):
        t = timesteps - 1 - step
        u_t = tl.load(u + at_step(t, neurons, at), inside, 0.0)
        z_t = u_t - threshold
        if MEAN_FIELD:
            fired = _probability(z_t, scale, loc, LAW)
        else:
            fired = tl.load(spikes + at_step(t, neurons, at), inside, 0.0).to(REAL)
        grad_fired = tl.zeros((BLOCK,), REAL)
        if grad_spikes is not None:
            grad_fired += tl.load(grad_spikes + at_step(t, neurons, at), inside, 0.0).to(REAL)
        if not DETACH_RESET:
            grad_fired -= grad_v * _removed(u_t, value, RESET)
        by_spike = grad_fired * _density(z_t, scale, loc, LAW)
        grad_u = grad_v + by_spike
        if RESET == RESET_ZERO:
            grad_u -= grad_v * fired
        if grad_threshold is not None:
            threshold_sum -= by_spike
        if grad_reset_value is not None:
            value_sum += fired * grad_v if RESET == RESET_ZERO else -fired * grad_v
        if grad_scale is not None:
            if THRESHOLD_NOISE or MEAN_FIELD:  # P(fire) = F(z), and the scale stretches F
                scale_sum -= tl.where(by_spike == 0.0, 0.0, by_spike * (z_t - loc)) / scale  # infinite thresholds
            if MEMBRANE_NOISE:  # u holds -(loc + scale * standard draw)
                eps_membrane, _ = _noise(tl.load(seeds + t), index, neurons, scale, loc, LAW)
                scale_sum -= grad_u * (eps_membrane - loc) / scale
        if grad_decay is not None:
            before = tl.zeros((BLOCK,), REAL)
            if t > 0:
                u_before = tl.load(u + at_step(t - 1, neurons, at), inside, 0.0)
                if MEAN_FIELD:
                    fired = _probability(u_before - threshold, scale, loc, LAW)
                else:
                    fired = tl.load(spikes + at_step(t - 1, neurons, at), inside, 0.0).to(REAL)
                before += u_before - fired * _removed(u_before, value, RESET)
            else:
                if state is not None:
                    before += tl.load(state + at, inside, 0.0)
            if DECAY_INPUT:
                before -= _current(
                    x, at_step(t, x_stride, at), inside, channel, factors, shifts,
                    residual, at_step(t, neurons, at), residual_factors, residual_shifts, REAL,
                )  # fmt: skip
            decay_sum += grad_u * before
        grad_current = grad_u
        if DECAY_INPUT:
            grad_current = gain * grad_u
        tl.store(grad_x + at_step(t, neurons, at), grad_current.to(grad_x.dtype.element_ty), inside)
        grad_v = decay * grad_u
    if state is not None:
        tl.store(grad_state + at, grad_v, inside)
    if grad_threshold is not None:
        _store_gradient(grad_threshold, threshold_sum, at, inside, THRESHOLD_BY_CHANNEL)
    if grad_decay is not None:
        _store_gradient(grad_decay, decay_sum, at, inside, DECAY_BY_CHANNEL)
    if grad_scale is not None:
        _store_gradient(grad_scale, scale_sum, at, inside, SCALE_BY_CHANNEL)
    if grad_reset_value is not None:
        _store_gradient(grad_reset_value, value_sum, at, inside, RESET_VALUE_BY_CHANNEL)


def forward(
    x: Tensor,
    state: Tensor | None,
    seeds: Tensor | None,
    neuron: Neuron,
    keep_u: bool,
    keep_state: bool,
    affine: Affine | None = None,
    bits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.Kernel.forward`; tensor values stay on the device and are not checked."""
    spikes, last, u = common.empty_outputs(x, keep_u, keep_state)
    state = common.laid_out_as(x[0], state, last.dtype)
    kept = dict(last=last if keep_state else None, u=u if keep_u else None, bits=bits)
    _launch(_forward, x, neuron, affine, x=x, state=state, seeds=seeds, spikes=spikes, **kept)
    return spikes, last, u


def backward(
    grads: Pair, saved: Saved, neuron: Neuron, learns: Sequence[bool], affine: Affine | None = None
) -> Gradients:
    """As `cpu.Kernel.backward`; the gradients of `VALUES` are on the device. `affine` makes currents of `saved.x`."""
    given = common.backward_tensors(grads, saved)
    step = given["u"][0]
    found: list[Tensor | None] = [None] * len(VALUES)
    for place, (value, wanted) in enumerate(zip(neuron.tensors(), learns)):
        if wanted:
            by_channel = value is not None and value.dim() > 0
            found[place] = torch.empty_like(step) if by_channel else step.new_empty(triton.cdiv(step.numel(), BLOCK))
    named = {f"grad_{name}": gradient for name, gradient in zip(VALUES, found)}
    _launch(_backward, given["spikes"], neuron, affine, **given, **named, DETACH_RESET=neuron.detach_reset)
    for place, value in enumerate(neuron.tensors()):
        gradient = found[place]
        if gradient is not None:
            found[place] = gradient.sum() if value is None else gradient.sum_to_size(value.shape)
    return given["grad_x"], given["grad_state"], *found


def backward_again(grads: Pair, kept: Kept, neuron: Neuron, learns: Sequence[bool]) -> tuple[Gradients, Tensor | None]:
    """As `cpu.Kernel.backward_again`; the potentials that are computed again are in memory until it returns.

    Only a program that knows the number of steps when it is compiled could hold them all in its registers.
    """
    x, spikes, u = kept.x, kept.spikes, kept.u
    if spikes is None or u is None:
        spikes, _, u = forward(x, kept.state, kept.seeds, neuron, True, False, kept.affine)
    scales_input = neuron.decay_input and learns[VALUES.index("decay")]  # nothing else needs the current
    saved = Saved(x if scales_input else None, kept.state, kept.seeds, spikes, u)
    grad, *others = backward(grads, saved, neuron, learns, kept.affine if scales_input else None)
    assert grad is not None
    if x.stride(0) == 0:
        total = common.empty_sequence(x[0], 1, x.dtype)
        x, grad = x[:1], torch.sum(grad, 0, keepdim=True, out=total)
    return (grad, *others), None if kept.affine is None else norm_sums(x, grad, kept.affine)


def _launch(kernel: Any, like: Tensor, neuron: Neuron, affine: Affine | None, **arguments: Any) -> None:
    """Run a kernel on sequences laid out as `like`."""
    neurons = like[0].numel()
    for name, tensor in zip(VALUES, neuron.tensors()):
        arguments[f"{name}s"] = None if tensor is None else tensor.contiguous()
        arguments[f"{name}_number"] = 0.0 if tensor is not None else float(getattr(neuron, name))
        arguments[f"{name.upper()}_BY_CHANNEL"] = tensor is not None and tensor.dim() > 0
    factors, shifts, _, residual, of_residual = affine or (None,) * len(Affine._fields)
    residual_factors, residual_shifts, _ = of_residual or (None,) * 3
    channels, channel_stride = channels_of(like) if affine or neuron.channel_bits() else (1, 1)
    with torch.cuda.device_of(like):  # Triton launches on the current device
        kernel[(triton.cdiv(neurons, BLOCK),)](
            **arguments,
            factors=factors,
            shifts=shifts,
            residual=common.laid_out_over_time(like, residual, like.dtype),
            residual_factors=residual_factors,
            residual_shifts=residual_shifts,
            timesteps=len(like),
            neurons=neurons,
            x_stride=like.stride(0),
            channels=channels,
            channel_stride=channel_stride,
            **_loops(like.shape[1:], like.stride()[1:]),
            LAW=KNOWN_LAWS.index(type(neuron.law).__name__),
            loc_number=float(neuron.law.loc),
            RESET=RESETS.index(neuron.reset),
            DECAY_INPUT=neuron.decay_input,
            MEMBRANE_NOISE=neuron.membrane_noise,
            THRESHOLD_NOISE=neuron.threshold_noise,
            MEAN_FIELD=neuron.mean_field,
            REAL=real_of(like),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@functools.lru_cache(maxsize=1024)
def _loops(shape: Sequence[int], strides: Sequence[int]) -> dict[str, int]:
    """The loops over memory, without the outermost size; missing loops are padded in front with loops of length 1."""
    order = common.memory_order(shape, strides)
    assert order is not None, "steps with gaps or overlaps: see `dense`"
    padding = MAX_RANK - len(order[0])
    _, size1, size2 = [1] * padding + order[0]
    stride0, stride1, stride2 = [0] * padding + order[1]
    return dict(size1=size1, size2=size2, stride0=stride0, stride1=stride1, stride2=stride2)
