"""The gates: checks that say whether to believe an evaluation by attacks.

Attacks fail for many reasons other than robustness: no gradient, too few steps, noise mistaken for strength. One failed
gate makes the result "not reliable". Functions that take scores decide; those that take a
campaign first run the attacks that they need.

Note:
    Carlini et al., "On evaluating adversarial robustness", arXiv 1902.06705, 2019, for most of them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .twins import Planted, noiseless_twin, vanishing_noise_twin, with_gradient_path
from .victim import Score

if TYPE_CHECKING:
    from .campaign import Campaign, RadiusTest

ERRORS = 3.0  # standard errors within which a difference may be due to chance in the noise
SLACK = 0.01  # a difference of accuracies that may be due to the random start of the search
NEARLY_ZERO = 0.05  # largest accuracy under an unbounded perturbation
ZERO_GRADIENTS = 0.05  # largest share of images without a gradient
PLANTED_ACCURACY = 0.02
PLANTED_EPS, PLANTED_STRENGTH = 8 / 255, 3.0
NOT_RIVALS = ("random noise", "FGSM", "PGD", "all")  # attacks; PGD has to be as strong as each of the others
IMAGES = 50  # number of images for gates that run their own attacks

Tests = dict[tuple[str, float], "RadiusTest"]  # by norm and radius


@dataclasses.dataclass(frozen=True)
class Gate:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str  # the numbers


def run_checks(campaign: "Campaign", clean: Score, tests: Tests) -> list[Gate]:
    """All gates of a campaign; `clean` is the score without any attack."""
    eps = telling_radius(clean, tests)
    test = tests["linf", eps]
    checks = [
        does_not_rise("eps", {0.0: clean, **_of_pgd(tests)}),
        check_steps(campaign, eps, test),
        _restarts(campaign, test),
        _unbounded(campaign),
        *compare_rivals(tests),
        *_noise(clean, tests),
        _gradients(campaign),
        check_planted(campaign),
        _no_attack(campaign, clean),
    ]
    if campaign.is_noisy:
        checks += [check_draws(campaign, eps, test), _vanishing(campaign, eps)]
    return checks


def telling_radius(clean: Score, tests: Tests) -> float:
    """The Linf radius that leaves about half of the accuracy; where all or nothing is left, attacks look alike."""
    left = {eps: score.accuracy for eps, score in _of_pgd(tests).items()}
    return min(left, key=lambda eps: abs(left[eps] - clean.accuracy / 2))


def _of_pgd(tests: Tests) -> dict[float, Score]:
    """{Linf radius: score under PGD}, by rising radius."""
    return {eps: test.scores["PGD"] for (norm, eps), test in sorted(tests.items()) if norm == "linf"}


def _first_path(campaign: "Campaign") -> nn.Module:
    """The network with the first gradient path."""
    return with_gradient_path(campaign.net, campaign.preset.paths[0])


def does_not_rise(what: str, scores: dict[float, Score]) -> Gate:
    """More of `what` (radius, steps, draws, restarts) must not raise the accuracy; `scores` are by rising amount."""
    risen = []
    for low, high in itertools.pairwise(scores):
        if excess(scores[high], scores[low]) > 0:
            risen.append(f"{shown(low)} to {shown(high)}")
    detail = ", ".join(f"{percent(score)} at {shown(amount)}" for amount, score in scores.items())
    detail += f"; rises from {', '.join(risen)}" if risen else ""
    return Gate(f"accuracy does not rise with {what}", not risen, detail)


def check_steps(campaign: "Campaign", eps: float, test: "RadiusTest") -> Gate:
    """A quarter of the steps must not do more harm than all of them."""
    few, many = max(1, campaign.preset.steps // 4), campaign.preset.steps
    weak = campaign.pgd(_first_path(campaign), "linf", eps, steps=few)
    return does_not_rise("steps", {few: campaign.score(weak), many: campaign.score(test.restarts[0])})


def check_draws(campaign: "Campaign", eps: float, test: "RadiusTest") -> Gate:
    """Gradients of a single draw must not do more harm than those of several."""
    weak = campaign.pgd(_first_path(campaign), "linf", eps, draws=1)
    scores = {1: campaign.score(weak), campaign.draws: campaign.score(test.restarts[0])}
    return does_not_rise("noise draws of a gradient", scores)


def _restarts(campaign: "Campaign", test: "RadiusTest") -> Gate:
    scores = {}
    for count in (1, len(test.restarts)):
        scores[count] = campaign.score(campaign.choose([campaign.images, *test.restarts[:count]]))
    return does_not_rise("restarts", scores)


def _unbounded(campaign: "Campaign") -> Gate:
    """Where any image is allowed, attacks must find one that is classified wrongly."""
    part = campaign.first(IMAGES)
    candidates = [part.pgd(with_gradient_path(part.net, path), "linf", 1.0) for path in part.preset.paths]
    return at_most("eps = 1 reaches nearly zero", part.score(part.choose(candidates)), NEARLY_ZERO)


def compare_rivals(tests: Tests) -> Iterator[Gate]:
    """Projected gradient descent against FGSM, and against black-box attacks, at each radius."""
    for (norm, eps), test in tests.items():
        where, white_box = f"at {norm} {shown(eps) if norm == 'linf' else eps}", test.scores["PGD"]
        yield not_weaker(f"PGD no weaker than FGSM {where}", white_box, {"FGSM": test.scores["FGSM"]})
        others = {name: score for name, score in test.scores.items() if name not in NOT_RIVALS}
        yield not_weaker(f"white box no weaker than transfer and Square {where}", white_box, others)


def not_weaker(name: str, strong: Score, others: dict[str, Score]) -> Gate:
    """The strong attack must leave no more accuracy than any of the others, except by chance."""
    stronger = [other for other, score in others.items() if excess(strong, score) > 0]
    detail = f"{percent(strong)} against " + ", ".join(f"{percent(one)} ({other})" for other, one in others.items())
    return Gate(name, not stronger, detail + (f"; stronger: {', '.join(stronger)}" if stronger else ""))


def _noise(clean: Score, tests: Tests) -> Iterator[Gate]:
    """At the largest radius of each norm; within a small one, noise may harm a robust network as much as attacks do."""
    for norm, eps in dict(sorted(tests)).items():  # the last radius of each norm
        scores = tests[norm, eps].scores
        yield stronger_than_noise(f"{norm} attack", scores["PGD"], scores["random noise"], clean)


def stronger_than_noise(what: str, attack: Score, noise: Score, clean: Score) -> Gate:
    """An attack must do more harm than random noise of the same norm, unless no accuracy is left."""
    passed = excess(noise, attack, slack=0.0) > 0 or min(noise.accuracy, clean.accuracy) <= NEARLY_ZERO
    return Gate(f"{what} stronger than random noise", passed, f"{percent(attack)} against {percent(noise)}")


def _gradients(campaign: "Campaign") -> Gate:
    victim = campaign.victim(_first_path(campaign))
    with campaign.noise("gradients"):
        first = victim.gradient(campaign.images, campaign.target)
        second = victim.gradient(campaign.images, campaign.target)
    return gradients_are_there(first, second)


def gradients_are_there(first: Tensor, second: Tensor) -> Gate:
    """Nearly all images must have a gradient, and all gradients be finite; the detail says how two estimates agree."""
    first, second = first.flatten(1).double(), second.flatten(1).double()
    zero = (first == 0).double()
    without = zero.amin(1).mean().item()
    cosine = torch.nn.functional.cosine_similarity(first, second).mean().item()
    detail = f"{100 * without:.1f} % of the images have none, {100 * zero.mean().item():.1f} % of the pixels; "
    detail += f"cosine of two independent estimates {cosine:.3f}"
    is_finite = torch.stack([first, second]).isfinite().all().item()
    detail += "" if is_finite else "; some are not finite"
    return Gate("gradients are there", without <= ZERO_GRADIENTS and is_finite, detail)


def _vanishing(campaign: "Campaign", eps: float) -> Gate:
    def attacked(twin: nn.Module) -> Score:
        return campaign.score(campaign.pgd(twin, "linf", eps, draws=1, best=False), twin)

    return vanishing_noise_equals_noiseless(
        vanishing=attacked(vanishing_noise_twin(campaign.net)), noiseless=attacked(noiseless_twin(campaign.net))
    )


def vanishing_noise_equals_noiseless(vanishing: Score, noiseless: Score) -> Gate:
    """As the scale of the noise goes to 0, attacks must succeed as often as without noise.

    Attacks on two networks that differ by rounding alone may end differently, because a potential at its threshold may
    fire in one and not in the other. That changes images in either direction equally often, so the standard error is
    that of the mean of the images' own differences.
    """
    difference = _shares(vanishing) - _shares(noiseless)
    error = difference.square().sum().sqrt() / len(difference)
    passed = (difference.mean().abs() <= SLACK + ERRORS * error).item()
    return Gate("scale -> 0 is the deterministic network", passed, f"{percent(vanishing)} and {percent(noiseless)}")


def check_planted(campaign: "Campaign") -> Gate:
    """A weakness that was planted inside the ball around each image must be found."""
    part = campaign.first(IMAGES)
    net = Planted(_first_path(part), part.images, PLANTED_EPS, PLANTED_STRENGTH)
    candidates = [part.pgd(net, "linf", PLANTED_EPS, restart) for restart in range(part.preset.restarts)]
    score = part.score(part.choose(candidates, net), net)
    return at_most("a planted adversarial example is found", score, PLANTED_ACCURACY)


def at_most(name: str, score: Score, limit: float) -> Gate:
    """An attack must leave no more accuracy than `limit`."""
    return Gate(name, score.accuracy <= limit, percent(score))


def _no_attack(campaign: "Campaign", clean: Score) -> Gate:
    copies = len(campaign.preset.paths) * campaign.preset.restarts
    chosen = campaign.choose([campaign.images] * copies)
    return copies_score_as_clean(campaign.score(chosen, repetition=1), clean)


def copies_score_as_clean(chosen: Score, clean: Score) -> Gate:
    """A choice among copies of the clean image must have the score of the clean image."""
    passed = excess(chosen, clean) <= 0 and excess(clean, chosen) <= 0
    return Gate("no attack leaves the clean accuracy", passed, f"{percent(chosen)} and {percent(clean)}")


def excess(first: Score, second: Score, slack: float = SLACK) -> float:
    """The accuracy of the first score, minus that of the second, `slack`, and `ERRORS` standard errors.

    The standard error is that of the mean over images of the difference, from the binomial error of each image's
    draws: the images are the same in both, so only the noise is left to chance.
    """
    variance = 0.0
    for score in (first, second):
        if score.draws > 1:
            shares = _shares(score)
            variance += ((shares * (1 - shares)).sum() / (score.draws - 1) / len(shares) ** 2).item()
    return first.accuracy - second.accuracy - slack - ERRORS * math.sqrt(variance)


def _shares(score: Score) -> Tensor:
    """The share of draws that classified each image correctly. Shape: [B], float64."""
    return torch.tensor(score.times_correct, dtype=torch.float64) / score.draws


def percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} %"


def shown(amount: float) -> str:
    """A radius (float) in units of 1/255; a number of steps, draws or restarts (int) as it is."""
    return f"{255 * amount:g}/255" if isinstance(amount, float) else str(amount)
