"""The reference kernel in plain PyTorch: any law, any device. Faster kernels are tested against it."""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checkpointing import check_same_noise
from ..contexts import GENERATOR_BLOCKS, calling, left_to_python
from ..noise import NoiseLaw, Rescaled
from .common import (
    VALUES,
    Neuron,
    Once,
    OnceOneByOne,
    Pair,
    arithmetic_dtype,
    check_values,
    empty_sequence,
    in_batches,
    mode_mark,
    refuse_graph_of_batches,
    saved_tensors,
    stacked,
    step_of,
)

COMPARED = 1000  # drawn numbers that are compared, to tell whether a recomputed forward pass is the same


def lif_sequence(
    x: Tensor,
    state: Tensor | None,
    neuron: Neuron,
    keep_state: bool = True,
    keep_u: bool = False,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer over a sequence x [T, B, ...]; `models.functional` states the dynamics.

    Args:
        state: membrane potential before the first step [B, ...], in the dtype of the arithmetic; None is rest.
        keep_state, keep_u: ignored; this kernel always computes the state and the potentials.
        noise: membrane and threshold noise, each [T, B, ...]; None is drawn from the law.

    Returns:
        spikes [T, B, ...] in the dtype of `x`, the potential after the last step [B, ...], and the potentials u
        [T, B, ...] before the reset, without a gradient.
    """
    if state is None:  # zeros in the memory format of x, which the outputs keep
        state = torch.zeros_like(step_of(x), dtype=arithmetic_dtype(x.dtype))
    run: Any = _LIFSequence.apply
    is_random = neuron.membrane_noise or neuron.threshold_noise
    if is_random and torch.compiler.is_compiling() and GENERATOR_BLOCKS.in_effect():
        run = _run_in_python
    tensors = neuron.tensors()
    if torch.jit.is_tracing():  # it compares what is printed of the neuron with and without gradients
        neuron = neuron.with_tensors([value if value is None else value.detach() for value in tensors])
    return run(x, state, *tensors, *noise, neuron)


@left_to_python(
    "the eager kernel cannot draw from a noise_generator in a full graph: leave out fullgraph=True, or the block"
)
def _run_in_python(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _LIFSequence.apply(*inputs)


def law_of(neuron: Neuron) -> NoiseLaw:
    """The law at the scale of the neuron; NaN throughout if that scale is not positive."""
    if not isinstance(neuron.scale, Tensor):
        return neuron.law
    return Rescaled(neuron.law, torch.where(neuron.scale > 0, neuron.scale, math.nan))


def _reset_backward(grad_v: Tensor, u: Tensor, fired: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor | None]:
    """Gradients of `after_reset` with respect to `u` and to `fired` (None for reset "none")."""
    if neuron.reset == "zero":
        return torch.addcmul(grad_v, grad_v, fired, value=-1), (neuron.reset_value - u) * grad_v
    if neuron.reset == "subtract":
        return grad_v, -neuron.reset_value * grad_v
    return grad_v, None


class _Draws:
    """The noise of a layer, drawn step by step; keeps the last draws."""

    def __init__(self, law: NoiseLaw, like: Tensor) -> None:
        self.law = law
        self.like = like
        self.compared, self.kept = 1, 1
        if not torch.compiler.is_compiling():  # a compiled graph must not depend on the number of neurons
            self.compared, self.kept = COMPARED, -(-COMPARED // max(1, like.numel()))
        self.last: list[Tensor] = []  # with at least `compared` numbers in all

    def draw(self) -> Tensor:
        self.last.append(self.law.sample(self.like.shape, device=self.like.device, dtype=self.like.dtype))
        del self.last[: -self.kept]
        return self.last[-1]

    def to_compare(self) -> Tensor | None:
        """Numbers that another run would not draw; as bytes, which hooks on saved tensors do not round."""
        if not self.last or torch.jit.is_tracing():  # which knows no bytes of a tensor, nor a backward pass
            return None
        return torch.cat([numbers.flatten()[: self.compared] for numbers in self.last]).view(torch.uint8)


class _Saved(NamedTuple):
    """What the backward pass reads, in the order in which it is saved."""

    mark: Tensor
    state: Tensor
    spikes: Tensor
    u: Tensor
    eps: Tensor | None
    x: Tensor | None
    draws: Tensor | None
    threshold: Tensor | None
    decay: Tensor | None
    scale: Tensor | None
    reset_value: Tensor | None


class _LIFSequence(torch.autograd.Function):
    """One autograd node for the whole sequence, instead of T small graphs.

    Saved are the spikes (which the next layer holds anyway) and the potentials; the membrane noise and `x` only
    where a learnt scale or decay, or a second derivative of the mean field, needs them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        state: Tensor,
        threshold: Tensor | None,
        decay: Tensor | None,
        scale: Tensor | None,
        reset_value: Tensor | None,
        eps_membrane: Tensor | None,
        eps_threshold: Tensor | None,
        neuron: Neuron,
    ) -> tuple[Tensor, Tensor, Tensor]:
        neuron = neuron.with_tensors((threshold, decay, scale, reset_value))
        check_values(neuron, x)
        law = law_of(neuron)
        T = x.shape[0]
        # Nothing is written in place: a checkpoint of PyTorch may keep any result for its second run.
        spikes_at: list[Tensor] = []
        u_at: list[Tensor] = []
        eps_at: list[Tensor] = []

        draws = _Draws(law, state)
        v = state
        for t in range(T):
            current = x[t].to(state.dtype)
            u = neuron.charged(v, current)
            if neuron.membrane_noise:
                eps = (draws.draw() if eps_membrane is None else eps_membrane[t]).to(u.dtype)
                u = u - eps
                if scale is not None:
                    eps_at.append(eps)
            z_t = u - neuron.threshold
            if neuron.mean_field:
                fired = law.cdf(z_t)
            elif neuron.threshold_noise:
                fired = (z_t > (draws.draw() if eps_threshold is None else eps_threshold[t])).to(z_t.dtype)
            else:
                fired = (z_t > 0).to(z_t.dtype)
            u_at.append(u)
            spikes_at.append(fired.to(x.dtype))
            v = neuron.after_reset(u, fired)
        if T == 0:
            v = state.clone()  # not the caller's own tensor

        spikes = stacked(spikes_at, state, x.dtype)
        spikes_at.clear()  # before there is another sequence in memory
        u_kept = stacked(u_at, state, state.dtype)
        u_at.clear()
        eps_kept = stacked(eps_at, state, state.dtype) if eps_at else None

        ctx.neuron = neuron
        ctx.draws = draws.to_compare()
        saved = _Saved(
            mark=mode_mark(neuron, state),
            state=state,
            spikes=spikes,
            u=u_kept,
            eps=eps_kept,
            x=x if neuron.mean_field or neuron.decay_input and decay is not None else None,
            draws=ctx.draws,
            threshold=threshold,
            decay=decay,
            scale=scale,
            reset_value=reset_value,
        )
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(u_kept)
        return spikes, v, u_kept

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        saved = _Saved(*saved_tensors(ctx))
        check_same_noise(ctx.draws, saved.draws)
        neuron = ctx.neuron.with_tensors((saved.threshold, saved.decay, saved.scale, saved.reset_value))
        grads = grad_spikes, grad_v
        found: Sequence[Tensor | None]
        if neuron.mean_field and torch.is_grad_enabled():
            assert saved.x is not None  # kept in the mean field
            found = gradients_of_plain(saved.x, saved.state, neuron, grads)
        else:
            gradients = functools.partial(_gradients, neuron, ctx.needs_input_grad[2 : 2 + len(VALUES)], saved)
            if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
                refuse_graph_of_batches(grads)
                found = OnceOneByOne.apply(gradients, saved.spikes, *grads)
            else:
                found = gradients(saved.spikes, *grads)
        return *found, None, None, None


def _gradients(
    neuron: Neuron,
    learns: Sequence[bool],
    saved: _Saved,
    spikes: Tensor,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, state and `VALUES`, None for those that are not wanted."""
    state, u = saved.state, saved.u
    eps: Any = saved.eps  # kept where the scale of membrane noise is learnt
    x: Any = saved.x  # kept where a learnt decay scales it
    law = law_of(neuron.of_gradient())
    batched = in_batches((grad_spikes, grad_v))  # vmap cannot write a batched tensor into an unbatched one
    grad_x = empty_sequence(state, u.shape[0], spikes.dtype)
    steps: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for name, value, wanted in zip(VALUES, neuron.tensors(), learns):
        if value is not None and wanted:
            sums[name] = torch.zeros_like(value)
    grad_v = torch.zeros_like(state) if grad_v is None else grad_v

    def total(name: str, of_neurons: Tensor) -> Tensor:
        return of_neurons.sum_to_size(sums[name].shape)

    def fired_at(t: int) -> Tensor:
        return law.cdf(u[t] - neuron.threshold) if neuron.mean_field else spikes[t].to(u.dtype)

    for t in reversed(range(u.shape[0])):
        z = u[t] - neuron.threshold
        slope, fired = law.pdf(z), fired_at(t)
        grad_u, grad_fired = _reset_backward(grad_v, u[t], fired, neuron)
        if grad_fired is None or neuron.detach_reset:
            grad_fired = torch.zeros_like(fired)
        if grad_spikes is not None:
            grad_fired = grad_fired + grad_spikes[t]
        grad_u = torch.addcmul(grad_u, grad_fired, slope)

        if "threshold" in sums:
            sums["threshold"] = sums["threshold"] - total("threshold", grad_fired * slope)
        if "reset_value" in sums and neuron.reset != "none":
            by_reset = total("reset_value", fired * grad_v)
            sums["reset_value"] = sums["reset_value"] + (by_reset if neuron.reset == "zero" else -by_reset)
        if "scale" in sums:
            if neuron.threshold_noise or neuron.mean_field:  # P(fire) = F(z), F stretched by scale
                distance = torch.where(z.isinf(), 0, z - law.loc)  # an infinite threshold is never reached
                by_threshold = total("scale", grad_fired * slope * distance)
                sums["scale"] = sums["scale"] - by_threshold / neuron.scale
            if neuron.membrane_noise:  # u holds -(loc + scale * standard draw)
                sums["scale"] = sums["scale"] - total("scale", grad_u * (eps[t] - law.loc)) / neuron.scale
        if "decay" in sums:
            v = state
            if t > 0:
                v = neuron.after_reset(u[t - 1], fired_at(t - 1))
            sums["decay"] = sums["decay"] + total("decay", grad_u * (v - x[t] if neuron.decay_input else v))
        grad_current = grad_u * (1 - neuron.decay) if neuron.decay_input else grad_u
        if batched:
            steps.insert(0, grad_current.to(spikes.dtype))
        else:
            grad_x[t] = grad_current
        grad_v = grad_u * neuron.decay
    return torch.stack(steps) if steps else grad_x, grad_v, *[sums.get(name) for name in VALUES]


def plain_sequence(
    x: Tensor, state: Tensor | None, neuron: Neuron, keep_state: bool, keep_u: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lif_sequence`, but of operations that PyTorch can map and differentiate; the potentials have a gradient too.

    That is what `torch.func` and forward mode need. The mean field is differentiable as often as its law is.
    """
    check_values(neuron, x)
    if (neuron.membrane_noise or neuron.threshold_noise) and forward_ad._current_level >= 0:
        _refuse_linearize()
    v = torch.zeros_like(step_of(x), dtype=arithmetic_dtype(x.dtype)) if state is None else state
    law = law_of(neuron)
    spikes, u_kept = [], []
    for current in x.to(v.dtype).unbind():
        u = neuron.charged(v, current)
        if neuron.membrane_noise:
            u = u - law.sample(u.shape, device=x.device, dtype=u.dtype)
        z = neuron.above_threshold(u)
        if neuron.mean_field:
            fired = law.cdf(z)
        else:
            draw = law.sample(u.shape, device=x.device, dtype=u.dtype) if neuron.threshold_noise else 0
            fired = _spike(z > draw, z, neuron)
        spikes.append(fired)
        u_kept.append(u)
        # Not `after_reset`: PyTorch crashes where torch.func.linearize meets an addcmul of a detached tensor.
        by = fired.detach() if neuron.detach_reset else fired
        if neuron.reset == "zero":
            u = u - u * by + neuron.reset_value * by
        elif neuron.reset == "subtract":
            u = u - neuron.reset_value * by
        v = u
    if not spikes:
        return x.clone(), v.clone(), torch.zeros_like(x, dtype=v.dtype)  # no steps, but connected to the graph
    return torch.stack(spikes).to(x.dtype), v, torch.stack(u_kept) if keep_u else v.new_empty(0)


def _refuse_linearize() -> None:
    """Raise RuntimeError if noise is drawn for the function that `torch.func.linearize` returns."""
    if any(frame.f_code is torch.func.linearize.__code__ for frame in calling(sys._getframe())):
        raise RuntimeError(
            "the function that torch.func.linearize returns would draw other noise at each call: use torch.func.jvp, "
            "or do it inside noiseless or mean_field"
        )


def _spike(fires: Tensor, z: Tensor, neuron: Neuron) -> Tensor:
    """0 or 1, with the density at z for a gradient; a learnt scale stretches the law about its centre."""
    gradient = neuron.of_gradient()
    law, scale = gradient.law, gradient.scale
    if isinstance(scale, Tensor):
        scale = scale if neuron.threshold_noise else scale.detach()
        z = (z - law.loc) * (law.scale / scale) + law.loc
    return _Spike.apply(fires, z, mode_mark(neuron, z), law)


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(fires: Tensor, z: Tensor, mark: Tensor, law: Any) -> Tensor:
        return fires.to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, z, mark, ctx.law = inputs
        ctx.save_for_backward(mark, z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, z = ctx.saved_tensors
        return None, grad * Once.apply(ctx.law.pdf, z), None, None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor, *__: Any) -> Tensor:
        return tangent * Once.apply(ctx.law.pdf, *ctx.saved_tensors)


def gradients_of_plain(x: Tensor, state: Tensor | None, neuron: Neuron, grads: Pair) -> list[Tensor | None]:
    """Gradients of x, state and `VALUES` that can be differentiated again: those of `plain_sequence`."""
    refuse_graph_of_batches(grads)
    with torch.enable_grad():
        # Aliases, because one tensor may be given as two arguments, each with its own gradient.
        given: list[Any] = [None if t is None else t.view_as(t) for t in (x, state, *neuron.tensors())]
        neuron = neuron.with_tensors(given[2:])
        # It requires a gradient even where no output does: the last potential may depend on nothing that is learnt.
        loss = torch.zeros((), device=x.device, dtype=torch.float64, requires_grad=True)
        for output, grad in zip(plain_sequence(given[0], given[1], neuron, True, False), grads):
            if grad is not None:
                loss = loss + (output.double() * grad.double()).sum()
        learnt = [t for t in given if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(loss, learnt, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in given]
