"""Batch normalisation and the neurons after it as one function of autograd.

It keeps its input, in its own dtype, and the seeds; the backward pass computes currents, noise and potentials again.
With memory "fast", on the CPU, it keeps as well what only noise could tell: spikes, or with noise of the membrane
potentials too; on CUDA, it is not used then. Without normalisation, its input is the current.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import checkpointing, memory, noise
from . import common, eager, fused
from .common import VALUES, Affine, Kept, Neuron, Pair, arithmetic_dtype

# With the methods that they have if nobody has replaced them.
NORMS = {kind: kind.forward for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)}
DIMENSIONS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}  # of [B, C, ...]


class Again(NamedTuple):
    """How to compute the output of a layer again, so that it need not be kept."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, Tensor, Tensor | None]  # its arguments, which are kept instead


@dataclasses.dataclass(slots=True, eq=False)
class Before:
    """What makes currents [T, B, ...] of the output x of a layer: norm(x) + plus.

    Args:
        x: [T, B, ...]; or, with `timesteps`, one step [B, ...].
        norm: batch normalisation, which takes x as [T * B, ...], or None.
        plus: what is added, [T, B, ...], or None.
        timesteps: if given, x is normalised once, and shown for so many steps.
        again: how to compute x again.
        plus_norm: batch normalisation of `plus`, which takes it as [T * B, ...], before it is added; or None.
        plus_again: how to compute `plus` again.
    """

    x: Tensor
    norm: nn.Module | None = None
    plus: Tensor | None = None
    timesteps: int | None = None
    again: Again | None = None
    plus_norm: nn.Module | None = None
    plus_again: Again | None = None

    def shown(self) -> Tensor:
        """x [T, B, ...]."""
        return self.x if self.timesteps is None else self.x.expand((self.timesteps, *self.x.shape))

    def currents(self) -> Tensor:
        """The currents, by the layers themselves."""
        x, plus = self.x, self.plus
        if self.norm is not None:
            x = self.norm(x) if self.timesteps else self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.timesteps:
            x = x.expand((self.timesteps, *x.shape))
        if plus is not None and self.plus_norm is not None:
            plus = self.plus_norm(plus.flatten(0, 1)).unflatten(0, plus.shape[:2])
        return x if plus is None else x + plus


def serves(before: Before) -> bool:
    """Whether `lif_sequence` can run here, where there is a fused kernel of the neurons."""
    x, norm, plus, timesteps = before.x, before.norm, before.plus, before.timesteps
    if torch.compiler.is_compiling() or fused.is_watched() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_function_stack() > 0:  # a mode that is to see batch normalisation
        return False
    if type(x) not in (Tensor, Parameter) or x.numel() == 0:
        return False
    if x.device.type == "cuda" and memory.setting() == "fast":  # the layers are not known to be slower there
        return False
    if not fused.has_norm(x):
        return False
    if norm is None:  # there is nothing to gain but memory
        return plus is None and (timesteps is not None or memory.setting() != "fast")
    if plus is not None and (type(plus) is not Tensor or timesteps is not None):
        return False
    if plus is not None and (plus.shape, plus.dtype, plus.device) != (x.shape, x.dtype, x.device):
        return False
    return _can_run(norm, x, timesteps) and (before.plus_norm is None or _can_run(before.plus_norm, x, None))


def _can_run(norm: Any, x: Tensor, timesteps: int | None) -> bool:
    """Whether this is a layer of PyTorch, in a state in which it gives no error."""
    if NORMS.get(type(norm)) is not type(norm).forward or x.dim() < (2 if timesteps else 3):
        return False
    shape = x.shape[1:] if timesteps is None else x.shape  # [B, C, ...]
    if len(shape) not in DIMENSIONS.get(type(norm), range(2, 9)):
        return False
    if (norm.running_mean is None) != (norm.running_var is None):
        return False
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, Parameter) or tensor.shape != shape[1:2] or tensor.device != x.device:
            return False
        if tensor.dtype != arithmetic_dtype(x.dtype) or not tensor.is_contiguous():
            return False
    return not _uses_batch(norm) or x.numel() > shape[1]  # of one number there is no variance


def _uses_batch(norm: Any) -> bool:
    return norm.training or norm.running_mean is None


@dataclasses.dataclass(slots=True, eq=False)
class _Statistics:
    """By which a layer normalises."""

    moments: Tensor  # float64 [3, C]: mean, variance, 1 / std
    by_channel: tuple[Tensor, Tensor, Tensor]  # [C]: factor, shift, mean
    eps: float
    count: float  # of numbers in each channel; 0: the statistics are not those of the batch
    group: Any  # of processes whose batches are normalised together


def _statistics(norm: Any, x: Tensor) -> _Statistics:
    """The statistics that apply to x [T, B, C, ...], after the running ones have been updated."""
    kernel, uses_batch = fused.kernel_of(x), _uses_batch(norm)
    moments = torch.empty(3, x.shape[2], dtype=torch.float64, device=x.device)
    count, group, running = 0.0, None, (norm.running_mean, norm.running_var)
    if uses_batch:
        kernel.statistics(x, moments)
        count, running = x.numel() / x.shape[2], (None, None)
        if type(norm) is nn.SyncBatchNorm and norm.training and dist.is_available() and dist.is_initialized():
            group = norm.process_group or dist.group.WORLD
            count = _joined(moments, count, group)
    correction = count / (count - 1) if count > 1 else 1.0
    rows = kernel.prepare(moments, running, norm.eps, correction, norm.weight, norm.bias)
    factor, shift, mean, variance = rows.to(arithmetic_dtype(x.dtype))
    if norm.training and norm.track_running_stats:
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:  # the average of all batches so far
                momentum = 1 / norm.num_batches_tracked.item()
        if norm.running_mean is not None:
            # Without a new version, as PyTorch does it: its own batch norm keeps these tensors for the backward pass.
            norm.running_mean.data.lerp_(mean, momentum or 0.0)
            norm.running_var.data.lerp_(variance, momentum or 0.0)
    return _Statistics(moments, (factor, shift, mean), norm.eps, count, group)


def _joined(moments: Tensor, count: float, group: Any) -> float:
    """Make mean and variance those of all processes, and return their count of numbers."""
    mean, variance = moments[0], moments[1]
    sums = torch.cat([mean.new_tensor([count]), count * mean, count * (variance + mean * mean)])
    dist.all_reduce(sums, group=group)
    mean, square = (sums[1:] / sums[0]).chunk(2)
    moments[0], moments[1] = mean, (square - mean * mean).clamp_(min=0)
    return sums[0].item()


@dataclasses.dataclass(slots=True, eq=False)
class _Settings:
    neuron: Neuron
    keep_state: bool
    timesteps: int | None
    keeps_u: bool
    keeps_spikes: bool
    packs: bool
    statistics: _Statistics | None
    plus_statistics: _Statistics | None
    again: tuple[Callable[..., Tensor] | None, ...]  # for x and plus; see `Again`

    def affine(self, plus: Tensor | None) -> Affine | None:
        if self.statistics is None:
            return None
        of_residual = None if self.plus_statistics is None else self.plus_statistics.by_channel
        return Affine(*self.statistics.by_channel, plus, of_residual)


def lif_sequence(before: Before, state: Tensor | None, neuron: Neuron, keep_state: bool) -> tuple[Tensor, Tensor]:
    """Spikes and the last potential, as of `fused.lif_sequence`, where `serves`."""
    x, plus, timesteps = before.x, before.plus, before.timesteps
    statistics, weight, bias = _normalisation(before.norm, x.unsqueeze(0) if timesteps else x)
    plus_statistics, plus_weight, plus_bias = _normalisation(before.plus_norm, plus)
    seeds = None
    if neuron.membrane_noise or neuron.threshold_noise:
        seeds = noise.draw_seeds(timesteps or len(x), x.device)
    tensors = (x, plus, weight, bias, plus_weight, plus_bias, state, *neuron.tensors())
    saves = torch.is_grad_enabled()
    is_kept = saves and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    keeps = is_kept and memory.setting() == "fast"
    keeps_u = keeps and (neuron.membrane_noise or neuron.mean_field)
    keeps_spikes = keeps_u or (keeps and neuron.threshold_noise)
    packs = saves and memory.packs() and not neuron.mean_field
    functions: list[Callable[..., Tensor] | None] = []
    instead: list[Tensor | None] = []
    for again in (before.again, before.plus_again):
        functions.append(None if again is None else again.function)
        instead += [] if again is None else again.tensors
    both = statistics, plus_statistics
    settings = _Settings(neuron, keep_state, timesteps, keeps_u, keeps_spikes, packs, *both, tuple(functions))
    spikes, last = _NormLIF.apply(*tensors, neuron.surrogate_scale, seeds, settings, instead)
    return spikes, last


def _normalisation(norm: Any, x: Tensor | None) -> tuple[_Statistics | None, Tensor | None, Tensor | None]:
    """Statistics, weight and bias of a layer; None for no layer."""
    if norm is None or x is None:
        return None, None, None
    with torch.no_grad():
        return _statistics(norm, common.dense(x)), norm.weight, norm.bias


def _steps(x: Tensor, timesteps: int | None) -> Tensor:
    """x [T, B, C, ...] as kernels take it: one step is expanded."""
    if timesteps is None:
        x = common.dense(x)
        return x if x.stride(0) or len(x) == 1 else x.contiguous()  # each step has a gradient of its own
    step = common.dense(x.unsqueeze(0))
    return step.expand(timesteps, *x.shape)


class _NormLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plus: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        plus_weight: Tensor | None,
        plus_bias: Tensor | None,
        state: Tensor | None,
        threshold: Tensor | None,
        decay: Tensor | None,
        scale: Tensor | None,
        reset_value: Tensor | None,
        surrogate_scale: Tensor | None,
        seeds: Tensor | None,
        settings: _Settings,
        instead: list[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        neuron, affine = settings.neuron, settings.affine(plus)
        steps, kernel = _steps(x, settings.timesteps), fused.kernel_of(x, neuron.channel_bits())
        bits = kernel.empty_bits(steps) if settings.packs else None
        spikes, last, u = kernel.forward(
            steps, state, seeds, neuron, settings.keeps_u, settings.keep_state, affine, bits
        )
        if bits is not None:
            memory.belong_to(spikes, bits)
        ctx.settings, ctx.seeds = settings, seeds
        kept = [x, plus, weight, bias, plus_weight, plus_bias, state]
        for place, again in enumerate(settings.again):
            kept[place] = None if again else kept[place]
        values = (threshold, decay, scale, reset_value)
        results = spikes if settings.keeps_spikes else None, u if settings.keeps_u else None
        mark = common.mode_mark(neuron, last) if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(mark, *kept, *values, surrogate_scale, seeds, *results, *instead)
        ctx.set_materialize_grads(False)
        return spikes, last

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        fused.refuse_recording()
        settings: _Settings = ctx.settings
        _, *saved = common.saved_tensors(ctx)
        inputs, values, (surrogate_scale, seeds, spikes, u, *instead) = saved[:7], saved[7:11], saved[11:]
        checkpointing.check_same_noise(ctx.seeds, seeds)
        grads = outer[0], outer[1] if settings.keep_state else None
        needs = ctx.needs_input_grad
        if instead and torch.is_grad_enabled():
            raise RuntimeError('memory="smallest" has no graph of gradients (create_graph): use "fast" or "lean"')
        for place, again in enumerate(settings.again):
            if again is not None:
                inputs[place] = again(*instead[:3]).requires_grad_(needs[place])
                del instead[:3]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or common.in_batches(grads):
            found = _by_composition(settings, inputs, values, surrogate_scale, seeds, grads)
        else:
            neuron = settings.neuron.with_tensors(values)
            if surrogate_scale is not None:
                neuron = dataclasses.replace(neuron, surrogate_scale=surrogate_scale)
            found = _gradients(settings, inputs, neuron, seeds, (spikes, u), grads, needs)
        return *(grad if needed else None for grad, needed in zip(found, needs)), None, None, None, None


def _gradients(
    settings: _Settings,
    inputs: Sequence[Any],
    neuron: Neuron,
    seeds: Tensor | None,
    results: Pair,
    grads: Pair,
    needs: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Gradients of x, plus, the weights and biases, state and `VALUES`."""
    x, plus, _, _, _, _, state = inputs
    affine = settings.affine(plus)
    steps, kernel = _steps(x, settings.timesteps), fused.kernel_of(x, neuron.channel_bits())
    if neuron.surrogate is not None:
        draws = neuron.membrane_noise or neuron.threshold_noise or neuron.mean_field
        if draws and results[0] is None:  # the kernel computes again by the law by which it differentiates
            results = kernel.forward(steps, state, seeds, neuron, True, False, affine)[::2]
        neuron = neuron.of_gradient()
        kernel = fused.kernel_of(x, neuron.channel_bits())
    kept = Kept(steps, state, seeds, affine, *results)
    found, sums = kernel.backward_again(grads, kept, neuron, needs[7 : 7 + len(VALUES)])
    grad: Any = found[0]
    of_x: tuple[Any, ...] = (grad, None, None)
    of_plus = of_x
    if sums is not None and settings.plus_statistics is not None:
        residual = common.laid_out_as(grad, plus)
        result = torch.empty_like(grad) if needs[1] else None
        of_plus = _norm_gradients(kernel, settings.plus_statistics, sums, residual, grad, result, True)
    if sums is not None and settings.statistics is not None:
        is_last = not needs[1] or settings.plus_statistics is not None  # to need the gradient of the current
        result = (grad if is_last else torch.empty_like(grad)) if needs[0] else None
        of_x = _norm_gradients(kernel, settings.statistics, sums, steps[: len(grad)], grad, result, False)
    grad_x = of_x[0][0] if settings.timesteps and of_x[0] is not None else of_x[0]
    return grad_x, of_plus[0], *of_x[1:], *of_plus[1:], *found[1:]


def _norm_gradients(
    kernel: Any,
    statistics: _Statistics,
    sums: Tensor,
    x: Tensor,
    grad: Tensor,
    result: Tensor | None,
    of_residual: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of what was normalised, filled into `result` if it is wanted, and of weight and bias."""
    moments, count = statistics.moments, statistics.count
    dtype = arithmetic_dtype(x.dtype)
    of_weight, of_bias, shift, slope = kernel.norm_gradients(sums, moments, count, of_residual).to(dtype)
    if statistics.group is not None:
        sums = sums.sum(0, keepdim=True)
        dist.all_reduce(sums, group=statistics.group)
        _, _, shift, slope = kernel.norm_gradients(sums, moments, count, of_residual).to(dtype)
    if result is not None:
        factor, _, mean = statistics.by_channel
        kernel.norm_backward(x, grad, result, factor=factor, shift=shift, mean=mean, slope=slope)
    return result, of_weight, of_bias


def _by_composition(
    settings: _Settings,
    inputs: Sequence[Any],
    values: Sequence[Any],
    surrogate_scale: Tensor | None,
    seeds: Tensor | None,
    grads: Pair,
) -> Sequence[Tensor | None]:
    """As `_gradients`, by operations of PyTorch: where gradients are differentiated, or come in batches."""
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, because one tensor may be given as two arguments, each with its own gradient.
        given: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in (*inputs, *values)]
        x, plus, weight, bias, plus_weight, plus_bias, state = given[:7]
        current = _normalised(settings.statistics, x.to(arithmetic_dtype(x.dtype)), weight, bias, settings.timesteps)
        if settings.timesteps is not None:
            current = current.expand(settings.timesteps, *current.shape)
        if plus is not None:
            plus = plus.to(current.dtype)
            current = current + _normalised(settings.plus_statistics, plus, plus_weight, plus_bias, None)
        now = given[7:]
        neuron = settings.neuron.with_tensors(now)
        if neuron.mean_field:
            outputs = eager.plain_sequence(current, state, neuron, True, False)
        else:
            outputs = fused.Direct.apply(
                current, state, *neuron.tensors(), surrogate_scale, seeds, (neuron, True, True)
            )
        pairs = []
        for output, grad in zip(outputs, grads):
            if grad is not None and output.requires_grad:  # not a last potential that no learnt value has changed
                pairs.append((output, grad.to(output.dtype)))
        learnt = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
        which, of_them = [output for output, _ in pairs], [grad for _, grad in pairs]
        found = iter(torch.autograd.grad(which, learnt, of_them, create_graph=is_differentiated, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]


def _normalised(
    statistics: _Statistics | None, x: Tensor, weight: Tensor | None, bias: Tensor | None, timesteps: int | None
) -> Tensor:
    if statistics is None:
        return x
    if statistics.group is not None:
        raise RuntimeError("SyncBatchNorm has no second derivative, and no gradients in batches, with fused neurons")
    channel = 1 if timesteps else 2
    shape = (-1, *[1] * (x.dim() - channel - 1))
    if statistics.count == 0:
        mean, _, inverse = statistics.moments.to(x.dtype)
        x = (x - mean.reshape(shape)) * inverse.reshape(shape)
    else:
        others = [dim for dim in range(x.dim()) if dim != channel]
        x = x - x.mean(others, keepdim=True)
        x = x * (x.square().mean(others, keepdim=True) + statistics.eps).rsqrt()
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)
