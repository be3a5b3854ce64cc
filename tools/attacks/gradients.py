"""White-box attacks, which climb a gradient given as a function (images, target) -> gradient.

Images are in [0, 1] and stay there; `eps` and `gamma` are in the same units. One perturbation serves all time steps.
Shape: images [B, C, H, W], target [B] -> attacked images [B, C, H, W].
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tools.runtime.seeds import draw

Gradient = Callable[[Tensor, Tensor], Tensor]
STEP = 2.5  # step size of projected gradient descent, times eps / steps (Madry et al., ICLR 2018)
NORMS = ("linf", "l2")  # of a `Ball`
ADAM_LR, ADAM_STEPS = 0.002, 30  # learning rate and number of steps of the published direct optimisation


@dataclasses.dataclass(frozen=True)
class Ball:
    """The set of images within a distance `eps` of given ones, and within [0, 1]; ValueError for an unknown norm."""

    images: Tensor
    eps: float
    norm: str = "linf"  # one of `NORMS`

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; choose from {', '.join(NORMS)}")

    def moved(self, images: Tensor, direction: Tensor, step: float) -> Tensor:
        """`images` after a step of length `step` along the steepest direction, projected back into the ball."""
        delta = images + step * _steepest(direction, self.norm) - self.images
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _l2(delta).clamp(min=self.eps))
        return (self.images + delta).clamp(0, 1)

    def start(self, generator: Generator) -> Tensor:
        """A random point: uniform in the box for Linf; for L2 in a random direction, at a uniform distance."""
        images = self.images
        if self.norm == "linf":
            delta = 2 * draw(torch.rand, images.shape, generator, images) - 1
        else:
            delta = _steepest(draw(torch.randn, images.shape, generator, images), "l2")
            delta = delta * draw(torch.rand, (len(images), 1, 1, 1), generator, images)
        return (images + delta * self.eps).clamp(0, 1)


def random_noise(ball: Ball, generator: Generator) -> Tensor:
    """Noise of norm `eps` in a random direction (Linf: +-eps in each pixel), which any attack must beat."""
    return ball.moved(ball.images, draw(torch.randn, ball.images.shape, generator, ball.images), ball.eps)


def fgsm(gradient: Gradient, ball: Ball, target: Tensor) -> Tensor:
    """One step of size `eps` along the sign of the gradient (for "l2": along the gradient).

    Note:
        Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
    """
    return ball.moved(ball.images, gradient(ball.images, target), ball.eps)


def pgd(
    gradient: Gradient, ball: Ball, target: Tensor, steps: int, generator: Generator, margins: Gradient | None = None
) -> Tensor:
    """Projected gradient ascent from a random start in the ball, in steps of size 2.5 eps / steps.

    Args:
        margins: (images, target) -> how far the network errs [B]; if given, the best point on the way is returned, not
            the last one.

    Note:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """
    attacked = ball.start(generator)
    best, highest = attacked, margins(attacked, target) if margins else None
    for _ in range(steps):
        attacked = ball.moved(attacked, gradient(attacked, target), STEP * ball.eps / steps)
        if margins:
            found = margins(attacked, target)
            best = torch.where((found > highest).view(-1, 1, 1, 1), attacked, best)
            highest = torch.maximum(found, highest)
        else:
            best = attacked
    return best


def direct_optimisation(
    gradient: Gradient, images: Tensor, target: Tensor, gamma: float, generator: Generator, steps: int = ADAM_STEPS
) -> Tensor:
    """The published attack: Adam moves a perturbation on the sphere of L2 radius `gamma`.

    For comparison with published numbers only, not a measure of robustness: a pixel moves by 0.002 per step, 0.06 in
    all, and is cut to [0, 1], so `pgd` of the same norm does far more harm.

    Note:
        Ma, Yan and Tang, Patterns 4 (2023) 100831, with their learning rate and number of steps. The start is random on
        the sphere, to which each step returns. Gradients are scaled to a mean square of 1, which matters to Adam only
        because of its epsilon.
    """
    delta = _steepest(draw(torch.randn, images.shape, generator, images), "l2").mul_(gamma)
    optimizer = torch.optim.Adam([delta], lr=ADAM_LR)
    for _ in range(steps):
        ascent = _steepest(gradient((images + delta).clamp(0, 1), target), "l2")
        delta.grad = -ascent * math.sqrt(images[0].numel())
        optimizer.step()
        delta.copy_(gamma * _steepest(delta, "l2"))
    return (images + delta).clamp(0, 1)


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """The step of norm 1 along which a linear function of this gradient grows most; 0 where the gradient is 0."""
    return gradient.sign() if norm == "linf" else gradient / _l2(gradient).clamp(min=1e-30)


def _l2(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))
