"""White-box attacks, which climb a gradient given as a function.

Images are in [0, 1] and stay there; `eps` and `gamma` are in the same units. One perturbation serves all time steps.
Shape: images [B, C, H, W], target [B] -> attacked images [B, C, H, W].
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tools.runtime.seeds import draw

from .victim import SETTLED, Ascent

Gradient = Callable[[Tensor, Tensor], Tensor]  # (images, target) -> gradient
NORMS = ("linf", "l2")  # of a `Ball`
FIRST_STEP, MOMENTUM, MOST_RISES = 2.0, 0.75, 0.75  # of `apgd`: eta / eps, alpha and rho of the paper
CONTINUED_STEP = 0.5  # likewise, from images that an attack found
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

    def __getitem__(self, rows: Tensor) -> "Ball":
        """The balls around some of the images."""
        return dataclasses.replace(self, images=self.images[rows])

    def projected(self, images: Tensor) -> Tensor:
        """The nearest images of the ball; for L2, nearly."""
        delta = images - self.images
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _l2(delta).clamp(min=self.eps))
        return (self.images + delta).clamp(0, 1)

    def moved(self, images: Tensor, direction: Tensor, step: float | Tensor) -> Tensor:
        """`images` after a step of length `step` along the steepest direction, projected back into the ball."""
        return self.projected(images + step * _steepest(direction, self.norm))

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


def apgd(
    climb: Callable[[Tensor, Tensor], Ascent],
    ball: Ball,
    start: Tensor,
    steps: int,
    judge: Callable[[Tensor, Tensor], Tensor] | None = None,
    is_exact: bool = True,
    first_step: float = FIRST_STEP,
) -> tuple[Tensor, Tensor]:
    """Projected gradient ascent with momentum, in steps that halve where they no longer help.

    An image whose margin suffices is not moved any more.

    Args:
        climb: (images, their rows in the batch) -> what there is to climb.
        start: images of the ball.
        judge: (images, their rows) -> the margins that count [B]; None: those of `climb`.
        is_exact: whether the margins of `climb` are those of `judge` but for rounding. If not, because of noise or
            another network, it judges images at checkpoints, and an image suffices only beyond `SETTLED`.
        first_step: in units of eps.

    Returns:
        The images of the highest margin, and these margins [B].

    Note:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, section 3: momentum, checkpoints and the two conditions for halving. Leaving an image once
        it is fooled, and the judge, are ours.
    """
    enough = 0.0 if is_exact else SETTLED
    rows = torch.arange(len(start), device=start.device)
    found = climb(start, rows)
    images, before = start.clone(), start.clone()
    value, gradient = found.value, found.gradient
    peak, peak_value, peak_gradient = start.clone(), value.clone(), gradient.clone()  # where the value was highest
    size = torch.full((len(start), 1, 1, 1), first_step * ball.eps, device=start.device)
    rises, old_size, old_peak = torch.zeros_like(value), size.clone(), value.clone()  # since or at the last checkpoint
    best, highest = start.clone(), torch.full_like(found.margin, -torch.inf)

    def keep(rows: Tensor, margins: Tensor) -> None:
        better = rows[margins > highest[rows]]
        highest[better] = margins[margins > highest[rows]]
        best[better] = images[better]

    def keep_by_climb(rows: Tensor, margins: Tensor) -> None:
        fooled = (margins > 0).nonzero()[:, 0]
        if judge is not None and len(fooled):
            margins = margins.index_copy(0, fooled, judge(images[rows[fooled]], rows[fooled]).to(margins.dtype))
        keep(rows, margins)

    if is_exact:
        keep_by_climb(rows, found.margin)
    checkpoints, last = _checkpoints(steps), 0
    for step in range(1, steps + 1):
        rows = (highest <= enough).nonzero()[:, 0]
        if not len(rows):
            break
        around, now = ball[rows], images[rows]
        ahead = around.moved(now, gradient[rows], size[rows])
        if step > 1:
            drift = MOMENTUM * (ahead - now) + (1 - MOMENTUM) * (now - before[rows])
            ahead = around.projected(now + drift)
        before[rows], images[rows] = now, ahead
        found = climb(ahead, rows)
        rises[rows] += found.value > value[rows]
        value[rows], gradient[rows] = found.value, found.gradient
        up = rows[found.value > peak_value[rows]]
        peak[up], peak_value[up], peak_gradient[up] = images[up], value[up], gradient[up]
        if is_exact:
            keep_by_climb(rows, found.margin)
        if step in checkpoints:
            if judge is not None and not is_exact:
                looks = rows if step == steps else rows[found.margin > 0]
                if len(looks):
                    keep(looks, judge(images[looks], looks))
            few = rises[rows] < MOST_RISES * (step - last)
            stuck = (size[rows] == old_size[rows]).flatten() & (peak_value[rows] <= old_peak[rows])
            old_size[rows], old_peak[rows], rises[rows], last = size[rows], peak_value[rows], 0.0, step
            cut = rows[few | stuck]
            size[cut] = size[cut] / 2
            images[cut] = before[cut] = peak[cut]
            value[cut], gradient[cut] = peak_value[cut], peak_gradient[cut]
    return best, highest


def _checkpoints(steps: int) -> set[int]:
    """The steps after which `apgd` may halve its steps: after 22 %, and then at intervals that shrink to 6 %."""
    share, interval, found = 0.0, 0.22, set()
    while share < 1:
        share = min(1.0, share + interval)
        found.add(math.ceil(share * steps - 1e-9))
        interval = max(interval - 0.03, 0.06)
    return found


def direct_optimisation(
    gradient: Gradient, images: Tensor, target: Tensor, gamma: float, generator: Generator, steps: int = ADAM_STEPS
) -> Tensor:
    """The published attack: Adam moves a perturbation on the sphere of L2 radius `gamma`.

    For comparison with published numbers only, not a measure of robustness: a pixel moves by 0.002 per step, 0.06 in
    all, and is cut to [0, 1], so `apgd` of the same norm does far more harm.

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
