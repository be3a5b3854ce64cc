"""White-box attacks. They ascend a gradient that they are given as a function (images, target) -> gradient.

Images are in [0, 1] and stay there; `eps` and `gamma` are in the same units. One perturbation serves all time steps.
Shape: images [B, C, H, W], target [B] -> attacked images [B, C, H, W].
"""

import math

import torch

STEP = 2.5  # of projected gradient descent, times eps / steps (Madry et al., ICLR 2018)
ADAM_LR, ADAM_STEPS = 0.002, 30  # of the published direct optimisation


def random_noise(images, eps, norm, generator):
    """Noise of norm `eps` in a random direction: each pixel +-eps for Linf; what any attack must beat."""
    shape = dict(size=images.shape, generator=generator, device=generator.device)
    noise = torch.randn(**shape).to(images.device)
    return (images + _steepest(noise, norm) * eps).clamp(0, 1)


def fgsm(gradient, images, target, eps, norm="linf"):
    """One step of size `eps` along the sign of the gradient (for "l2": along the gradient).

    Note:
        Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
    """
    return (images + _steepest(gradient(images, target), norm) * eps).clamp(0, 1)


def pgd(gradient, images, target, eps, norm, steps, generator, margins=None, on_step=None):
    """Projected gradient ascent from a random start in the ball of radius `eps`.

    Args:
        norm: "linf" or "l2".
        steps: of size 2.5 eps / steps each.
        margins: None, or (images, target) -> how far the network errs [B]: the best point on the way is then returned,
            and not the last one.
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


def direct_optimisation(gradient, images, target, gamma, generator, lr=ADAM_LR, steps=ADAM_STEPS):
    """The published attack: Adam moves a perturbation on the sphere of L2 radius `gamma`.

    It is kept to compare with what was published, and is no measure of robustness: a pixel moves by `lr` a step, 0.06
    in all, and what leaves [0, 1] is cut off, so that `pgd` of the same norm finds far more.

    Note:
        Ma, Yan and Tang, Patterns 4 (2023) 100831, with their learning rate and number of steps. The start is random on
        the sphere, and each step is followed by the way back to it. Gradients are scaled to a mean square of 1, which
        Adam would not notice but for its epsilon.
    """
    shape = dict(size=images.shape, generator=generator, device=generator.device)
    delta = _steepest(torch.randn(**shape).to(images.device), "l2").mul_(gamma)
    optimizer = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        ascent = _steepest(gradient((images + delta).clamp(0, 1), target), "l2")
        delta.grad = -ascent * math.sqrt(images[0].numel())
        optimizer.step()
        delta.copy_(gamma * _steepest(delta, "l2"))
    return (images + delta).clamp(0, 1)


def _steepest(gradient, norm):
    """The step of norm 1 along which a linear function grows most; 0 where the gradient is 0."""
    return gradient.sign() if norm == "linf" else gradient / _l2(gradient).clamp(min=1e-30)


def _l2(delta):
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))


def _start(images, eps, norm, generator):
    """Uniform in the box for Linf; for L2 a random direction, with a radius as if uniform in [0, eps]."""
    shape = dict(size=images.shape, generator=generator, device=generator.device)
    if norm == "linf":
        return ((2 * torch.rand(**shape) - 1) * eps).to(images.device)
    direction = _steepest(torch.randn(**shape), "l2")
    radius = torch.rand(len(images), *[1] * (images.dim() - 1), generator=generator, device=generator.device)
    return (direction * radius * eps).to(images.device)


def _project(attacked, images, eps, norm):
    """Back into the ball around the images, and into [0, 1]."""
    delta = attacked - images
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / _l2(delta).clamp(min=eps))
    return (images + delta).clamp(0, 1)
