"""White-box attacks, which ascend a gradient given as a function (images, target) -> gradient.

Images are in [0, 1] and stay there; `eps` and `gamma` are in the same units. One perturbation serves all time steps.
Shape: images [B, C, H, W], target [B] -> attacked images [B, C, H, W].
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

Gradient = Callable[[Tensor, Tensor], Tensor]

STEP = 2.5  # of projected gradient descent, times eps / steps (Madry et al., ICLR 2018)
ADAM_LR, ADAM_STEPS = 0.002, 30  # of the published direct optimisation


def random_noise(images: Tensor, eps: float, norm: str, generator: Generator) -> Tensor:
    """Noise of norm `eps` in a random direction (Linf: each pixel +-eps), which any attack must beat."""
    return (images + _steepest(_normal(images, generator), norm) * eps).clamp(0, 1)


def fgsm(gradient: Gradient, images: Tensor, target: Tensor, eps: float, norm: str = "linf") -> Tensor:
    """One step of size `eps` along the sign of the gradient (for "l2": along the gradient).

    Note:
        Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
    """
    return (images + _steepest(gradient(images, target), norm) * eps).clamp(0, 1)


def pgd(
    gradient: Gradient,
    images: Tensor,
    target: Tensor,
    eps: float,
    norm: str,
    steps: int,
    generator: Generator,
    margins: Gradient | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Projected gradient ascent from a random start in the ball of radius `eps`.

    Args:
        norm: "linf" or "l2".
        steps: of size 2.5 eps / steps each.
        margins: (images, target) -> how far the network errs [B]; if given, the best point on the way is returned,
            not the last one.
        on_step: called after each step, for a progress bar.

    Note:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """
    attacked = _project(images + _start(images, eps, norm, generator), images, eps, norm)
    best, highest = attacked, margins(attacked, target) if margins else None
    for _ in range(steps):
        ascent = _steepest(gradient(attacked, target), norm)
        attacked = _project(attacked + STEP * eps / steps * ascent, images, eps, norm)
        if margins:
            found = margins(attacked, target)
            best = torch.where((found > highest).view(-1, 1, 1, 1), attacked, best)
            highest = torch.maximum(found, highest)
        else:
            best = attacked
        if on_step:
            on_step()
    return best


def direct_optimisation(
    gradient: Gradient,
    images: Tensor,
    target: Tensor,
    gamma: float,
    generator: Generator,
    lr: float = ADAM_LR,
    steps: int = ADAM_STEPS,
) -> Tensor:
    """The published attack: Adam moves a perturbation on the sphere of L2 radius `gamma`.

    For comparison with published numbers only, not a measure of robustness: a pixel moves by `lr` a step, 0.06 in all,
    and what leaves [0, 1] is cut off, so that `pgd` of the same norm finds far more.

    Note:
        Ma, Yan and Tang, Patterns 4 (2023) 100831, with their learning rate and number of steps. The start is random on
        the sphere, to which each step returns. Gradients are scaled to a mean square of 1, which matters to Adam only
        because of its epsilon.
    """
    delta = _steepest(_normal(images, generator), "l2").mul_(gamma)
    optimizer = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        ascent = _steepest(gradient((images + delta).clamp(0, 1), target), "l2")
        delta.grad = -ascent * math.sqrt(images[0].numel())
        optimizer.step()
        delta.copy_(gamma * _steepest(delta, "l2"))
    return (images + delta).clamp(0, 1)


def _normal(images: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers of the shape of `images`, drawn on the generator's device."""
    return torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """The step of norm 1 along which a linear function grows most; 0 where the gradient is 0."""
    return gradient.sign() if norm == "linf" else gradient / _l2(gradient).clamp(min=1e-30)


def _l2(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))


def _start(images: Tensor, eps: float, norm: str, generator: Generator) -> Tensor:
    """Uniform in the box for Linf; for L2 a random direction, with a radius uniform in [0, eps]."""
    drawn = dict(generator=generator, device=generator.device)
    if norm == "linf":
        return ((2 * torch.rand(images.shape, **drawn) - 1) * eps).to(images.device)
    direction = _steepest(_normal(images, generator), "l2")
    return direction * (torch.rand(len(images), 1, 1, 1, **drawn) * eps).to(images.device)


def _project(attacked: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """Back into the ball around the images, and into [0, 1]."""
    delta = attacked - images
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / _l2(delta).clamp(min=eps))
    return (images + delta).clamp(0, 1)
