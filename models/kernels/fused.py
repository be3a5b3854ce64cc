"""The fused kernels as custom operators of PyTorch, with their gradient; opaque to torch.compile.

The namespace of the operators comes from the name of this package, so that copies of it under other
names live beside each other.
"""

import functools
import os

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .. import noise
from . import build, common, cpu
from .common import Dynamics, dense, empty_gradients, empty_outputs


def _library():
    """A namespace for the operators; with a number where this package is imported a second time."""
    name, taken = "nsnn_" + __package__.replace(".", "_"), None
    for number in range(1, 100):
        try:
            return torch.library.Library(name if number == 1 else f"{name}_{number}", "DEF")
        except RuntimeError as error:
            taken = error
    raise taken


LIBRARY = _library()
LAWS = {getattr(noise, name): name for name in common.LAWS}


def serves(x, law):
    """Whether a fused kernel runs these neurons: a law of this package, not a subclass of one, and a kernel here."""
    return type(law) in LAWS and x.shape[1:].numel() <= common.MAX_NEURONS and _has_kernel(x.device.type, x.dtype)


def _has_kernel(device_type, dtype):
    if os.environ.get("NSNN_KERNELS") == "eager":
        return False
    if device_type == "cuda":
        return _cuda() is not None
    return device_type == "cpu" and cpu.kernel(torch.float32 if dtype == torch.float16 else dtype) is not None


# What `torch.compiler.assume_constant_result` does, without the import of the compiler, which takes as long as torch's.
_has_kernel._dynamo_marked_constant = True


def lif_sequence(x, state, decay, scale, law, dynamics, keep_state=True, surrogate=None):
    """Run one layer of neurons over a sequence; the arguments are those of `eager.lif_sequence`.

    Without `keep_state` the second result is empty, and the time to write it is saved.
    """
    if x.device.type == "cpu" and x.dtype == torch.float16:  # C has no such type everywhere
        spikes, last = lif_sequence(x.float(), state, decay, scale, law, dynamics, keep_state, surrogate)
        return spikes.to(x.dtype), last
    learnt_decay = decay.to(x.device) if isinstance(decay, Tensor) else None
    tensors = (x, state, learnt_decay, scale if scale is None else scale.to(x.device))
    traced = torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or is_in_torch_dispatch_mode()
    seeds = None
    if dynamics.membrane_noise or dynamics.threshold_noise:
        seeds = random_seeds(x.detach()[:, :0]) if traced else noise.draw_seeds(len(x), x.device)
    options = (
        0.0 if learnt_decay is not None else decay,
        LAWS[type(law)],
        law.scale,
        law.loc,
        *dynamics,
        *((None, 0.0, 0.0) if surrogate is None else (LAWS[type(surrogate)], surrogate.scale, surrogate.loc)),
        torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors),
        keep_state,
    )
    if traced:
        spikes, last, _ = lif_forward(*tensors, seeds, *options)
    else:
        spikes, last, _ = _Direct.apply(*tensors, seeds, options)
    return spikes, last


# The numbers and switches of a layer: decay and scale (where they are not learnt), law and loc, and `Dynamics`.
SETTINGS = (
    "float decay, str law, float scale, float loc, float threshold, str reset, bool detach_reset, bool decay_input, "
    "bool membrane_noise, bool threshold_noise, bool mean_field"
)
# The law whose density is the gradient, where it is not that of the noise.
SURROGATE = "str? surrogate, float surrogate_scale, float surrogate_loc"


def _operator(schema, function, tags=()):
    """Define an operator by an implementation for CPU and CUDA; returned is what calls it.

    Not `torch.library.custom_op`: its wrappers in Python take 150 microseconds per call.
    """
    LIBRARY.define(schema, tags=tags)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, function, key)
    return getattr(getattr(torch.ops, LIBRARY.ns), name).default


def _fake(operator):
    """Decorator: shapes, strides and dtypes of an operator's results, for torch.compile."""
    return torch.library.register_fake(operator, lib=LIBRARY)


def _random_seeds(x):
    """A seed for each step of x [T, ...], int64 [T], from the generator that applies when it runs (`models.noise`)."""
    return noise.draw_seeds(len(x), x.device)


random_seeds = _operator("random_seeds(Tensor x) -> Tensor", _random_seeds, (torch.Tag.nondeterministic_seeded,))


@_fake(random_seeds)
def _(x):
    return x.new_empty(len(x), dtype=torch.int64)


def _lif_forward(x, state, learnt_decay, learnt_scale, seeds, *options):
    """Spikes [T, B, ...], the last potential [B, ...], and z = u - threshold [T, B, ...]; what is not kept is empty."""
    *settings, _, _, _, keep_z, keep_state = options
    if x.numel() == 0:
        spikes, last, z = empty_outputs(dense(x), keep_z, keep_state)
        if keep_state:
            last = last.zero_() if state is None else last.copy_(state)
        return spikes, last, z
    neuron = _neuron(learnt_decay, learnt_scale, settings)
    return _kernel(x).forward(dense(x), state, seeds, *neuron, keep_z, keep_state)


lif_forward = _operator(
    "lif_forward(Tensor x, Tensor? state, Tensor? learnt_decay, Tensor? learnt_scale, Tensor? seeds, "
    f"{SETTINGS}, {SURROGATE}, bool keep_z, bool keep_state) -> (Tensor, Tensor, Tensor)",
    _lif_forward,
)


@_fake(lif_forward)
def _(x, state, learnt_decay, learnt_scale, seeds, *options):
    return empty_outputs(dense(x), *options[-2:])


def _lif_backward(grad_spikes, grad_last, x, state, learnt_decay, learnt_scale, seeds, spikes, z, *options):
    """Gradients of x [T, B, ...], of the state [B, ...] (empty without one), of decay and scale (None, None: 0)."""
    *settings, learns_decay, learns_scale = options
    if spikes.numel() == 0:
        grad_x, grad_state = empty_gradients(spikes, z, state)
        if state is not None:
            grad_state = grad_state.zero_() if grad_last is None else grad_state.copy_(grad_last)
        return grad_x, grad_state, None, None
    neuron = _neuron(learnt_decay, learnt_scale, settings)
    return _kernel(spikes).backward(
        grad_spikes, grad_last, x, state, seeds, spikes, z, *neuron, learns_decay, learns_scale
    )


def _backward_in_tensors(*inputs):
    """As `_lif_backward`; an operator has tensors for all results."""
    grad_x, grad_state, *grads = _lif_backward(*inputs)
    if grads == [None, None]:
        grads = [grad_x.new_zeros((), dtype=common.arithmetic_dtype(grad_x.dtype)) for _ in grads]
    return grad_x, grad_state, *grads


lif_backward = _operator(
    "lif_backward(Tensor? grad_spikes, Tensor? grad_last, Tensor? x, Tensor? state, Tensor? learnt_decay, "
    f"Tensor? learnt_scale, Tensor? seeds, Tensor spikes, Tensor z, {SETTINGS}, bool learns_decay, bool learns_scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward_in_tensors,
)


@_fake(lif_backward)
def _(grad_spikes, grad_last, x, state, learnt_decay, learnt_scale, seeds, spikes, z, *options):
    return *empty_gradients(spikes, z, state), z.new_empty(()), z.new_empty(())


def _neuron(learnt_decay, learnt_scale, settings):
    """(decay, scale, law, loc, dynamics), as the kernels take them."""
    decay, law, scale, loc, *dynamics = settings
    decay = decay if learnt_decay is None else learnt_decay
    scale = scale if learnt_scale is None else learnt_scale
    return decay, scale, law, loc, Dynamics(*dynamics)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("spiking neurons are once differentiable: there is no gradient of their gradient")


torch.library.register_autograd(lif_backward, _refuse_second_derivative, lib=LIBRARY)


def _save_for_backward(ctx, inputs, output):
    x, state, learnt_decay, learnt_scale, seeds, *settings, surrogate, scale, loc, _keep_z, ctx.keep_state = inputs
    spikes, _, z = output
    *_, dynamics = _neuron(learnt_decay, learnt_scale, settings)
    if surrogate is not None:
        decay, _, _, _, *switches = settings
        settings, learnt_scale = [decay, surrogate, scale, loc, *switches], None
    ctx.settings = settings
    needs_x = dynamics.decay_input and learnt_decay is not None
    ctx.save_for_backward(x if needs_x else None, state, learnt_decay, learnt_scale, seeds, spikes, z)
    ctx.set_materialize_grads(False)


def _backward_by(backward):
    """The backward function of autograd, by the operator `lif_backward` or by its implementation."""

    def _backward(ctx, grad_spikes, grad_last, _):
        needed = ctx.needs_input_grad[:4]  # x, state, decay, scale
        grad_last = grad_last if ctx.keep_state else None
        grads = backward(grad_spikes, grad_last, *ctx.saved_tensors, *ctx.settings, *needed[2:])
        others = len(ctx.needs_input_grad) - len(needed)
        return *(grad if needs else None for grad, needs in zip(grads, needed)), *[None] * others

    return _backward


torch.library.register_autograd(lif_forward, _backward_by(lif_backward), setup_context=_save_for_backward, lib=LIBRARY)


class _Direct(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, which would cost small layers more than their neurons."""

    @staticmethod
    def forward(ctx, *inputs):  # not by setup_context, with which PyTorch inspects the signature at every call
        *tensors, options = inputs  # one tuple, since each argument of its own would cost time
        output = _lif_forward(*tensors, *options)
        _save_for_backward(ctx, (*tensors, *options), output)
        return output

    backward = staticmethod(once_differentiable(_backward_by(_lif_backward)))


def _kernel(x):
    """What has `forward` and `backward` for the device and the dtype of `x`."""
    return _cuda() if x.device.type == "cuda" else cpu.kernel(x.dtype)


@functools.cache
def _cuda():
    """The CUDA kernel; None, after a warning, without Triton (which comes with PyTorch for CUDA on Linux)."""
    try:
        from . import cuda

        cuda.random_words(torch.empty(1, 1, 1, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda"))
    except Exception as error:  # Triton is not there, or cannot compile here, which it says in many ways
        build.warn_once(f"spiking neurons run on the slower eager kernel on CUDA, for want of Triton: {error}")
        return None
    return cuda
