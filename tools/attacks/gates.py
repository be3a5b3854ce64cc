"""Checks of an evaluation by attacks. Each is a function of scores (`scores.score`), and says what it found.

A network looks robust when attacks fail, and attacks fail for many reasons that have nothing to do with robustness:
no gradient, too few steps, noise taken for strength. One gate that fails makes the result "not reliable".

Note:
    Carlini et al., "On evaluating adversarial robustness", arXiv 1902.06705, 2019, for most of them.
"""

import dataclasses
import math

import torch

ERRORS = 3.0  # standard errors of a difference that pass for chance of the noise
SLACK = 0.01  # difference that passes for chance of the search: it starts at random
NEARLY_ZERO = 0.05  # accuracy that is left without any bound on the perturbation
ZERO_GRADIENTS = 0.05  # share of images without any gradient that is let pass
PLANTED_ACCURACY = 0.02


@dataclasses.dataclass(frozen=True)
class Gate:
    """The outcome of one check: its name, whether it passed, and the numbers."""

    name: str
    passed: bool
    detail: str


def does_not_rise(what, scores):
    """More of `what` (radius, steps, draws, restarts) must not leave the network more accurate.

    Args:
        scores: {amount: score}, rising.
    """
    amounts = list(scores)
    risen = [
        f"{shown(low)} to {shown(high)}"
        for low, high in zip(amounts, amounts[1:])
        if excess(scores[high], scores[low]) > 0
    ]
    detail = ", ".join(f"{percent(one)} at {shown(amount)}" for amount, one in scores.items())
    if risen:
        detail += f"; rises from {', '.join(risen)}"
    return Gate(f"accuracy does not rise with {what}", not risen, detail)


def unbounded_attack_succeeds(score):
    """With any image allowed, an attack must find one that is classified wrongly."""
    return Gate("eps = 1 reaches nearly zero", score["accuracy"] <= NEARLY_ZERO, percent(score))


def not_weaker(name, strong, others):
    """The strong attack must leave no more accuracy than any of the others, but for chance.

    Args:
        strong: score under the attack that should be the strongest.
        others: {name: score}.
    """
    stronger = [other for other, score in others.items() if excess(strong, score) > 0]
    detail = f"{percent(strong)} against " + ", ".join(f"{percent(one)} ({other})" for other, one in others.items())
    return Gate(name, not stronger, detail + (f"; stronger: {', '.join(stronger)}" if stronger else ""))


def stronger_than_noise(what, attack, noise, clean):
    """An attack must do more than random noise of the same norm, unless there is nothing left to do."""
    passed = excess(noise, attack, slack=0.0) > 0 or min(noise["accuracy"], clean["accuracy"]) <= NEARLY_ZERO
    return Gate(f"{what} stronger than random noise", passed, f"{percent(attack)} against {percent(noise)}")


def gradients_are_there(first, second):
    """Few images may be without gradient, none with a gradient that is no number.

    How far two independent estimates agree is reported.

    Shape:
        first, second: gradients of the same images from independent draws, [B, C, H, W].
    """
    first, second = first.flatten(1).double(), second.flatten(1).double()
    without = (first == 0).all(1).double().mean().item()
    elements = (first == 0).double().mean().item()
    cosine = torch.nn.functional.cosine_similarity(first, second).mean().item()
    detail = (
        f"{100 * without:.1f} % of the images have none, {100 * elements:.1f} % of the pixels; "
        f"cosine of two independent estimates {cosine:.3f}"
    )
    is_finite = first.isfinite().all().item() and second.isfinite().all().item()
    detail += "" if is_finite else "; some are not finite"
    return Gate("gradients are there", without <= ZERO_GRADIENTS and is_finite, detail)


def vanishing_noise_is_no_noise(vanishing, noiseless):
    """As the scale of the noise goes to 0, attacks must have the success that they have without noise.

    Two networks that differ by rounding alone are attacked to different ends: on the way, a membrane at its threshold
    fires in one and not in the other. That turns images one way as often as the other, so the standard error is that of
    the mean of the images' own differences.
    """
    shares = [
        torch.tensor(score["times_correct"], dtype=torch.float64) / score["draws"] for score in (vanishing, noiseless)
    ]
    difference = shares[0] - shares[1]
    error = difference.square().sum().sqrt() / len(difference)
    passed = (difference.mean().abs() <= SLACK + ERRORS * error).item()
    detail = f"{percent(vanishing)} and {percent(noiseless)}"
    return Gate("scale -> 0 is the deterministic network", passed, detail)


def planted_example_is_found(score):
    """A weakness that was planted inside the ball around each image must be found."""
    return Gate("a planted adversarial example is found", score["accuracy"] <= PLANTED_ACCURACY, percent(score))


def nothing_comes_of_no_attack(chosen, clean):
    """What was chosen among copies of the clean image, by its luck, must be scored as the clean image is."""
    passed = excess(chosen, clean) <= 0 and excess(clean, chosen) <= 0
    return Gate("no attack leaves the clean accuracy", passed, f"{percent(chosen)} and {percent(clean)}")


def excess(first, second, slack=SLACK):
    """By how much the accuracy of the first score exceeds the second's by more than chance explains.

    Chance is `slack`, and `ERRORS` standard errors.

    The standard error is that of the mean over images of the difference, each image's being the binomial error of its
    draws: the images are the same in both, so nothing but the noise is left to chance.
    """
    variance = 0.0
    for score in (first, second):
        draws, images = score["draws"], len(score["times_correct"])
        if draws > 1:
            shares = torch.tensor(score["times_correct"], dtype=torch.float64) / draws
            variance += ((shares * (1 - shares)).sum() / (draws - 1) / images**2).item()
    return first["accuracy"] - second["accuracy"] - slack - ERRORS * math.sqrt(variance)


def percent(score):
    """The accuracy of a score, as text."""
    return f"{100 * score['accuracy']:.1f} %"


def shown(amount):
    """An amount as text: radii in 1/255 pixel."""
    return str(amount) if isinstance(amount, int | str) else f"{255 * amount:g}/255"
