"""Batch normalisation around the neurons of cuda.py, and packed spikes, in Triton.

Sums over a channel are of parts that programs sum each in order, so that results repeat bit for bit. What is left to
compute of each channel is float64, by PyTorch, on the device: nothing waits for it but `pack`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import Affine, Pair

BLOCK = 512
WARPS = 4
TILES = 16  # blocks that a program sums: more would leave small layers with too few programs
MOST_CHANNELS = 32  # side by side in a block
INTEGERS = {2: tl.int16, 4: tl.int32, 8: tl.int64}  # by bytes


@triton.jit
def at_step(t, stride, at):
    """Offsets of the neurons at step t; in 64 bits, as `at` is."""
    return (at * 0 + t) * stride + at


@triton.jit
def of_channel(values, channel, REAL: tl.constexpr):
    """The values of neurons of these channels."""
    return tl.load(values + channel).to(REAL)


@triton.jit
def packed(numbers, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Bytes of numbers below 2^WIDTH, the first in the lowest bits."""
    EACH: tl.constexpr = 8 // WIDTH
    shifted = tl.reshape(numbers, (BLOCK // EACH, EACH)) << (tl.arange(0, EACH) * WIDTH)[None, :]
    return tl.sum(shifted, 1).to(tl.uint8)


@triton.jit
def _sums(
    x, grad, centres, sums, rows, rows_of_program, channels, inner,
    WIDTH: tl.constexpr, SIDE_BY_SIDE: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums by channel, over some rows, of d and d * d, d = x - centre; or, with `grad`, of it and grad * d.

    Memory is rows of `channels` runs of `inner` numbers. A program takes one channel or, where runs are single numbers,
    WIDTH channels.
    """
    place = tl.arange(0, BLOCK)
    channel = tl.program_id(1) * WIDTH + place % WIDTH if SIDE_BY_SIDE else tl.program_id(1) + place * 0
    centre = tl.load(centres + channel, channel < channels, 0.0).to(REAL)
    first_sum = tl.zeros((BLOCK,), REAL)
    second_sum = tl.zeros((BLOCK,), REAL)
    for first_row in range(0, rows_of_program, BLOCK // WIDTH):
        row = tl.program_id(0).to(tl.int64) * rows_of_program + first_row + place // WIDTH
        for start in range(0, inner, WIDTH):
            in_run = 0 if SIDE_BY_SIDE else start + place % WIDTH
            inside = (row < rows) & (channel < channels) & (in_run < inner)
            at = (row * channels + channel) * inner + in_run
            d = tl.where(inside, tl.load(x + at, inside, 0.0).to(REAL) - centre, 0.0)
            weight = d if grad is None else tl.load(grad + at, inside, 0.0).to(REAL)
            first_sum += weight
            second_sum += weight * d
    result = sums + tl.program_id(0).to(tl.int64) * 2 * channels
    if SIDE_BY_SIDE:
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        first = tl.sum(tl.reshape(first_sum, (BLOCK // WIDTH, WIDTH)), 0)
        second = tl.sum(tl.reshape(second_sum, (BLOCK // WIDTH, WIDTH)), 0)
        tl.store(result + channel, first, channel < channels)
        tl.store(result + channels + channel, second, channel < channels)
    else:
        tl.store(result + tl.program_id(1), tl.sum(first_sum, 0))
        tl.store(result + channels + tl.program_id(1), tl.sum(second_sum, 0))


@triton.jit
def _norm_backward(
    x, grad, result, factors, shifts, means, slopes, timesteps, neurons, x_stride, channels, channel_stride,
    REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    channel = (at // channel_stride) % channels
    factor = of_channel(factors, channel, REAL)
    shift = of_channel(shifts, channel, REAL)
    mean = of_channel(means, channel, REAL)
    slope = of_channel(slopes, channel, REAL)
    for t in range(timesteps):
        centred = tl.load(x + at_step(t, x_stride, at), inside, 0.0).to(REAL) - mean
        outer = tl.load(grad + at_step(t, neurons, at), inside, 0.0).to(REAL)
        found = factor * (outer - shift - slope * centred)
        tl.store(result + at_step(t, neurons, at), found.to(result.dtype.element_ty), inside)


@triton.jit
def _pack(
    numbers, bits, others, size,
    WIDTH: tl.constexpr, INTEGER: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """WIDTH bits for each of 0, 1 / WIDTH, ..., (2^WIDTH - 1) / WIDTH.

    `others` becomes 1 where there is something else; programs that see it do nothing.
    """
    if tl.load(others) == 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        number = tl.load(numbers + at, inside, 0.0)
        count = number.to(REAL) * WIDTH
        fits = (count < 2**WIDTH) & (number.to(INTEGER, bitcast=True) >= 0)  # neither -0 nor NaN
        whole = tl.where(fits, count, 0.0).to(tl.int32)
        wrong = inside & ((fits & (whole.to(REAL) == count)) == 0)
        byte = tl.program_id(0).to(tl.int64) * (BLOCK * WIDTH // 8) + tl.arange(0, BLOCK * WIDTH // 8)
        tl.store(bits + byte, packed(whole, WIDTH, BLOCK), byte * (8 // WIDTH) < size)
        tl.store(others, 1, tl.max(wrong.to(tl.int32), 0) > 0)


@triton.jit
def _unpack(bits, numbers, size, WIDTH: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    byte = tl.load(bits + at * WIDTH // 8, inside, 0).to(tl.int32)
    whole = (byte >> (at * WIDTH % 8).to(tl.int32)) & (2**WIDTH - 1)
    number = whole.to(REAL) / WIDTH
    tl.store(numbers + at, number.to(numbers.dtype.element_ty), inside)


def real_of(like: Tensor) -> Any:
    """The type of the arithmetic, for inputs as `like`."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def channels_of(x: Tensor) -> tuple[int, int]:
    """Of x [T, B, C, ...]: C, and how far the channels are apart in memory."""
    channels = x.shape[2]
    return (1, x[0].numel()) if channels == 1 else (channels, x.stride(2))  # of one, the stride means nothing


def _channel_sums(x: Tensor, grad: Tensor | None, centres: Tensor) -> Tensor:
    """Two rows of sums over each channel of x [T, B, C, ...], as of `_sums`: float64 [2, C]. `grad` lies as x does."""
    channels, inner = channels_of(x)
    side_by_side = inner == 1
    rows = x.numel() // (channels * inner)
    width = min(MOST_CHANNELS if side_by_side else BLOCK, triton.next_power_of_2(channels if side_by_side else inner))
    at_once = BLOCK // width
    rows_of_program = at_once * min(max(1, TILES * width // max(width, inner)), triton.cdiv(rows, at_once))
    grid = triton.cdiv(rows, rows_of_program), triton.cdiv(channels, width) if side_by_side else channels
    sums = x.new_empty(grid[0], 2, channels, dtype=common.arithmetic_dtype(x.dtype))
    with torch.cuda.device_of(x):
        _sums[grid](
            x, grad, centres, sums, rows, rows_of_program, channels, inner,
            WIDTH=width, SIDE_BY_SIDE=side_by_side, REAL=real_of(x), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return sums.sum(0, dtype=torch.float64)


def statistics(x: Tensor, moments: Tensor) -> None:
    """As `cpu.Kernel.statistics`."""
    x = common.laid_out_over_time(x, x, x.dtype)
    centres = x[(0, 0, slice(None), *[0] * (x.dim() - 3))].contiguous()  # the first number of each channel
    deviation, square = _channel_sums(x, None, centres) / (x.numel() // x.shape[2])
    moments[0] = centres + deviation
    moments[1] = (square - deviation * deviation).clamp(min=0)  # NaN stays NaN


def prepare(
    moments: Tensor, running: Pair, eps: float, correction: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """As `cpu.Kernel.prepare`, but float64."""
    if running[0] is not None and running[1] is not None:
        moments[0], moments[1] = running
    mean, variance, _ = moments
    moments[2] = (variance + eps).rsqrt()
    factor = moments[2] if weight is None else moments[2] * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    return torch.stack([factor, shift, mean, variance * correction])


def norm_sums(x: Tensor, grad: Tensor, affine: Affine) -> Tensor:
    """The sums of `cpu.Kernel.backward_again`, of one group, from the gradient of the current."""
    whole, along = _channel_sums(common.laid_out_as(grad, x), grad, affine.mean)
    along_residual = torch.zeros_like(whole)
    if affine.residual is not None and affine.of_residual is not None:
        _, along_residual = _channel_sums(common.laid_out_as(grad, affine.residual), grad, affine.of_residual[2])
    return torch.stack([whole, along, along_residual]).unsqueeze(0)


def norm_gradients(sums: Tensor, moments: Tensor, count: float, of_residual: bool = False) -> Tensor:
    """As `cpu.Kernel.norm_gradients`, but float64."""
    whole, *along = sums.sum(0)
    of_weight = along[of_residual] * moments[2]
    share = 1 / count if count > 0 else 0.0
    return torch.stack([of_weight, whole, whole * share, of_weight * moments[2] * share])


def norm_backward(x: Tensor, grad: Tensor, result: Tensor, **by_channel: Tensor) -> None:
    """As `cpu.Kernel.norm_backward`."""
    neurons = x[0].numel()
    channels, channel_stride = channels_of(x)
    with torch.cuda.device_of(x):
        _norm_backward[(triton.cdiv(neurons, BLOCK),)](
            x, grad, result, *(by_channel[name] for name in ("factor", "shift", "mean", "slope")),
            len(x), neurons, x.stride(0), channels, channel_stride, REAL=real_of(x), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def empty_bits(x: Tensor) -> Tensor | None:
    """For the spikes of x [T, B, ...]: uint8; None where steps would have to share a byte."""
    is_whole = x.shape[1:].numel() % 8 == 0
    return torch.empty(x.numel() // 8, dtype=torch.uint8, device=x.device) if is_whole else None


def pack(numbers: Tensor, bits: Tensor, width: int = 1) -> bool:
    """As `cpu.Kernel.pack`; it waits for the device."""
    others = torch.zeros((), dtype=torch.int32, device=numbers.device)
    size = numbers.numel()
    with torch.cuda.device_of(numbers):
        _pack[(triton.cdiv(size, BLOCK),)](
            numbers, bits, others, size,
            WIDTH=width, INTEGER=INTEGERS[numbers.element_size()], REAL=real_of(numbers), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return not others.item()


def unpack(bits: Tensor, numbers: Tensor, width: int = 1) -> None:
    """As `cpu.Kernel.unpack`."""
    size = numbers.numel()
    with torch.cuda.device_of(numbers):
        _unpack[(triton.cdiv(size, BLOCK),)](
            bits, numbers, size, WIDTH=width, REAL=real_of(numbers), BLOCK=BLOCK, num_warps=WARPS
        )
