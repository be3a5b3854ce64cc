"""The fused kernels as custom operators of PyTorch, with their gradient; opaque to torch.compile.

Their namespace comes from the name of this package, so that copies of it under other names can coexist.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import checkpointing, noise
from ..parameters import ArgumentError
from . import build, common, cpu, eager, selftest
from .common import (
    NO_SECOND_DERIVATIVE,
    SWITCHES,
    VALUES,
    Gradients,
    Neuron,
    Pair,
    Saved,
    Values,
    dense,
    empty_gradients,
    empty_outputs,
    laws_by_name,
)


def _library() -> torch.library.Library:
    """A namespace for the operators; with a number if this package is imported again."""
    name = "nsnn_" + __package__.replace(".", "_")
    for number in range(1, 100):
        with contextlib.suppress(RuntimeError):  # the name is taken
            return torch.library.Library(name if number == 1 else f"{name}_{number}", "DEF")
    raise RuntimeError(f"PyTorch has no free namespace {name} for the operators of spiking neurons")


LIBRARY = _library()
CHOICES = ("auto", "eager")  # of the environment variable NSNN_KERNELS; auto: fused kernels wherever they can be used


def serves(x: Tensor, law: noise.NoiseLaw, channel_bits: int = 0) -> bool:
    """Whether there is a fused kernel for the device and dtype of `x` that knows the law.

    Args:
        channel_bits: which values differ between channels (see `Neuron.channel_bits`).
    """
    kind = type(law)  # not a subclass: its functions may be others
    if kind not in noise.LAWS:
        return False
    # `numel` makes symbols numbers; compiled, the operator itself refuses too many neurons.
    if not torch.compiler.is_compiling() and x.shape[1:].numel() > common.MAX_NEURONS:
        return False
    return _has_kernel(x.device.type, x.dtype, kind, channel_bits)


def has_norm(x: Tensor) -> bool:
    """Whether the fused kernel for the device and dtype of `x`, if there is one, knows batch norm and packed spikes."""
    if x.device.type == "cuda":
        return x.is_floating_point() and x.element_size() > 1 and not _is_off() and _cuda_norm()
    return x.device.type == "cpu" and x.dtype in cpu.INPUT_BITS


def _is_off() -> bool:
    """Whether the environment asks for the eager kernel."""
    choice = os.environ.get("NSNN_KERNELS") or "auto"
    if choice not in CHOICES:
        raise ArgumentError(f"NSNN_KERNELS must be {' or '.join(CHOICES)}, got {choice!r}")
    return choice == "eager"


def _has_kernel(device_type: str, dtype: torch.dtype, law: type[noise.NoiseLaw], channel_bits: int) -> bool:
    if _is_off():
        return False
    if device_type == "cuda":
        return _cuda(law, channel_bits)
    if device_type != "cpu":
        return False
    kernel = cpu.kernel(torch.float32 if dtype == torch.float16 else dtype, channel_bits > 0)
    return kernel is not None and law in kernel.laws


# What `torch.compiler.assume_constant_result` does, but without importing the compiler, which takes as long as torch.
_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lif_sequence(
    x: Tensor, state: Tensor | None, neuron: Neuron, keep_state: bool, keep_u: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `eager.lif_sequence`; without `keep_state` and `keep_u`, the second and the third result have no elements."""
    if x.device.type == "cpu" and x.dtype == torch.float16:  # C has no such type everywhere
        spikes, last, u = lif_sequence(x.float(), state, neuron, keep_state, keep_u)
        return spikes.to(x.dtype), last, u
    tensors = (x, state, *neuron.tensors())
    saves_u = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    saves_u |= keep_u
    traced = torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or is_watched()
    saves_u |= traced and _is_recorded()
    seeds = None
    if neuron.membrane_noise or neuron.threshold_noise:
        seeds = random_seeds(x.detach()[:, :0]) if traced else noise.draw_seeds(len(x), x.device)
    if traced:
        others = (neuron.surrogate_scale, seeds, saves_u, keep_state)
        spikes, last, u = lif_forward(*tensors, *others, **flattened(neuron))
    else:
        spikes, last, u = Direct.apply(*tensors, neuron.surrogate_scale, seeds, (neuron, saves_u, keep_state))
    return spikes, last, u.detach() if keep_u else u


def is_watched() -> bool:
    """Whether a dispatch mode or a tracer of this thread must see the operator."""
    # PyTorch's own `is_in_torch_dispatch_mode` is one flag for all threads.
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def _is_recorded() -> bool:
    """Whether what runs becomes a program, which may later be run with gradients that nothing asks for now."""
    if torch.compiler.is_compiling():
        return getattr(torch.compiler, "is_exporting", bool)()  # from torch 2.7 on; bool() is False
    make_fx = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    return torch._C._is_tracing() or (make_fx is not None and make_fx.get_proxy_mode() is not None)


def refuse_recording() -> None:
    """Raise RuntimeError where a backward pass becomes a program, which would not have what a kernel writes."""
    if _is_recorded():
        raise RuntimeError("a traced backward pass of spiking neurons needs their forward pass in the same trace")


# A `Neuron` as arguments of an operator: its tensors, and the rest by name.
TENSORS = ", ".join(f"Tensor? {name}_now" for name in VALUES)
NEURON = (
    "*, str law, float scale, float loc, str? surrogate, float surrogate_scale, float surrogate_loc, float decay, "
    "float threshold, float reset_value, str reset, "
) + ", ".join(f"bool {switch}" for switch in SWITCHES)


def flattened(neuron: Neuron) -> dict[str, Any]:
    """A neuron as arguments of an operator, without its tensors."""
    law, surrogate = neuron.law, neuron.surrogate
    return dict(
        law=type(law).__name__,
        scale=law.scale,
        loc=law.loc,
        surrogate=None if surrogate is None else type(surrogate).__name__,
        surrogate_scale=0.0 if surrogate is None else surrogate.scale,
        surrogate_loc=0.0 if surrogate is None else surrogate.loc,
        decay=0.0 if isinstance(neuron.decay, Tensor) else neuron.decay,
        threshold=0.0 if isinstance(neuron.threshold, Tensor) else neuron.threshold,
        reset_value=0.0 if isinstance(neuron.reset_value, Tensor) else neuron.reset_value,
        reset=neuron.reset,
        **{switch: getattr(neuron, switch) for switch in SWITCHES},
    )


def _rebuilt(
    law: str, scale: float, loc: float, surrogate: str | None, surrogate_scale: float, surrogate_loc: float, **rest: Any
) -> Neuron:
    """The neuron that was `flattened`."""
    laws = laws_by_name()
    gradient_law = None if surrogate is None else laws[surrogate](surrogate_scale, surrogate_loc)
    return Neuron(laws[law](scale, loc), scale, surrogate=gradient_law, **rest)


def _operator(schema: str, function: Callable[..., Any], tags: tuple[torch.Tag, ...] = ()) -> Any:
    """Define an operator with one implementation for CPU and CUDA, and return what calls it.

    `torch.library.custom_op` would do it, but its wrappers in Python take 150 microseconds per call.
    """
    LIBRARY.define(schema, tags=tags)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, function, key)
    return getattr(getattr(torch.ops, LIBRARY.ns), name).default


def _random_seeds(x: Tensor) -> Tensor:
    """A seed for each step of x [T, ...], int64 [T], from the generator that applies when it runs (`models.noise`)."""
    checkpointing.refuse_compiled_checkpoint()
    return noise.draw_seeds(len(x), x.device)


random_seeds = _operator("random_seeds(Tensor x) -> Tensor", _random_seeds, (torch.Tag.nondeterministic_seeded,))


@torch.library.register_fake(random_seeds, lib=LIBRARY)
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


def _forward(
    x: Tensor, state: Tensor | None, seeds: Tensor | None, neuron: Neuron, keep_u: bool, keep_state: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.Kernel.forward`, for any x."""
    if x.numel() > x.shape[0] * common.MAX_NEURONS:
        raise ArgumentError(f"a fused kernel runs up to {common.MAX_NEURONS} neurons; NSNN_KERNELS=eager runs more")
    if x.numel() > 0:
        return kernel_of(x, neuron.channel_bits()).forward(dense(x), state, seeds, neuron, keep_u, keep_state)
    spikes, last, u = empty_outputs(dense(x), keep_u, keep_state)
    if keep_state:
        last = last.zero_() if state is None else last.copy_(state)
    return spikes, last, u


class _Inputs(NamedTuple):
    """The inputs of `lif_forward` in the order of its schema, without the `flattened` neuron."""

    x: Tensor
    state: Tensor | None
    threshold: Tensor | None
    decay: Tensor | None
    scale: Tensor | None
    reset_value: Tensor | None
    surrogate_scale: Tensor | None
    seeds: Tensor | None
    keep_u: bool
    keep_state: bool


def _forward_of_operator(*inputs: Any, **neuron: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = _Inputs(*inputs)
    rebuilt = _rebuilt(**neuron).with_tensors((given.threshold, given.decay, given.scale, given.reset_value))
    rebuilt.surrogate_scale = given.surrogate_scale
    return _forward(given.x, given.state, given.seeds, rebuilt, given.keep_u, given.keep_state)


lif_forward = _operator(
    f"lif_forward(Tensor x, Tensor? state, {TENSORS}, Tensor? surrogate_scale_now, Tensor? seeds, bool keep_u, "
    f"bool keep_state, {NEURON}) -> (Tensor, Tensor, Tensor)",
    _forward_of_operator,
)


@torch.library.register_fake(lif_forward, lib=LIBRARY)
def _(*inputs: Any, **neuron: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = _Inputs(*inputs)
    return empty_outputs(dense(given.x), given.keep_u, given.keep_state)


def _backward(grads: Pair, values: Values, saved: Saved, neuron: Neuron, learns: Sequence[bool]) -> Gradients:
    """As `cpu.Kernel.backward`, for any spikes; `values` are the tensors of the neuron."""
    if saved.x is not None and not (neuron.decay_input and learns[VALUES.index("decay")]):
        saved = saved._replace(x=None)  # x is not needed: do not copy it into the layout of the spikes
    if saved.spikes.numel() > 0:
        neuron = neuron.with_tensors(values)
        return kernel_of(saved.spikes, neuron.channel_bits()).backward(grads, saved, neuron, learns)
    grad_x, grad_state = empty_gradients(saved.spikes, saved.u, saved.state)
    if saved.state is not None:
        grad_state = grad_state.zero_() if grads[1] is None else grad_state.copy_(grads[1])
    nothing = [torch.zeros_like(v) if v is not None and learnt else None for v, learnt in zip(values, learns)]
    return grad_x, grad_state, *nothing


def _backward_of_operator(*tensors: Any, learns: Sequence[bool], **neuron: Any) -> tuple[Tensor, ...]:
    """As `_backward`, but with zeros for None: the results of an operator are tensors."""
    grads, values, saved = _parted(tensors)
    results = _backward(grads, values, saved, _rebuilt(**neuron), learns)
    shapes = [(), (), *_gradient_shapes(values, learns)]
    return tuple(saved.u.new_zeros(shape) if grad is None else grad for grad, shape in zip(results, shapes))


def _parted(tensors: tuple[Any, ...]) -> tuple[Pair, Values, Saved]:
    """Split the operator's tensors into incoming gradients, values of the neuron, and saved tensors."""
    end = 2 + len(VALUES)
    return (tensors[0], tensors[1]), tensors[2:end], Saved(*tensors[end:])


def _gradient_shapes(values: Values, learns: Sequence[bool]) -> list[Sequence[int]]:
    """Shapes of the gradients of the values, for the operator: 0-d where none is wanted."""
    return [value.shape if value is not None and wanted else () for value, wanted in zip(values, learns)]


lif_backward = _operator(
    f"lif_backward(Tensor? grad_spikes, Tensor? grad_last, {TENSORS}, Tensor? x, Tensor? state, Tensor? seeds, "
    f"Tensor spikes, Tensor u, {NEURON}, bool[] learns) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_of_operator,
)


@torch.library.register_fake(lif_backward, lib=LIBRARY)
def _(*tensors: Any, learns: Sequence[bool], **neuron: Any) -> tuple[Tensor, ...]:
    _, values, saved = _parted(tensors)
    grads = [saved.u.new_empty(shape) for shape in _gradient_shapes(values, learns)]
    return *empty_gradients(saved.spikes, saved.u, saved.state), *grads


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


torch.library.register_autograd(lif_backward, _refuse_second_derivative, lib=LIBRARY)


def _save_for_backward(ctx: Any, given: _Inputs, neuron: Neuron, output: tuple[Tensor, ...]) -> None:
    spikes, _, u = output
    ctx.neuron, ctx.keep_state, ctx.seeds = neuron.of_gradient(), given.keep_state, given.seeds
    x = given.x if neuron.mean_field or neuron.decay_input and given.decay is not None else None
    scale = given.scale if neuron.surrogate is None else given.surrogate_scale
    mark = common.mode_mark(neuron, u) if any(ctx.needs_input_grad) else None
    saved = Saved(x, given.state, given.seeds, spikes, u)
    ctx.save_for_backward(mark, given.threshold, given.decay, scale, given.reset_value, *saved)
    ctx.set_materialize_grads(False)


def _set_up(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, ...]) -> None:
    _save_for_backward(ctx, _Inputs(*inputs), _rebuilt(**keyword_only_inputs), output)


def _differentiated_by(backward: Callable[..., Sequence[Tensor | None]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward function of autograd, by `_backward_again` or by the operator."""

    def differentiate(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[: 2 + len(VALUES)]  # x, state and the values
        outer = (outer[0], outer[1] if ctx.keep_state else None)  # of spikes and last; u is not for users
        tensors = common.saved_tensors(ctx)[1:]  # without the mark
        values = tensors[: len(VALUES)]
        saved = Saved(*tensors[len(VALUES) :])
        checkpointing.check_same_noise(ctx.seeds, saved.seeds)
        grads = backward(outer, values, saved, ctx.neuron, needed[2:])
        others = len(ctx.needs_input_grad) - len(needed)
        return *(grad if needs else None for grad, needs in zip(grads, needed)), *[None] * others

    return differentiate


def _backward_by_operator(
    grads: Pair, values: Values, saved: Saved, neuron: Neuron, learns: Sequence[bool]
) -> tuple[Tensor, ...]:
    return lif_backward(*grads, *values, *saved, learns=list(learns), **flattened(neuron))


torch.library.register_autograd(
    lif_forward, _differentiated_by(_backward_by_operator), setup_context=_set_up, lib=LIBRARY
)


def _backward_again(
    grads: Pair, values: Values, saved: Saved, neuron: Neuron, learns: Sequence[bool]
) -> Sequence[Tensor | None]:
    """As `_backward`, also where its result is to be differentiated again, or gradients come in batches."""
    if neuron.mean_field and torch.is_grad_enabled():
        assert saved.x is not None  # kept in the mean field
        return eager.gradients_of_plain(saved.x, saved.state, neuron.with_tensors(values), grads)
    refuse_recording()
    if common.in_batches(grads):
        return _backward_by_operator(grads, values, saved, neuron, learns)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():

        def differentiate(spikes: Tensor, *grads: Any) -> Gradients:
            return _backward(grads, values, saved, neuron, learns)

        return common.OnceOneByOne.apply(differentiate, saved.spikes, *grads)
    return _backward(grads, values, saved, neuron, learns)


class Direct(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, which would cost small layers more than their neurons."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        state: Tensor | None,
        threshold: Tensor | None,
        decay: Tensor | None,
        scale: Tensor | None,
        reset_value: Tensor | None,
        surrogate_scale: Tensor | None,
        seeds: Tensor | None,
        settings: tuple[Neuron, bool, bool],
    ) -> tuple[Tensor, ...]:
        # Not by setup_context, with which PyTorch inspects the signature at every call; and one tuple for the neuron
        # and the switches, since each separate argument would cost time.
        neuron, keep_u, keep_state = settings
        given = _Inputs(x, state, threshold, decay, scale, reset_value, surrogate_scale, seeds, keep_u, keep_state)
        output = _forward(x, state, seeds, neuron, keep_u, keep_state)
        _save_for_backward(ctx, given, neuron, output)
        return output

    backward = staticmethod(_differentiated_by(_backward_again))


def kernel_of(x: Tensor, channel_bits: int = 0) -> Any:
    """The kernel for the device and dtype of `x`: a `cpu.Kernel` or None, or the module of the same functions."""
    return cpu.kernel(x.dtype, channel_bits > 0) if x.device.type == "cpu" else _cuda_kernel()


@functools.cache
def _cuda_kernel() -> ModuleType:
    from . import cuda  # it needs Triton, which comes with PyTorch for CUDA on Linux

    return cuda


@functools.cache
def _cuda(law: type[noise.NoiseLaw], channel_bits: int) -> bool:
    """Whether the CUDA kernel computes this law correctly here; warns if it should and does not."""
    laws_by_name()  # refuses two of one name
    try:
        kernel = _cuda_kernel()
        if law.__name__ not in kernel.KNOWN_LAWS:
            return False
        like = torch.empty(0, device=f"cuda:{torch.cuda.current_device()}")  # each thread has its own current device
        selftest.without_modes(lambda: selftest.check_law(kernel, law, like))
        if channel_bits:
            selftest.without_modes(lambda: selftest.check_channels(kernel, like, channel_bits))
    except Exception as error:  # Triton is missing, cannot compile here (it says so in many ways), or is wrong
        build.warn_once(f"spiking neurons run on the slower eager kernel on CUDA: {error}")
        return False
    return True


@functools.cache
def _cuda_norm() -> bool:
    """Whether the CUDA kernel normalises and packs correctly here; warns if not."""
    try:
        kernel = _cuda_kernel()
        like = torch.empty(0, device=f"cuda:{torch.cuda.current_device()}")
        selftest.without_modes(lambda: selftest.check_normed(kernel, like))
        selftest.without_modes(lambda: selftest.check_bits(kernel, like))
    except Exception as error:  # as above
        build.warn_once(f"on CUDA, batch norm and neurons run one after the other, and keep more memory: {error}")
        return False
    return True
