"""Checks of a compiled kernel before its first use: compilers have bugs, and laws may change.

`kernel` has the `forward` and `backward` of `cpu.Kernel`; `like` is an empty tensor of the dtype and device to check.
Gradients are compared with differences and densities, as autograd is off where an operator loads its kernel.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import noise
from .build import BuildError
from .common import Neuron

DRAWS = 8192
MOST_DEVIATION = 0.02  # of a share of 8192 draws; the seed is fixed, and other laws are off by 0.05 or more
Result = TypeVar("Result")


def without_modes(check: Callable[[], Result]) -> Result:
    """`check()`, in a thread of its own.

    PyTorch keeps its modes by thread: fake tensors, tracers, the default device, functorch's levels, inference. Under
    one of them the tensors of a check would have no memory, or would become part of the caller's graph.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(check).result()


def check_law(kernel: Any, name: str, like: Tensor) -> None:
    """Raise BuildError unless the kernel has the probabilities, the density and the draws of this entry of `LAWS`."""
    (kind,) = (law for law in noise.LAWS if law.__name__ == name)
    law = kind(0.7, 0.1)
    neuron = Neuron(law, law.scale, decay=0.0, reset="none", mean_field=True)
    x = torch.arange(-128.0, 129.0).div(32).to(like).reshape(1, 1, -1)  # exact in bfloat16; none is on an edge of a law
    potential = x.double().cpu() - neuron.threshold
    p, _, z = kernel.forward(x, None, None, neuron, True, True)
    density, *_ = kernel.backward((torch.ones_like(x), None), (None, None, None, p, z), neuron, (False, False))
    rtol = 0.01 if like.dtype in (torch.bfloat16, torch.float16) else 1e-4
    for what, ours, right in (("probabilities", p, law.cdf(potential)), ("density", density, law.pdf(potential))):
        if not torch.allclose(ours.double().cpu(), right, rtol=rtol, atol=1e-5):
            raise BuildError(f"the compiled {what} of the {name} law are not those of models.noise")

    share = torch.arange(0.5, DRAWS, dtype=torch.float64) / DRAWS
    seeds = torch.tensor([7], device=like.device)
    neuron.mean_field, neuron.membrane_noise = False, True
    _, last, _ = kernel.forward(torch.zeros(1, 1, DRAWS).to(like), None, seeds, neuron, False, True)
    drawn = law.cdf(-last.double().cpu()).flatten().sort().values
    neuron.membrane_noise, neuron.threshold_noise = False, True
    x = law.icdf(share).add(neuron.threshold).to(like).reshape(1, 1, -1)
    spikes, _, _ = kernel.forward(x, None, seeds, neuron, False, True)
    excess = spikes.double().cpu().flatten() - law.cdf(x.double().cpu() - neuron.threshold).flatten()
    for deviation in (drawn - share, excess.cumsum(0) / DRAWS):
        if not deviation.abs().max() < MOST_DEVIATION:  # a NaN is wrong, too
            raise BuildError(f"the compiled draws of the {name} law are not those of models.noise")


def check_steps(kernel: Any, like: Tensor) -> None:
    """Raise BuildError unless three steps of a mean field have the probabilities and the gradient they should."""
    h = 1 / 32  # x and x + h are exact in bfloat16
    law = noise.Gaussian(0.5)
    neuron = Neuron(law, law.scale, decay=0.5, mean_field=True)
    x = torch.arange(-64.0, 128.0).reshape(1, 64, 3).div(64).permute(2, 0, 1).to(like).contiguous()
    spikes, last, z = kernel.forward(x, None, None, neuron, True, True)
    v = torch.zeros(1, 64, dtype=torch.float64)
    for x_t, spikes_t in zip(x.double(), spikes.double()):
        u = 0.5 * v + x_t
        p = law.cdf(u - neuron.threshold)
        v = u * (1 - p)
        if not torch.allclose(spikes_t, p, rtol=0.01, atol=1e-4):
            raise BuildError("the compiled firing probabilities are wrong")
    grad_x, *_ = kernel.backward((None, torch.ones_like(last)), (None, None, None, spikes, z), neuron, (False, False))
    above, below = (kernel.forward(x + sign * h, None, None, neuron, True, True)[1] for sign in (1, -1))
    if not torch.allclose(grad_x.double().sum(0), (above - below).double() / (2 * h), rtol=0.02, atol=0.02):
        raise BuildError("the compiled gradients are wrong")
