"""How sharp a minimum is: the trace of the Hessian, and the loss under perturbed weights."""

import torch


def hessian_trace(net, loss, probes, generator, step=1e-5):
    r"""Trace of the Hessian of a loss by the weights, by Hutchinson's estimator.

    .. math::
        \mathrm{tr} H = \mathbb{E}\, v^\top H v, \quad
        H v \approx \frac{g(w + h v) - g(w - h v)}{2 h}

    with random signs v, and the gradient g of the loss. The quotient takes first derivatives alone, which the kernels
    have. The loss must be smooth, as that of the mean field is: spikes have no second derivative.

    Args:
        net: network; its weights are moved and put back.
        loss: net -> scalar.
        probes: number of vectors v.
        generator: `torch.Generator` of them.
        step: h, in units of the weights; float64 weights bear a small one.

    Returns:
        Mean and standard error over probes, numbers.

    Note:
        Hutchinson, Communications in Statistics 18, 1989; for networks: Yao et al., "PyHessian", IEEE Big Data 2020.
        The trace is not invariant when layers are rescaled against each other (Dinh et al., ICML 2017), which
        `perturbed_loss` is.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    found = []
    for _ in range(probes):
        signs = [torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1 for weight in weights]
        with moved(weights, signs, step):
            above = torch.autograd.grad(loss(net), weights)
        with moved(weights, signs, -step):
            below = torch.autograd.grad(loss(net), weights)
        found.append(sum((sign * (a - b)).sum() for sign, a, b in zip(signs, above, below)) / (2 * step))
    found = torch.stack(found).double()
    return found.mean().item(), (found.std() / len(found) ** 0.5).item()


@torch.no_grad()
def perturbed_loss(net, loss, relative, draws, generator):
    """Mean loss when each weight is moved by Gaussian noise, relative to the size of its layer's weights.

    Args:
        net: network; its weights are put back.
        loss: net -> scalar.
        relative: standard deviation, in units of the root mean square of the tensor that a weight is in.
        draws: number of perturbations.
        generator: `torch.Generator` of them.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    total = 0.0
    for _ in range(draws):
        noise = [
            torch.randn(weight.shape, generator=generator).to(weight) * weight.square().mean().sqrt()
            for weight in weights
        ]
        with moved(weights, noise, relative):
            total += loss(net).item()
    return total / draws


class moved:
    """Context manager: weights + step * directions."""

    def __init__(self, weights, directions, step):
        self.weights, self.directions, self.step = weights, directions, step

    def __enter__(self):
        self.before = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight, direction in zip(self.weights, self.directions):
                weight.add_(direction, alpha=self.step)

    def __exit__(self, *error):
        with torch.no_grad():
            for weight, before in zip(self.weights, self.before):
                weight.copy_(before)
