"""Sharpness of a minimum: the trace of the Hessian, and the loss under perturbed weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

Loss = Callable[[nn.Module], torch.Tensor]  # net -> scalar


def hessian_trace(
    net: nn.Module, loss: Loss, probes: int, generator: torch.Generator, step: float = 1e-5
) -> tuple[float, float]:
    r"""Trace of the Hessian of a loss with respect to the weights, by Hutchinson's estimator.

    .. math::
        \mathrm{tr} H = \mathbb{E}\, v^\top H v, \quad
        H v \approx \frac{g(w + h v) - g(w - h v)}{2 h}

    with random signs v and the gradient g of the loss. The quotient needs first derivatives only, all that the kernels
    have. The loss must be smooth, as in the mean field: spikes have no second derivative.

    Args:
        net: its weights are moved and put back.
        probes: number of vectors v, drawn from the generator; mean and standard error over them are returned.
        step: h, in units of the weights; a small one needs weights in float64.

    Note:
        Hutchinson, Communications in Statistics 18, 1989; for networks: Yao et al., "PyHessian", IEEE Big Data 2020.
        Unlike `perturbed_loss`, the trace changes when layers are rescaled against each other (Dinh et al., ICML 2017).
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    found = []
    for _ in range(probes):
        signs = [torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1 for weight in weights]
        with moved(weights, signs, step):
            above = torch.autograd.grad(loss(net), weights)
        with moved(weights, signs, -step):
            below = torch.autograd.grad(loss(net), weights)
        products = [(sign * (a - b)).sum().item() for sign, a, b in zip(signs, above, below)]
        found.append(sum(products) / (2 * step))
    traces = torch.tensor(found, dtype=torch.float64)
    return traces.mean().item(), (traces.std() / len(found) ** 0.5).item()


@torch.no_grad()
def perturbed_loss(net: nn.Module, loss: Loss, relative: float, draws: int, generator: torch.Generator) -> float:
    """Mean loss over draws of Gaussian noise that is added to each weight.

    The standard deviation of the noise is `relative`, in units of the root mean square of the weight's tensor.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    sizes = [weight.square().mean().sqrt() for weight in weights]
    total = 0.0
    for _ in range(draws):
        noise = [torch.randn(weight.shape, generator=generator).to(weight) for weight in weights]
        with moved(weights, [one * size for one, size in zip(noise, sizes)], relative):
            total += loss(net).item()
    return total / draws


@contextlib.contextmanager
def moved(weights: Sequence[torch.Tensor], directions: Sequence[torch.Tensor], step: float) -> Iterator[None]:
    """Context manager: weights + step * directions, put back afterwards."""
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, direction in zip(weights, directions):
                weight.add_(direction, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, before):
                weight.copy_(original)
