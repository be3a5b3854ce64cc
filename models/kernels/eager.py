"""The reference kernel in plain PyTorch: any law, any device. Faster kernels are tested against it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..contexts import check_same_noise
from ..noise import Rescaled
from .common import Neuron, after_reset, arithmetic_dtype, empty_sequence, step_of


def lif_sequence(
    x: Tensor,
    state: Tensor | None,
    neuron: Neuron,
    keep_state: bool = True,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Run a layer over a sequence x [T, B, ...]; `models.functional` states the dynamics.

    Args:
        state: membrane potential before the first step [B, ...], in the dtype of the arithmetic; None is rest.
        keep_state: ignored; this kernel always computes the state.
        noise: membrane and threshold noise, each [T, B, ...]; what is None is drawn from the law.

    Returns:
        spikes [T, B, ...] in the dtype of `x`, and the potential after the last step [B, ...].
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
    where a learnt scale or decay needs them.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
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
        kept_x = x if neuron.decay_input and isinstance(decay, Tensor) else None
        ctx.last_draw = drawn[-1].flatten()[:1].clone() if drawn else None
        ctx.save_for_backward(state, spikes, z, eps_kept, kept_x, ctx.last_draw)
        ctx.set_materialize_grads(False)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        state, spikes, z, eps, x, last_draw = ctx.saved_tensors
        check_same_noise(ctx.last_draw, last_draw)
        law, neuron, decay, scale = ctx.law, ctx.neuron, ctx.decay, ctx.scale
        learns_decay, learns_scale = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        grad_x = empty_sequence(state, z.shape[0], spikes.dtype)
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
                    grad_scale -= (grad_fired * slope * (z[t] - law.loc)).sum() / scale
                if neuron.membrane_noise:  # u holds -(loc + scale * standard draw)
                    grad_scale -= (grad_u * (eps[t] - law.loc)).sum() / scale
            if learns_decay:
                v = state
                if t > 0:
                    v = after_reset(z[t - 1] + neuron.threshold, fired_at(t - 1), neuron.reset, neuron.threshold)
                grad_decay += (grad_u * (v - x[t] if neuron.decay_input else v)).sum()
            grad_x[t] = grad_u * (1 - decay) if neuron.decay_input else grad_u
            grad_v = grad_u * decay
        return grad_x, grad_v, grad_decay, grad_scale, None, None, None
