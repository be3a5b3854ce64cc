"""The gates: checks that say whether to believe an evaluation by attacks.

Attacks fail for many reasons other than robustness: no gradient, too few steps, noise mistaken for strength. One failed
gate makes the result "not reliable". Functions that take scores decide; those that take a campaign first run the
attacks that they need.

Note:
    Carlini et al., "On evaluating adversarial robustness", arXiv 1902.06705, 2019, for most of them.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tools.probes.hooks import require, spiking_neurons

from .rivals import NOISE, WHITE_BOX
from .square import draw_signs
from .twins import Planted, mean_field_twin, noiseless_twin, vanishing_noise_twin
from .victim import CHOICE_DRAWS, Score, Victim, margin
from .white_box import Attacked, ascend, climbs, first_climb, search

if TYPE_CHECKING:
    from .campaign import Campaign

ERRORS = 3.0  # standard errors within which a difference may be due to chance in the noise
SLACK = 0.01  # a difference of accuracies that may be due to the random start of the search
CONVERGED = 0.02  # what four times the steps, or another attack, may still gain, besides a single image
NEARLY_ZERO = 0.05  # an accuracy at which nothing is left to attack
BLIND_EPS = 0.5  # the Linf radius within which all images can be made the same grey
ZERO_GRADIENTS = 0.05  # largest share of images without a gradient, or with a wrong one
# Of the check of gradients by differences: directions for each image; length of a step in pixel units, by precision; a
# share of the derivatives that is an error; and derivatives that are nothing, in log-probabilities per unit.
DIRECTIONS, DIFFERENCES, WRONG, TOO_SMALL = 8, {torch.float64: 1e-7, torch.float32: 1e-4}, 0.2, 0.02
PLANTED_ACCURACY = 0.02
COPIES = 4
PLANTED_EPS, PLANTED_STRENGTH = 8 / 255, 3.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str  # the numbers


def check_attacks(
    norm: str, clean: Score, scores: dict[float, Score], others: dict[str, Score], eps: float
) -> list[Gate]:
    """The gates of the attacks of one norm that need no further attack.

    Args:
        clean: the score without any attack.
        scores: of the white box, by radius.
        others: the scores on the sample of all attacks at the radius `eps`.
    """
    rise = does_not_rise(f"the {norm} radius", {0.0: clean, **scores})
    return [rise, *compare_rivals(f"at {norm} {eps:.3g}", others)]


def further_checks(campaign: "Campaign") -> list[Callable[["Campaign", str, float, Attacked], Gate]]:
    """The gates of the attacks of one norm that attack further, from what the white box found at a radius."""
    return [check_steps, _vanishing] if campaign.is_noisy else [check_steps]


def check_itself(campaign: "Campaign", clean: Score) -> list[Gate]:
    """The gates that do not depend on what the attacks found."""
    gradients = [_gradients(campaign), check_derivatives(campaign)]
    return [_blind(campaign), *gradients, check_planted(campaign), _no_attack(campaign, clean)]


def telling_radius(clean: Score, scores: dict[float, Score]) -> float:
    """The largest radius that leaves a fifth of the clean accuracy: images still stand, which a rival may fool."""
    left = {eps: score.accuracy for eps, score in scores.items()}
    return max((eps for eps in left if left[eps] >= clean.accuracy / 5), default=min(left))


def does_not_rise(what: str, scores: dict[float, Score]) -> Gate:
    """A larger radius must not raise the accuracy; `scores` are by rising amount."""
    risen = []
    for low, high in itertools.pairwise(scores):
        if excess(scores[high], scores[low]) > 0:
            risen.append(f"{low:.3g} to {high:.3g}")
    detail = ", ".join(f"{percent(score)} at {amount:.3g}" for amount, score in scores.items())
    detail += f"; rises from {', '.join(risen)}" if risen else ""
    return Gate(f"accuracy does not rise with {what}", not risen, detail)


def check_steps(campaign: "Campaign", norm: str, eps: float, found: Attacked) -> Gate:
    """Four times as many steps must find hardly more."""
    part, few = campaign.only(campaign.sample), found[campaign.sample]
    rows = (few.margins <= 0).nonzero()[:, 0]
    many = few
    if len(rows):
        climb = climbs(part)[0]
        many = few.improved(rows, ascend(part.only(rows), norm, eps, climb._replace(steps=4 * climb.steps)))
    before, after = part.score(few.images), part.score(many.images)
    gained = excess(before, after, _tolerated(before)) > 0
    detail = f"{percent(before)}, then {percent(after)}"
    return Gate(f"four times the steps find no more at {norm} {eps:.3g}", not gained, detail)


def _blind(campaign: "Campaign") -> Gate:
    """Where all images may be made the same, no more may be right than share one class."""
    part = campaign.only(campaign.sample)
    share = part.target.bincount().max().item() / len(part.target)
    score = part.score(search(part, "linf", BLIND_EPS).images)
    return at_most(f"linf {BLIND_EPS} leaves no more than chance", score, share)


def compare_rivals(where: str, scores: dict[str, Score]) -> Iterator[Gate]:
    """The white box against every other attack on the same images."""
    others = {name: score for name, score in scores.items() if name not in (WHITE_BOX, NOISE)}
    yield not_weaker(f"white box no weaker than others {where}", scores[WHITE_BOX], others)
    yield stronger_than_noise(f"white box {where}", scores[WHITE_BOX], scores[NOISE])


def not_weaker(name: str, strong: Score, others: dict[str, Score]) -> Gate:
    """The strong attack must leave no more accuracy than any of the others, except by chance."""
    stronger = [other for other, score in others.items() if excess(strong, score, _tolerated(score)) > 0]
    detail = f"{percent(strong)} against " + ", ".join(f"{percent(one)} ({other})" for other, one in others.items())
    return Gate(name, not stronger, detail + (f"; stronger: {', '.join(stronger)}" if stronger else ""))


def stronger_than_noise(what: str, attack: Score, noise: Score) -> Gate:
    """An attack must do more harm than random noise of the same norm, unless no accuracy is left."""
    passed = excess(noise, attack, slack=0.0) > 0 or noise.accuracy <= NEARLY_ZERO
    return Gate(f"{what} stronger than random noise", passed, f"{percent(attack)} against {percent(noise)}")


def _gradients(campaign: "Campaign") -> Gate:
    victim = campaign.victim(campaign.twin(campaign.paths[0]))
    with campaign.noise("gradients"):
        first = victim.gradient(campaign.images, campaign.target, margin)
        second = victim.gradient(campaign.images, campaign.target, margin)
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


def check_derivatives(campaign: "Campaign") -> Gate:
    """Gradients must be derivatives where a derivative exists: in the mean field, which is smooth.

    What stands between pixels and neurons is the same in all modes, so a layer that passes on another gradient than its
    own, of some of the pixels, is found without knowing of which. The reset is differentiated there in any case.
    """
    part = campaign.only(campaign.sample)
    net = mean_field_twin(campaign.net)  # without spiking neurons, a copy
    neurons = spiking_neurons(net)
    for layer, neuron in neurons:
        law = require(layer, neuron, "gradient_law", "the gradient of the mean field")
        require(layer, neuron, "set_gradient", "the gradient of the mean field")(law, False)
    what = "the mean field's" if neurons else "the network's"
    signs = draw_signs((DIRECTIONS, *part.images.shape), campaign.generator("directions")).to(part.images)
    try:
        return gradients_are_derivatives(what, *_derivatives(part, net.double(), signs.double()))
    except (RuntimeError, TypeError) as error:  # layers with numbers of their own in single precision
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return gradients_are_derivatives(f"in single precision, {what}", *_derivatives(part, net.float(), signs))


def _derivatives(part: "Campaign", net: nn.Module, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `gradients_are_derivatives` takes, in the precision of the directions `signs` [D, B, C, H, W]."""
    victim = Victim(net, dataclasses.replace(part.forward, amp="no"), 1, part._go_on)
    images, step = part.images.to(signs.dtype), DIFFERENCES[signs.dtype]
    claimed = (victim.gradient(images, part.target, margin) * signs).flatten(2).sum(2)
    ends = [[victim.margins(images + side * step * one, part.target) for one in signs] for side in (1, -1)]
    differences = (torch.stack(ends[0]) - torch.stack(ends[1])) / (2 * step)
    return claimed, differences, TOO_SMALL * victim.log_probabilities(images).abs().amax(1)


def gradients_are_derivatives(what: str, claimed: Tensor, differences: Tensor, too_small: Tensor) -> Gate:
    """Nearly all images must have the derivatives, along some directions, that differences show.

    Shape: claimed and differences [D, B]; too_small, an error that is none [B].
    """
    size = torch.maximum(claimed.norm(dim=0), differences.norm(dim=0)).clamp(min=len(claimed) ** 0.5 * too_small)
    error = ((claimed - differences).norm(dim=0) / size).nan_to_num(math.inf)
    wrong = (error > WRONG).double().mean().item()
    detail = f"{what} differ from differences by {100 * error.median().item():.1f} % in the median, "
    detail += f"by more than {100 * WRONG:.0f} % for {100 * wrong:.1f} % of the images"
    return Gate("gradients are derivatives", wrong <= ZERO_GRADIENTS, detail)


def _vanishing(campaign: "Campaign", norm: str, eps: float, found: Attacked) -> Gate:
    part = campaign.only(campaign.sample)
    climb = first_climb(part, "vanishing noise")
    vanishing, noiseless = (
        part.score(ascend(part, norm, eps, climb, twin).images, twin)
        for twin in (vanishing_noise_twin(campaign.net), noiseless_twin(campaign.net))
    )
    return vanishing_noise_equals_noiseless(f"at {norm} {eps:.3g}", vanishing, noiseless)


def vanishing_noise_equals_noiseless(where: str, vanishing: Score, noiseless: Score) -> Gate:
    """As the scale of the noise goes to 0, attacks must succeed as often as without noise.

    Attacks on two networks that differ by rounding alone may end differently, because a potential at its threshold may
    fire in one and not in the other. That changes images in either direction equally often, so the standard error is
    that of the mean of the images' own differences.
    """
    difference = _shares(vanishing) - _shares(noiseless)
    error = difference.square().sum().sqrt() / len(difference)
    chance = (SLACK + ERRORS * error).item()
    passed = difference.mean().abs().item() <= chance
    detail = f"{percent(vanishing)} and {percent(noiseless)}; chance: up to {100 * chance:.0f} points"
    return Gate(f"scale -> 0 is the deterministic network {where}", passed, detail)


def check_planted(campaign: "Campaign") -> Gate:
    """A weakness that was planted inside the ball around each image must be found."""
    part = campaign.only(campaign.sample)
    net = Planted(part.twin(part.paths[0]), part.images, PLANTED_EPS, PLANTED_STRENGTH)
    found = ascend(part, "linf", PLANTED_EPS, climbs(part)[0], net)
    return at_most("a planted adversarial example is found", part.score(found.images, net), PLANTED_ACCURACY)


def at_most(name: str, score: Score, limit: float) -> Gate:
    """An attack must leave no more accuracy than `limit`."""
    return Gate(name, score.accuracy <= limit, percent(score))


def _no_attack(campaign: "Campaign", clean: Score) -> Gate:
    best = Attacked(campaign.images, campaign.margins)
    for repetition in range(1, COPIES):
        with campaign.noise("choosing", "copies", repetition):
            margins = campaign.victim(draws=CHOICE_DRAWS).margins(campaign.images, campaign.target)
        best = best.or_better(Attacked(campaign.images, margins))
    return copies_score_as_clean(campaign.score(best.images, repetition=1), clean)


def copies_score_as_clean(chosen: Score, clean: Score) -> Gate:
    """A choice among copies of the clean image must have the score of the clean image."""
    passed = excess(chosen, clean) <= 0 and excess(clean, chosen) <= 0
    return Gate("doing nothing leaves the clean accuracy", passed, f"{percent(chosen)} and {percent(clean)}")


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


def _tolerated(score: Score) -> float:
    return CONVERGED + 1 / len(score.times_correct)


def _shares(score: Score) -> Tensor:
    """The share of draws that classified each image correctly. Shape: [B], float64."""
    return torch.tensor(score.times_correct, dtype=torch.float64) / score.draws


def percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} %"
