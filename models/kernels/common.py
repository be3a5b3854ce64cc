"""What all kernels share: the description of a neuron, and the order of neurons in memory."""

from typing import NamedTuple

import torch

LAWS = ("Gaussian", "Logistic", "Triangular", "Uniform", "Cauchy")  # of the fused kernels, in the order of cpu.c
RESETS = ("zero", "subtract", "none")
MAX_RANK = 3  # loops over memory that fused kernels know, such as batch, pixels, channels
MAX_NEURONS = 2**32  # of one step: the counter of the random generator has 32 bits for them


class Dynamics(NamedTuple):
    """What a kernel has to know of a neuron besides its tensors and its law."""

    threshold: float
    reset: str
    detach_reset: bool
    decay_input: bool
    membrane_noise: bool
    threshold_noise: bool
    mean_field: bool


def arithmetic_dtype(dtype):
    """The dtype of potentials and densities, for inputs of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def after_reset(u, fired, reset, threshold):
    """The potential after the reset; `fired` is 0 or 1, or a probability in the mean field."""
    if reset == "zero":
        return torch.addcmul(u, u, fired, value=-1)
    if reset == "subtract":
        return torch.sub(u, fired, alpha=threshold)
    return u


def step_of(x):
    """The first step [B, ...] of x [T, B, ...]; where there is none, an empty one."""
    return x[0] if len(x) else x.new_empty(x.shape[1:])


def dense(x):
    """`x` [T, B, ...], copied if its steps have gaps or overlaps in memory, or need more than `MAX_RANK` loops."""
    step, x = step_of(x), x.resolve_neg()
    if step.is_contiguous() or step.is_contiguous(memory_format=torch.channels_last):  # without the loops below
        return x
    order = memory_order(step.shape, step.stride())
    return x if order and len(order[0]) <= MAX_RANK else x.contiguous()


def empty_sequence(step, timesteps, dtype):
    """Uninitialised [T, B, ...] whose steps have the memory format of `step` [B, ...].

    `empty_like(x)` would not do: direct coding expands one image over time with stride 0.
    """
    like = torch.empty_like(step, dtype=dtype)
    return like.new_empty_strided((timesteps, *like.shape), (like.numel(), *like.stride()))


def empty_outputs(x, keep_z, keep_state):
    """Uninitialised spikes [T, B, ...], last potential [B, ...] and z [T, B, ...] for a dense x; not kept is empty."""
    step, dtype = step_of(x), arithmetic_dtype(x.dtype)
    last = torch.empty_like(step, dtype=dtype) if keep_state else step.new_empty(0, dtype=dtype)
    z = empty_sequence(step, len(x), dtype) if keep_z else step.new_empty(0, dtype=dtype)
    return empty_sequence(step, len(x), x.dtype), last, z


def empty_gradients(spikes, z, state):
    """Uninitialised gradients of x [T, B, ...] and of the state [B, ...], which is empty where there was none."""
    return torch.empty_like(spikes), z.new_empty(0) if state is None else torch.empty_like(step_of(z))


def memory_order(shape, strides):
    """How the neurons of one step [B, ...] lie in memory, by its shape and strides.

    Returns:
        None if there are gaps or overlaps; else (sizes, index_strides) of the fewest nested loops,
        outermost first, that visit the neurons as they lie in memory: dimension d has sizes[d]
        neurons, whose row-major indices in [B, ...] are index_strides[d] apart.
    """
    index_strides, index_stride = [], 1
    for size in reversed(shape):
        index_strides.insert(0, index_stride)
        index_stride *= size
    dims = [dim for dim in zip(strides, shape, index_strides) if dim[1] != 1]
    sizes, strides, expected = [1], [1], 1
    for stride, size, index_stride in sorted(dims, key=lambda dim: dim[0]):  # innermost first
        if stride != expected:
            return None
        expected *= size
        if index_stride == sizes[0] * strides[0]:
            sizes[0] *= size
        elif sizes == [1]:
            sizes, strides = [size], [index_stride]
        else:
            sizes.insert(0, size)
            strides.insert(0, index_stride)
    return sizes, strides


def laid_out_as(template, tensor, dtype=None):
    """`tensor` with the strides, and the dtype, of `template`; itself if it has them; None for None."""
    if tensor is None:
        return None
    dtype, tensor = dtype or template.dtype, tensor.resolve_neg()  # kernels read memory, where a negation may be due
    if tensor.stride() == template.stride() and tensor.dtype == dtype:
        return tensor
    return torch.empty_like(template, dtype=dtype).copy_(tensor)
