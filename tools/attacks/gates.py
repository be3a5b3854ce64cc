"""Checks of an evaluation by attacks: functions of scores that say whether to believe them.

Attacks fail for many reasons other than robustness: no gradient, too few steps, noise mistaken for strength. One gate
that fails makes the result "not reliable".

Note:
    Carlini et al., "On evaluating adversarial robustness", arXiv 1902.06705, 2019, for most of them.
"""

import dataclasses
import itertools
import math

import torch
from torch import Tensor

from .scores import Score

ERRORS = 3.0  # standard errors of a difference that count as chance of the noise
SLACK = 0.01  # difference of accuracies that counts as chance of the search, which starts at random
NEARLY_ZERO = 0.05  # accuracy that may be left without any bound on the perturbation
ZERO_GRADIENTS = 0.05  # share of images that may have no gradient
PLANTED_ACCURACY = 0.02


@dataclasses.dataclass(frozen=True)
class Gate:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str  # the numbers


def does_not_rise(what: str, scores: dict[float, Score]) -> Gate:
    """More of `what` (radius, steps, draws, restarts) must not leave the network more accurate.

    Args:
        scores: {amount: score}, the amounts rising.
    """
    risen = []
    for low, high in itertools.pairwise(scores):
        if excess(scores[high], scores[low]) > 0:
            risen.append(f"{shown(low)} to {shown(high)}")
    detail = ", ".join(f"{percent(score)} at {shown(amount)}" for amount, score in scores.items())
    detail += f"; rises from {', '.join(risen)}" if risen else ""
    return Gate(f"accuracy does not rise with {what}", not risen, detail)


def unbounded_attack_succeeds(score: Score) -> Gate:
    """With any image allowed, an attack must find one that is classified wrongly."""
    return Gate("eps = 1 reaches nearly zero", score.accuracy <= NEARLY_ZERO, percent(score))


def not_weaker(name: str, strong: Score, others: dict[str, Score]) -> Gate:
    """The strong attack must leave no more accuracy than any of the others does, except by chance."""
    stronger = [other for other, score in others.items() if excess(strong, score) > 0]
    detail = f"{percent(strong)} against " + ", ".join(f"{percent(one)} ({other})" for other, one in others.items())
    return Gate(name, not stronger, detail + (f"; stronger: {', '.join(stronger)}" if stronger else ""))


def stronger_than_noise(what: str, attack: Score, noise: Score, clean: Score) -> Gate:
    """An attack must do more than random noise of the same norm, unless there is nothing left to do."""
    passed = excess(noise, attack, slack=0.0) > 0 or min(noise.accuracy, clean.accuracy) <= NEARLY_ZERO
    return Gate(f"{what} stronger than random noise", passed, f"{percent(attack)} against {percent(noise)}")


def gradients_are_there(first: Tensor, second: Tensor) -> Gate:
    """Few images may have no gradient, and none one that is not finite.

    Args:
        first, second: gradients of the same images from independent draws, [B, C, H, W]; how well they agree is
            reported.
    """
    first, second = first.flatten(1).double(), second.flatten(1).double()
    zero = (first == 0).double()
    without = zero.amin(1).mean().item()
    cosine = torch.nn.functional.cosine_similarity(first, second).mean().item()
    detail = f"{100 * without:.1f} % of the images have none, {100 * zero.mean().item():.1f} % of the pixels; "
    detail += f"cosine of two independent estimates {cosine:.3f}"
    is_finite = first.isfinite().all().item() and second.isfinite().all().item()
    detail += "" if is_finite else "; some are not finite"
    return Gate("gradients are there", without <= ZERO_GRADIENTS and is_finite, detail)


def vanishing_noise_is_no_noise(vanishing: Score, noiseless: Score) -> Gate:
    """As the scale of the noise goes to 0, attacks must succeed as often as without noise.

    Attacks on two networks that differ by rounding alone may end differently, as a membrane at its threshold fires in
    one and not in the other. That turns images one way as often as the other, so the standard error is that of the
    mean of the images' own differences.
    """
    difference = _shares(vanishing) - _shares(noiseless)
    error = difference.square().sum().sqrt() / len(difference)
    passed = (difference.mean().abs() <= SLACK + ERRORS * error).item()
    return Gate("scale -> 0 is the deterministic network", passed, f"{percent(vanishing)} and {percent(noiseless)}")


def planted_example_is_found(score: Score) -> Gate:
    """A weakness that was planted inside the ball around each image must be found."""
    return Gate("a planted adversarial example is found", score.accuracy <= PLANTED_ACCURACY, percent(score))


def nothing_comes_of_no_attack(chosen: Score, clean: Score) -> Gate:
    """What was chosen among copies of the clean image must score as the clean image does."""
    passed = excess(chosen, clean) <= 0 and excess(clean, chosen) <= 0
    return Gate("no attack leaves the clean accuracy", passed, f"{percent(chosen)} and {percent(clean)}")


def excess(first: Score, second: Score, slack: float = SLACK) -> float:
    """The accuracy of the first score, less that of the second, `slack`, and `ERRORS` standard errors.

    The standard error is that of the mean over images of the difference, with the binomial error of each image's
    draws: the images are the same in both, so that nothing but the noise is left to chance.
    """
    variance = 0.0
    for score in (first, second):
        if score.draws > 1:
            shares = _shares(score)
            variance += ((shares * (1 - shares)).sum() / (score.draws - 1) / len(shares) ** 2).item()
    return first.accuracy - second.accuracy - slack - ERRORS * math.sqrt(variance)


def _shares(score: Score) -> Tensor:
    """Of each image, the share of draws in which it was classified correctly. Shape: [B], float64."""
    return torch.tensor(score.times_correct, dtype=torch.float64) / score.draws


def percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} %"


def shown(amount: float) -> str:
    """A radius (float) in 1/255 pixel, a number of steps, draws or restarts (int) as it is."""
    return f"{255 * amount:g}/255" if isinstance(amount, float) else str(amount)
