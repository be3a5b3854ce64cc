"""What all kernels share: the description of a neuron, and the order of neurons in memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .. import noise, parameters
from ..noise import NoiseLaw

RESETS = ("zero", "subtract", "none")
SWITCHES = ("detach_reset", "decay_input", "membrane_noise", "threshold_noise", "mean_field")  # of `Neuron`
VALUES = ("threshold", "decay", "scale", "reset_value")  # fields of `Neuron` that may be tensors, and learnt
ALL_BITS = 2 ** len(VALUES) - 1
MAX_RANK = 3  # nested loops over memory in fused kernels, such as batch, pixels, channels
MAX_NEURONS = 2**32  # of one step: the counter of the random generator has 32 bits for them
VERY_FAR = 1e30  # for a potential
Pair = tuple[Tensor | None, Tensor | None]
Values = Sequence[Tensor | None]  # of VALUES, where they are tensors
Gradients = tuple[Tensor | None, ...]  # of x, state and VALUES
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)
NO_SECOND_DERIVATIVE = (
    "spiking neurons have no second derivative, because their gradient is a surrogate; only the mean field has one "
    "(`with mean_field(net):`), in a network that is not compiled"
)


@dataclasses.dataclass(slots=True, eq=False)  # not frozen: that would double the time to make one, at every call
class Neuron:
    """The neurons of a layer, as kernels take them; see `models.functional.noisy_lif`.

    Where a neuron has fired, `reset` "zero" puts its potential at `reset_value`, and "subtract" takes that off; it is 0
    for "none". The potential leaks to 0, as another rest would be a shift of all potentials.

    `threshold`, `decay`, `scale` (of `law`) and `reset_value` are numbers, or tensors of the arithmetic: 0-d, or
    [C, 1, ...] for x [T, B, C, ...]. The scales of `law` and `surrogate` are numbers; `surrogate_scale` replaces that
    of `surrogate`.
    """

    law: NoiseLaw
    scale: float | Tensor
    decay: float | Tensor = 0.5
    threshold: float | Tensor = 1.0
    reset: str = "zero"
    detach_reset: bool = False
    decay_input: bool = False
    membrane_noise: bool = False
    threshold_noise: bool = False
    mean_field: bool = False
    surrogate: NoiseLaw | None = None
    surrogate_scale: Tensor | None = None
    reset_value: float | Tensor = 0.0

    # Plain loops: comprehensions and generators would take longer, at every call of a layer.
    def tensors(self) -> list[Tensor | None]:
        """Those of `VALUES` that are tensors, None for the others."""
        found: list[Tensor | None] = []
        for value in (self.threshold, self.decay, self.scale, self.reset_value):
            found.append(value if isinstance(value, Tensor) else None)
        return found

    def with_tensors(self, tensors: Values) -> "Neuron":
        """This neuron with other `tensors()`; None keeps the present value."""
        given: dict[str, Any] = {}
        for name, tensor in zip(VALUES, tensors):
            if tensor is not None:
                given[name] = tensor
        return dataclasses.replace(self, **given) if given else self

    def channel_bits(self) -> int:
        """A bit for each of `VALUES` that differs between channels, the first the lowest; if several differ, all.

        The Triton kernel has a variant for each value.
        """
        bits, bit = 0, 1
        for value in (self.threshold, self.decay, self.scale, self.reset_value):
            if isinstance(value, Tensor) and value.dim() > 0:
                bits = bit if bits == 0 else ALL_BITS
            bit *= 2
        return bits

    def charged(self, v: Tensor, current: Tensor) -> Tensor:
        """The potential after the leak and the input, without noise."""
        if self.decay_input:  # in this order, other libraries' neurons fire at the same ties
            return v + (current - v) * (1 - self.decay)
        return v * self.decay + current

    def after_reset(self, u: Tensor, fired: Tensor) -> Tensor:
        """The potential after the reset; `fired` is 0 or 1, or a probability in the mean field."""
        value = self.reset_value
        if self.reset == "zero":
            kept = torch.addcmul(u, u, fired, value=-1)
            if isinstance(value, Tensor):
                return kept + fired * value
            return kept if value == 0 else torch.add(kept, fired, alpha=value)
        if self.reset == "subtract":
            return u - fired * value if isinstance(value, Tensor) else torch.sub(u, fired, alpha=value)
        if self.reset == "none":
            return u
        raise ValueError(f"unknown reset {self.reset!r}; choose from {', '.join(RESETS)}")

    def above_threshold(self, u: Tensor) -> Tensor:
        """u - threshold; far below 0 for an infinite threshold, whose scale would have the gradient 0 * infinity."""
        z = u - self.threshold
        return torch.where(z < -VERY_FAR, -VERY_FAR, z)  # not `clamp`, whose gradient at NaN is 0

    def of_gradient(self) -> "Neuron":
        """This neuron with its surrogate, if it has one, as the law."""
        if self.surrogate is None:
            return self
        scale = self.surrogate.scale if self.surrogate_scale is None else self.surrogate_scale
        return dataclasses.replace(self, law=self.surrogate, scale=scale, surrogate=None, surrogate_scale=None)


class Saved(NamedTuple):
    """The tensors of a forward pass that the backward pass of a fused kernel reads."""

    x: Tensor | None  # None unless a learnt decay scales it, or the mean field is differentiated twice
    state: Tensor | None
    seeds: Tensor | None
    spikes: Tensor
    u: Tensor


class Affine(NamedTuple):
    """What makes currents of x [T, B, C, ...]: factor * x + shift (+ residual), as batch norm does.

    `factor`, `shift` and `mean`, that of x, are [C], in the dtype of the arithmetic; `residual` is as x. `of_residual`
    are factor, shift and mean by which the residual is normalised itself, if it is.
    """

    factor: Tensor
    shift: Tensor
    mean: Tensor
    residual: Tensor | None
    of_residual: tuple[Tensor, Tensor, Tensor] | None = None


class Kept(NamedTuple):
    """The tensors from which the backward pass of a fused kernel can compute everything else again."""

    x: Tensor  # [T, B, ...], or expanded to it
    state: Tensor | None
    seeds: Tensor | None
    affine: Affine | None
    # These need not be computed again where they are kept. Of spikes alone, without noise of the membrane, u follows.
    spikes: Tensor | None = None
    u: Tensor | None = None


def laws_by_name() -> dict[str, type[NoiseLaw]]:
    """The laws of `models.noise`, by the names of their classes; ArgumentError for a name that two of them have."""
    return noise.by_name(noise.LAWS)


def check_values(neuron: Neuron, x: Tensor) -> None:
    """Raise OutOfRange if training has taken a tensor out of its range; checked on the CPU only."""
    if x.device.type == "cpu":  # elsewhere, this would have to wait for the device
        for name, tensor in zip(VALUES, neuron.tensors()):
            if tensor is not None:
                if name == "reset_value":  # by the name that users know
                    name = "v_reset" if neuron.reset == "zero" else "reset_by"
                parameters.check_range(name, tensor)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of potentials and densities, for inputs of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step_of(x: Tensor) -> Tensor:
    """The first step [B, ...] of x [T, B, ...]; uninitialised if T = 0."""
    return x[0] if x.shape[0] > 0 else x.new_empty(x.shape[1:])


def _is_plain(x: Tensor) -> bool:
    """Whether `x` has no gaps and no symbols for sizes, as a subclass may: the common case, and faster."""
    return type(x) in (Tensor, nn.Parameter) and x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """`x` [T, B, ...], copied if its steps have gaps or overlaps in memory, or need more than `MAX_RANK` loops."""
    x = x.resolve_neg()
    if _is_plain(x):
        return x
    step = step_of(x)
    if step.is_contiguous() or step.is_contiguous(memory_format=torch.channels_last):  # without the loops below
        return x
    order = memory_order(step.shape, step.stride())
    return x if order and len(order[0]) <= MAX_RANK else x.contiguous()


def empty_sequence(step: Tensor, timesteps: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised [T, B, ...] whose steps have the memory format of `step` [B, ...]."""
    # `empty_like(x)` would not do: direct coding expands one image over time with stride 0.
    like = torch.empty_like(step, dtype=dtype)
    return like.new_empty_strided((timesteps, *like.shape), (like.numel(), *like.stride()))


def stacked(steps: list[Tensor], like: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, B, ...] of steps [B, ...], which have the memory format of `like` [B, ...] in it."""
    if not steps:
        return empty_sequence(like, 0, dtype)
    if like.is_contiguous():
        return torch.stack(steps)
    strides = torch.empty_like(like).stride()
    order = sorted(range(like.dim()), key=lambda dim: -strides[dim])  # outermost first
    sequence = torch.stack([step.permute(order) for step in steps])
    return sequence.permute(0, *(1 + order.index(dim) for dim in range(like.dim())))


def empty_outputs(x: Tensor, keep_u: bool, keep_state: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised spikes [T, B, ...], last potential [B, ...] and u [T, B, ...]; empty where not kept."""
    dtype = arithmetic_dtype(x.dtype)
    if _is_plain(x):
        u = torch.empty_like(x, dtype=dtype) if keep_u else x.new_empty(0, dtype=dtype)
        last = x.new_empty(x.shape[1:] if keep_state else 0, dtype=dtype)
        return torch.empty_like(x), last, u
    step = step_of(x)
    last = torch.empty_like(step, dtype=dtype) if keep_state else step.new_empty(0, dtype=dtype)
    u = empty_sequence(step, x.shape[0], dtype) if keep_u else step.new_empty(0, dtype=dtype)
    return empty_sequence(step, x.shape[0], x.dtype), last, u  # not len(x), which makes a symbolic length a number


def empty_gradients(spikes: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of x [T, B, ...] and of the state [B, ...] (no elements if there was none)."""
    return torch.empty_like(spikes), u.new_empty(0) if state is None else torch.empty_like(step_of(u))


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """How the neurons of one step [B, ...] lie in memory: (sizes, index_strides), or None for gaps or overlaps.

    They describe the fewest nested loops, outermost first, that visit the neurons in memory order: dimension d has
    sizes[d] neurons, whose row-major indices in [B, ...] are index_strides[d] apart.
    """
    index_strides: list[int] = []
    index_stride = 1
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


def laid_out_as(template: Tensor, tensor: MaybeTensor, dtype: torch.dtype | None = None) -> MaybeTensor:
    """`tensor`, copied unless it has the strides and the dtype of `template`; None for None."""
    if tensor is None:
        return None
    dtype, tensor = dtype or template.dtype, tensor.resolve_neg()  # kernels read memory, and negation may be lazy
    if tensor.stride() == template.stride() and tensor.dtype == dtype:
        return tensor
    return torch.empty_like(template, dtype=dtype).copy_(tensor)


def laid_out_over_time(x: Tensor, tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`tensor` [T, B, ...], copied unless its steps follow each other in memory, each in the layout of a step of x."""
    if tensor is None:
        return None
    step, tensor = x[0], tensor.resolve_neg()
    if tensor.dtype == dtype and tensor.stride() == (step.numel(), *step.stride()):
        return tensor
    laid_out = torch.empty_strided(x.shape, (step.numel(), *step.stride()), dtype=dtype, device=x.device)
    return laid_out.copy_(tensor)


def mode_mark(neuron: Neuron, like: Tensor) -> Tensor:
    """A few bytes whose shape encodes the mode.

    Saved first, because PyTorch's checkpoint compares the shapes of only as many tensors as its first run saved, and in
    another mode those may agree.
    """
    shape = (1 + neuron.membrane_noise, 1 + neuron.threshold_noise, 1 + neuron.mean_field)
    return like.new_empty(shape, dtype=torch.uint8)  # a type that hooks do not round


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What a kernel saved for its backward pass; a RuntimeError with advice if it was changed in place."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "the spikes of a neuron, its input, its state or a parameter were changed in place, but the gradient needs "
            "them as they were: use inplace=False in the layer after the neuron, or change a copy (spikes.clone())"
        ) from error


def in_batches(grads: Pair) -> bool:
    """Whether gradients come in batches, by `is_grads_batched`: PyTorch then uses an older vmap than `torch.func`."""
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def refuse_graph_of_batches(grads: Pair) -> None:
    """Raise RuntimeError if gradients come in batches, whose graph would silently be lost."""
    if in_batches(grads):
        raise RuntimeError(
            "batched gradients (is_grads_batched or vectorize=True) with create_graph=True are not supported for this "
            "spiking neuron: compute them one by one, or leave out create_graph"
        )


class Once(torch.autograd.Function):
    """`function(*tensors)`, itself a derivative: differentiating it again is an error, not a silent zero.

    A tensor that the derivative depends on must be among them, and require a gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


class OnceOneByOne(Once):
    """`Once`, for a function that cannot run under `torch.vmap`: it is called for one sample after the other."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        results = []
        for sample in range(info.batch_size):
            one = [t if dim is None or t is None else t.select(dim, sample) for t, dim in zip(tensors, in_dims[1:])]
            results.append(OnceOneByOne.apply(function, *one))
        stacked = tuple(None if outputs[0] is None else torch.stack(outputs) for outputs in zip(*results))
        return stacked, tuple(None if output is None else 0 for output in stacked)


def backward_tensors(grads: Pair, saved: Saved) -> dict[str, Any]:
    """The tensors that a kernel's `backward` reads and those it is to write, by name, laid out as the spikes."""
    spikes = saved.spikes
    u = laid_out_as(spikes, saved.u, saved.u.dtype)  # hooks on saved tensors may have changed it
    step = u[0]
    grad_x, grad_state = empty_gradients(spikes, u, saved.state)
    return dict(
        x=laid_out_as(spikes, saved.x),
        state=laid_out_as(step, saved.state),
        seeds=saved.seeds,
        spikes=spikes,
        u=u,
        grad_spikes=laid_out_as(spikes, grads[0]),
        grad_last=laid_out_as(step, grads[1]),
        grad_x=grad_x,
        grad_state=grad_state,
    )
