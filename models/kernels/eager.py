"""The reference kernel in plain PyTorch: any law, any device. Faster kernels are tested against it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..contexts import check_same_noise
from ..noise import Rescaled
from .common import (
    Neuron,
    Once,
    OnceOneByOne,
    Pair,
    after_reset,
    arithmetic_dtype,
    empty_sequence,
    in_batches,
    saved_tensors,
    step_of,
)


def lif_sequence(
    x: Tensor,
    state: Tensor | None,
    neuron: Neuron,
    keep_state: bool = True,
    keep_z: bool = False,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer over a sequence x [T, B, ...]; `models.functional` states the dynamics.

    Args:
        state: membrane potential before the first step [B, ...], in the dtype of the arithmetic; None is rest.
        keep_state, keep_z: ignored; this kernel always computes the state and z.
        noise: membrane and threshold noise, each [T, B, ...]; what is None is drawn from the law.

    Returns:
        spikes [T, B, ...] in the dtype of `x`, the potential after the last step [B, ...], and z = u - threshold
        [T, B, ...], without a gradient.
    """
    if state is None:  # zeros in the memory format of x, which the outputs keep
        state = torch.zeros_like(step_of(x), dtype=arithmetic_dtype(x.dtype))
    return _LIFSequence.apply(x, state, neuron.decay, neuron.scale, *noise, neuron)


def _reset_backward(grad_v: Tensor, u: Tensor, fired: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor | None]:
    """Gradients of `after_reset` with respect to `u` and to `fired` (None for reset "none")."""
    if neuron.reset == "zero":
        return torch.addcmul(grad_v, grad_v, fired, value=-1), -u * grad_v
    if neuron.reset == "subtract":
        return grad_v, -neuron.threshold * grad_v
    return grad_v, None


class _LIFSequence(torch.autograd.Function):
    """One autograd node for the whole sequence, instead of T small graphs.

    Saved are the spikes (which the next layer holds anyway) and z = u - threshold; the membrane noise and `x` only
    where a learnt scale or decay, or a second derivative of the mean field, needs them.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, state, decay, scale, eps_membrane, eps_threshold, neuron = inputs
        law = Rescaled(neuron.law, scale) if isinstance(scale, Tensor) else neuron.law
        T = x.shape[0]
        spikes, z = empty_sequence(state, T, x.dtype), empty_sequence(state, T, state.dtype)
        eps_kept = torch.empty_like(z) if isinstance(scale, Tensor) and neuron.membrane_noise else None

        drawn: list[Tensor] = []  # the last draw

        def draw(given: Tensor | None, t: int) -> Tensor:
            if given is not None:
                return given[t]
            drawn[:] = [law.sample(state.shape, device=x.device, dtype=state.dtype)]
            return drawn[0]

        v = state
        for t in range(T):
            current = x[t].to(state.dtype)
            u = v * decay + (current * (1 - decay) if neuron.decay_input else current)
            if neuron.membrane_noise:
                eps = draw(eps_membrane, t)
                u -= eps
                if eps_kept is not None:
                    eps_kept[t] = eps
            z_t = u - neuron.threshold
            if neuron.mean_field:
                fired = law.cdf(z_t)
            else:
                fired = (z_t > (draw(eps_threshold, t) if neuron.threshold_noise else 0)).to(z_t.dtype)
            z[t], spikes[t] = z_t, fired
            v = after_reset(u, fired, neuron.reset, neuron.threshold)

        ctx.law = law if neuron.surrogate is None else neuron.surrogate
        ctx.neuron, ctx.decay, ctx.scale = neuron, decay, scale
        kept_x = x if neuron.mean_field or neuron.decay_input and isinstance(decay, Tensor) else None
        ctx.last_draw = drawn[-1].flatten()[:1].clone() if drawn else None
        ctx.save_for_backward(state, spikes, z, eps_kept, kept_x, ctx.last_draw)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(z)
        return spikes, v, z

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        saved = saved_tensors(ctx)
        state, spikes, _, _, x, last_draw = saved
        check_same_noise(ctx.last_draw, last_draw)
        grads: Sequence[Tensor | None]
        if ctx.neuron.mean_field and torch.is_grad_enabled():
            grads = gradients_of_plain(x, state, ctx.neuron, (grad_spikes, grad_v))
        elif torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            grads = OnceOneByOne.apply(functools.partial(_gradients, ctx, saved), spikes, grad_spikes, grad_v)
        else:
            grads = _gradients(ctx, saved, spikes, grad_spikes, grad_v)
        return *grads, None, None, None


def _gradients(
    ctx: Any, saved: tuple[Any, ...], spikes: Tensor, grad_spikes: Tensor | None, grad_v: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, state, decay and scale, None for those that are not wanted."""
    state, _, z, eps, x, _ = saved
    law, neuron, decay, scale = ctx.law, ctx.neuron, ctx.decay, ctx.scale
    learns_decay, learns_scale = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
    batched = in_batches((grad_spikes, grad_v))  # vmap writes none of its tensors into one of others
    grad_x = empty_sequence(state, z.shape[0], spikes.dtype)
    steps: list[Tensor] = []
    grad_decay = z.new_zeros(()) if learns_decay else None
    grad_scale = z.new_zeros(()) if learns_scale else None
    grad_v = torch.zeros_like(state) if grad_v is None else grad_v

    def fired_at(t: int) -> Tensor:
        return law.cdf(z[t]) if neuron.mean_field else spikes[t].to(z.dtype)

    for t in reversed(range(z.shape[0])):
        slope, fired = law.pdf(z[t]), fired_at(t)
        grad_u, grad_fired = _reset_backward(grad_v, z[t] + neuron.threshold, fired, neuron)
        if grad_fired is None or neuron.detach_reset:
            grad_fired = torch.zeros_like(fired)
        if grad_spikes is not None:
            grad_fired = grad_fired + grad_spikes[t]
        grad_u = torch.addcmul(grad_u, grad_fired, slope)

        if learns_scale:
            if neuron.threshold_noise or neuron.mean_field:  # P(fire) = F(z), F stretched by scale
                grad_scale = grad_scale - (grad_fired * slope * (z[t] - law.loc)).sum() / scale
            if neuron.membrane_noise:  # u holds -(loc + scale * standard draw)
                grad_scale = grad_scale - (grad_u * (eps[t] - law.loc)).sum() / scale
        if learns_decay:
            v = state
            if t > 0:
                v = after_reset(z[t - 1] + neuron.threshold, fired_at(t - 1), neuron.reset, neuron.threshold)
            grad_decay = grad_decay + (grad_u * (v - x[t] if neuron.decay_input else v)).sum()
        grad_current = grad_u * (1 - decay) if neuron.decay_input else grad_u
        if batched:
            steps.insert(0, grad_current.to(spikes.dtype))
        else:
            grad_x[t] = grad_current
        grad_v = grad_u * decay
    return torch.stack(steps) if steps else grad_x, grad_v, grad_decay, grad_scale


def plain_sequence(
    x: Tensor, state: Tensor | None, neuron: Neuron, keep_state: bool = True, keep_z: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lif_sequence`, but of operations that PyTorch can map and differentiate by itself; z too has a gradient.

    That is what `torch.func` and forward mode need. The mean field is differentiable as often as its law is.
    """
    v = torch.zeros_like(step_of(x), dtype=arithmetic_dtype(x.dtype)) if state is None else state
    law = Rescaled(neuron.law, neuron.scale) if isinstance(neuron.scale, Tensor) else neuron.law
    spikes, z_kept = [], []
    for current in x.to(v.dtype).unbind():
        u = v * neuron.decay + (current * (1 - neuron.decay) if neuron.decay_input else current)
        if neuron.membrane_noise:
            u = u - law.sample(u.shape, device=x.device, dtype=u.dtype)
        z = u - neuron.threshold
        if neuron.mean_field:
            fired = law.cdf(z)
        else:
            draw = law.sample(u.shape, device=x.device, dtype=u.dtype) if neuron.threshold_noise else 0
            fired = _spike(z > draw, z, neuron)
        spikes.append(fired)
        z_kept.append(z)
        # Not `after_reset`: PyTorch crashes where torch.func.linearize meets an addcmul of a detached tensor.
        removed = u if neuron.reset == "zero" else neuron.threshold
        if neuron.reset != "none":
            u = u - removed * (fired.detach() if neuron.detach_reset else fired)
        v = u
    if not spikes:
        return torch.zeros_like(x), v, torch.zeros_like(x, dtype=v.dtype)
    return torch.stack(spikes).to(x.dtype), v, torch.stack(z_kept) if keep_z else v.new_empty(0)


def _spike(fires: Tensor, z: Tensor, neuron: Neuron) -> Tensor:
    """0 or 1, with the density at z for a gradient; a learnt scale stretches the law about its centre."""
    law = neuron.law if neuron.surrogate is None else neuron.surrogate
    if isinstance(neuron.scale, Tensor) and neuron.surrogate is None:
        scale = neuron.scale if neuron.threshold_noise else neuron.scale.detach()
        z = (z - law.loc) * (law.scale / scale) + law.loc
    return _Spike.apply(fires, z, law)


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(fires: Tensor, z: Tensor, law: Any) -> Tensor:
        return fires.to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, z, ctx.law = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad * Once.apply(ctx.law.pdf, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor, __: Any) -> Tensor:
        return tangent * Once.apply(ctx.law.pdf, *ctx.saved_tensors)


def gradients_of_plain(x: Tensor, state: Tensor | None, neuron: Neuron, grads: Pair) -> list[Tensor | None]:
    """Gradients of x, state, decay and scale that can be differentiated again: those of `plain_sequence`."""
    with torch.enable_grad():
        # Aliases: one tensor may be given in two places, which have a gradient each.
        given: list[Any] = [
            t.view_as(t) if isinstance(t, Tensor) else t for t in (x, state, neuron.decay, neuron.scale)
        ]
        neuron = dataclasses.replace(neuron, decay=given[2], scale=given[3])
        loss = torch.zeros((), device=x.device, dtype=torch.float64)
        for output, grad in zip(plain_sequence(given[0], given[1], neuron), grads):
            if grad is not None:
                loss = loss + (output.double() * grad.double()).sum()
        learnt = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
        found = iter(torch.autograd.grad(loss, learnt, create_graph=True, allow_unused=True))
    return [next(found) if isinstance(t, Tensor) and t.requires_grad else None for t in given]
