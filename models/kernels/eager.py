"""The reference kernel in plain PyTorch: any law, any device. Faster kernels are tested against it."""

import torch
from torch.autograd.function import once_differentiable

from ..noise import Rescaled
from .common import after_reset, arithmetic_dtype, empty_sequence, step_of


def lif_sequence(x, state, decay, scale, law, dynamics, noise=(None, None), keep_state=True, surrogate=None):
    """Run one layer of neurons over a sequence; `models.functional` states the dynamics.

    Args:
        x: input current [T, B, ...].
        state: membrane potential before the first step [B, ...], in the dtype of the arithmetic; None is rest.
        decay: a number, or a 0-d tensor where it is learnt.
        scale: None, or the learnt scale of `law` as a 0-d tensor.
        law: `NoiseLaw`; for a deterministic neuron, the density used as surrogate gradient.
        dynamics: `Dynamics`.
        keep_state: of no account: the potential is there anyway.
        noise: membrane and threshold noise, each [T, B, ...]; what is None is drawn from `law`.
        surrogate: None, or the law whose density is the gradient; the scale of `law` is not learnt then.

    Returns:
        spikes [T, B, ...] in the dtype of `x`, and the potential after the last step [B, ...].
    """
    if state is None:  # zeros in the memory format of x, which the outputs keep
        state = torch.zeros_like(step_of(x), dtype=arithmetic_dtype(x.dtype))
    return _LIFSequence.apply(x, state, decay, scale, *noise, law, surrogate, dynamics)


def _reset_backward(grad_v, u, fired, dynamics):
    """Gradients of `after_reset` with respect to `u` and to `fired` (None where there is none)."""
    if dynamics.reset == "zero":
        return torch.addcmul(grad_v, grad_v, fired, value=-1), -u * grad_v
    if dynamics.reset == "subtract":
        return grad_v, -dynamics.threshold * grad_v
    return grad_v, None


class _LIFSequence(torch.autograd.Function):
    """One autograd node for the whole sequence, instead of T small graphs.

    Saved for backward: the spikes (which the next layer holds anyway) and z = u - threshold;
    the membrane noise and `x` only where a learnt scale or decay needs them.
    """

    @staticmethod
    def forward(ctx, x, state, decay, scale, eps_membrane, eps_threshold, law, surrogate, dynamics):
        law = law if scale is None else Rescaled(law, scale)
        T = x.shape[0]
        spikes, z = empty_sequence(state, T, x.dtype), empty_sequence(state, T, state.dtype)
        keep_eps = scale is not None and dynamics.membrane_noise
        eps_kept = torch.empty_like(z) if keep_eps else None

        def draw(given, t):
            return law.sample(state.shape, device=x.device, dtype=state.dtype) if given is None else given[t]

        v = state
        for t in range(T):
            current = x[t].to(state.dtype)
            u = v * decay + (current * (1 - decay) if dynamics.decay_input else current)
            if dynamics.membrane_noise:
                eps = draw(eps_membrane, t)
                u -= eps
                if keep_eps:
                    eps_kept[t] = eps
            z_t = u - dynamics.threshold
            if dynamics.mean_field:
                fired = law.cdf(z_t)
            else:
                fired = (z_t > (draw(eps_threshold, t) if dynamics.threshold_noise else 0)).to(z_t.dtype)
            z[t], spikes[t] = z_t, fired
            v = after_reset(u, fired, dynamics.reset, dynamics.threshold)

        ctx.law = law if surrogate is None else surrogate
        ctx.dynamics, ctx.decay, ctx.scale = dynamics, decay, scale
        needs_x = dynamics.decay_input and isinstance(decay, torch.Tensor)
        ctx.save_for_backward(state, spikes, z, eps_kept, x if needs_x else None)
        ctx.set_materialize_grads(False)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes, grad_v):
        state, spikes, z, eps, x = ctx.saved_tensors
        law, dynamics, decay, scale = ctx.law, ctx.dynamics, ctx.decay, ctx.scale
        learns_decay, learns_scale = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        grad_x = empty_sequence(state, z.shape[0], spikes.dtype)
        grad_decay = z.new_zeros(()) if learns_decay else None
        grad_scale = z.new_zeros(()) if learns_scale else None
        grad_v = torch.zeros_like(state) if grad_v is None else grad_v

        def fired_at(t):
            return law.cdf(z[t]) if dynamics.mean_field else spikes[t].to(z.dtype)

        for t in reversed(range(z.shape[0])):
            slope, fired = law.pdf(z[t]), fired_at(t)
            grad_u, grad_fired = _reset_backward(grad_v, z[t] + dynamics.threshold, fired, dynamics)
            if grad_fired is None or dynamics.detach_reset:
                grad_fired = torch.zeros_like(fired)
            if grad_spikes is not None:
                grad_fired = grad_fired + grad_spikes[t]
            grad_u = torch.addcmul(grad_u, grad_fired, slope)

            if learns_scale:
                if dynamics.threshold_noise or dynamics.mean_field:  # P(fire) = F(z), F stretched by scale
                    grad_scale -= (grad_fired * slope * (z[t] - law.loc)).sum() / scale
                if dynamics.membrane_noise:  # u holds -(loc + scale * standard draw)
                    grad_scale -= (grad_u * (eps[t] - law.loc)).sum() / scale
            if learns_decay:
                v = state
                if t > 0:
                    v = after_reset(z[t - 1] + dynamics.threshold, fired_at(t - 1), dynamics.reset, dynamics.threshold)
                grad_decay += (grad_u * (v - x[t] if dynamics.decay_input else v)).sum()
            grad_x[t] = grad_u * (1 - decay) if dynamics.decay_input else grad_u
            grad_v = grad_u * decay
        return grad_x, grad_v, grad_decay, grad_scale, None, None, None, None, None
