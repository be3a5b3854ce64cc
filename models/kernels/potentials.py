"""Membrane potentials over time, from what a kernel has computed."""

import torch
from torch import Tensor

from .common import Neuron


def before_reset(x: Tensor, state: Tensor | None, spikes: Tensor, u: Tensor, neuron: Neuron) -> Tensor:
    """The potentials u [T, B, ...], which the noisy threshold is compared with, with their gradient.

    To autograd, the `u` of a kernel is a constant. If `spikes` require a gradient, the potentials are traced again,
    step by step, as functions of the input, the state, the learnt values and the earlier spikes.
    """
    if u.requires_grad or not spikes.requires_grad or u.numel() == 0:
        return u
    v = torch.zeros_like(u[0]) if state is None else state
    fired = spikes.detach() if neuron.detach_reset else spikes
    traced = []
    for t in range(x.shape[0]):
        current = x[t].to(u.dtype)
        now = neuron.charged(v, current)
        if neuron.membrane_noise and isinstance(neuron.scale, Tensor):  # eps1 = loc + scale * (standard draw)
            deviation = (now - u[t]).detach() - neuron.law.loc
            now = now - deviation * (neuron.scale / neuron.scale.detach())
        traced.append(u[t] + (now - now.detach()))  # the value of the kernel and the gradient of `now`
        v = neuron.after_reset(traced[-1], fired[t].to(u.dtype))
    return torch.stack(traced)
