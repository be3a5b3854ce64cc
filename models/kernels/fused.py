"""The fused kernels as custom operators of PyTorch, with their gradient; opaque to torch.compile.

Their namespace comes from the name of this package, so that copies of it under other names live beside each other.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .. import noise
from . import build, common, cpu, selftest
from .common import SWITCHES, Gradients, Neuron, Pair, dense, empty_gradients, empty_outputs


def _library() -> torch.library.Library:
    """A namespace for the operators; with a number where this package is imported a second time."""
    name = "nsnn_" + __package__.replace(".", "_")
    for number in range(1, 100):
        with contextlib.suppress(RuntimeError):  # the name is taken
            return torch.library.Library(name if number == 1 else f"{name}_{number}", "DEF")
    raise RuntimeError(f"PyTorch has no free namespace {name} for the operators of spiking neurons")


LIBRARY = _library()


def serves(x: Tensor, law: noise.NoiseLaw) -> bool:
    """Whether a fused kernel runs these neurons: a law of this package that it knows, and a kernel here."""
    kind = type(law)  # not a subclass: its functions may be others
    if kind not in noise.LAWS or x.shape[1:].numel() > common.MAX_NEURONS:
        return False
    return _has_kernel(x.device.type, x.dtype, kind.__name__)


def _has_kernel(device_type: str, dtype: torch.dtype, law: str) -> bool:
    if os.environ.get("NSNN_KERNELS") == "eager":
        return False
    if device_type == "cuda":
        return _cuda(law) is not None
    kernel = cpu.kernel(torch.float32 if dtype == torch.float16 else dtype) if device_type == "cpu" else None
    return kernel is not None and law in kernel.laws


# What `torch.compiler.assume_constant_result` does, but without importing the compiler, which takes as long as torch.
_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lif_sequence(x: Tensor, state: Tensor | None, neuron: Neuron, keep_state: bool = True) -> tuple[Tensor, Tensor]:
    """As `eager.lif_sequence`; without `keep_state` the second result is empty, and the time to write it is saved."""
    if x.device.type == "cpu" and x.dtype == torch.float16:  # C has no such type everywhere
        spikes, last = lif_sequence(x.float(), state, neuron, keep_state)
        return spikes.to(x.dtype), last
    decay = neuron.decay.to(x.device) if isinstance(neuron.decay, Tensor) else None
    scale = neuron.scale.to(x.device) if isinstance(neuron.scale, Tensor) else None
    tensors = (x, state, decay, scale)
    keep_z = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    traced = torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or is_in_torch_dispatch_mode()
    seeds = None
    if neuron.membrane_noise or neuron.threshold_noise:
        seeds = random_seeds(x.detach()[:, :0]) if traced else noise.draw_seeds(len(x), x.device)
    if traced:
        spikes, last, _ = lif_forward(*tensors, seeds, *flattened(neuron), keep_z, keep_state)
    else:
        spikes, last, _ = _Direct.apply(*tensors, seeds, (neuron, keep_z, keep_state))
    return spikes, last


# `Neuron`, flattened; learnt numbers come as tensors beside it.
NEURON = (
    "str law, float scale, float loc, str? surrogate, float surrogate_scale, float surrogate_loc, float decay, "
    "float threshold, str reset, "
) + ", ".join(f"bool {switch}" for switch in SWITCHES)


def flattened(neuron: Neuron) -> tuple[Any, ...]:
    """A neuron as the arguments of an operator, in the order of `NEURON`."""
    law, other = neuron.law, neuron.surrogate
    surrogate = (None, 0.0, 0.0) if other is None else (type(other).__name__, other.scale, other.loc)
    decay = 0.0 if isinstance(neuron.decay, Tensor) else neuron.decay
    switches = [getattr(neuron, switch) for switch in SWITCHES]
    return type(law).__name__, law.scale, law.loc, *surrogate, decay, neuron.threshold, neuron.reset, *switches


def _rebuilt(values: tuple[Any, ...]) -> Neuron:
    """The neuron that was `flattened`."""
    name, scale, loc, other, other_scale, other_loc, decay, threshold, reset = values[:9]
    laws: dict[str, Any] = {law.__name__: law for law in noise.LAWS}
    surrogate = None if other is None else laws[other](other_scale, other_loc)
    switches = dict(zip(SWITCHES, values[9:]))
    return Neuron(laws[name](scale, loc), scale, decay, threshold, reset, surrogate=surrogate, **switches)


def _operator(schema: str, function: Callable[..., Any], tags: tuple[torch.Tag, ...] = ()) -> Any:
    """Define an operator by an implementation for CPU and CUDA; returned is what calls it.

    Not by `torch.library.custom_op`, whose wrappers in Python take 150 microseconds per call.
    """
    LIBRARY.define(schema, tags=tags)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, function, key)
    return getattr(getattr(torch.ops, LIBRARY.ns), name).default


def _random_seeds(x: Tensor) -> Tensor:
    """A seed for each step of x [T, ...], int64 [T], from the generator that applies when it runs (`models.noise`)."""
    return noise.draw_seeds(len(x), x.device)


random_seeds = _operator("random_seeds(Tensor x) -> Tensor", _random_seeds, (torch.Tag.nondeterministic_seeded,))


@torch.library.register_fake(random_seeds, lib=LIBRARY)
def _(x: Tensor) -> Tensor:
    return x.new_empty(len(x), dtype=torch.int64)


def _forward(tensors: tuple[Any, ...], neuron: Neuron, keep_z: bool, keep_state: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.Kernel.forward`, for any x."""
    x, state, learnt_decay, learnt_scale, seeds = tensors
    if x.numel() == 0:
        spikes, last, z = empty_outputs(dense(x), keep_z, keep_state)
        if keep_state:
            last = last.zero_() if state is None else last.copy_(state)
        return spikes, last, z
    return _kernel(x).forward(dense(x), state, seeds, neuron.learning(learnt_decay, learnt_scale), keep_z, keep_state)


lif_forward = _operator(
    "lif_forward(Tensor x, Tensor? state, Tensor? learnt_decay, Tensor? learnt_scale, Tensor? seeds, "
    f"{NEURON}, bool keep_z, bool keep_state) -> (Tensor, Tensor, Tensor)",
    lambda *inputs: _forward(inputs[:5], _rebuilt(inputs[5:-2]), inputs[-2], inputs[-1]),
)


@torch.library.register_fake(lif_forward, lib=LIBRARY)
def _(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_outputs(dense(x), *inputs[-2:])


def _backward(grads: Pair, saved: tuple[Any, ...], neuron: Neuron, learns: tuple[bool, bool]) -> Gradients:
    """As `cpu.Kernel.backward`, for any spikes."""
    learnt_decay, learnt_scale, _, state, _, spikes, z = saved
    if spikes.numel() == 0:
        grad_x, grad_state = empty_gradients(spikes, z, state)
        if state is not None:
            grad_state = grad_state.zero_() if grads[1] is None else grad_state.copy_(grads[1])
        return grad_x, grad_state, None, None
    return _kernel(spikes).backward(grads, saved[2:], neuron.learning(learnt_decay, learnt_scale), learns)


def _backward_in_tensors(*inputs: Any) -> tuple[Tensor, ...]:
    """As `_backward`, of a flattened neuron; an operator has tensors for all results."""
    grad_x, grad_state, *grads = _backward(inputs[:2], inputs[2:9], _rebuilt(inputs[9:-2]), inputs[-2:])
    zero = grad_x.new_zeros((), dtype=common.arithmetic_dtype(grad_x.dtype))
    return grad_x, grad_state, *(zero.clone() if grad is None else grad for grad in grads)


lif_backward = _operator(
    "lif_backward(Tensor? grad_spikes, Tensor? grad_last, Tensor? learnt_decay, Tensor? learnt_scale, Tensor? x, "
    f"Tensor? state, Tensor? seeds, Tensor spikes, Tensor z, {NEURON}, bool learns_decay, bool learns_scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward_in_tensors,
)


@torch.library.register_fake(lif_backward, lib=LIBRARY)
def _(*inputs: Any) -> tuple[Tensor, ...]:
    state, spikes, z = inputs[5], inputs[7], inputs[8]
    return *empty_gradients(spikes, z, state), z.new_empty(()), z.new_empty(())


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("spiking neurons are once differentiable: there is no gradient of their gradient")


torch.library.register_autograd(lif_backward, _refuse_second_derivative, lib=LIBRARY)


def _save_for_backward(
    ctx: Any, tensors: tuple[Tensor | None, ...], neuron: Neuron, keep_state: bool, output: tuple[Tensor, ...]
) -> None:
    x, state, learnt_decay, learnt_scale, seeds = tensors
    spikes, _, z = output
    ctx.neuron, ctx.keep_state = neuron.of_gradient(), keep_state
    learnt_scale = learnt_scale if neuron.surrogate is None else None
    needs_x = neuron.decay_input and learnt_decay is not None
    ctx.save_for_backward(learnt_decay, learnt_scale, x if needs_x else None, state, seeds, spikes, z)
    ctx.set_materialize_grads(False)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save_for_backward(ctx, inputs[:5], _rebuilt(inputs[5:-2]), inputs[-1], output)


def _differentiated_by(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward function of autograd, by `_backward` or by its operator."""

    def differentiate(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:4]  # x, state, decay, scale
        outer = (outer[0], outer[1] if ctx.keep_state else None)  # of spikes and last; z is not for users
        grads = backward(outer, ctx.saved_tensors, ctx.neuron, needed[2:])
        others = len(ctx.needs_input_grad) - len(needed)
        return *(grad if needs else None for grad, needs in zip(grads, needed)), *[None] * others

    return differentiate


_by_operator = _differentiated_by(
    lambda grads, saved, neuron, learns: lif_backward(*grads, *saved, *flattened(neuron), *learns)
)
torch.library.register_autograd(lif_forward, _by_operator, setup_context=_set_up, lib=LIBRARY)


class _Direct(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, which would cost small layers more than their neurons."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        # Not by setup_context, with which PyTorch inspects the signature at every call; and one tuple for the neuron
        # and the switches, since each argument of its own would cost time.
        tensors, (neuron, keep_z, keep_state) = inputs[:5], inputs[5]
        output = _forward(tensors, neuron, keep_z, keep_state)
        _save_for_backward(ctx, tensors, neuron, keep_state, output)
        return output

    backward = staticmethod(once_differentiable(_differentiated_by(_backward)))  # type: ignore[assignment]


def _kernel(x: Tensor) -> Any:
    """What has `forward` and `backward` for the device and the dtype of `x`."""
    return cpu.kernel(x.dtype) if x.device.type == "cpu" else _cuda_kernel()


@functools.cache
def _cuda_kernel() -> ModuleType:
    from . import cuda  # it needs Triton, which comes with PyTorch for CUDA on Linux

    return cuda


@functools.cache
def _cuda(law: str) -> ModuleType | None:
    """The CUDA kernel, if it computes this law rightly here; else None, after a warning."""
    try:
        kernel = _cuda_kernel()
        if law not in kernel.KNOWN_LAWS:
            return None
        selftest.check_law(kernel, law, torch.empty(0, device="cuda"))
    except Exception as error:  # Triton is missing, cannot compile here (it says so in many ways), or is wrong
        build.warn_once(f"spiking neurons run on the slower eager kernel on CUDA: {error}")
        return None
    return kernel
