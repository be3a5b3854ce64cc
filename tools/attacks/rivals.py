"""Attacks that the white box must not be weaker than, on a sample of the images."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from .gradients import Ball, fgsm, random_noise
from .square import square_attack
from .twins import twins_in_other_modes
from .victim import Score
from .white_box import ascend, first_climb

if TYPE_CHECKING:
    from .campaign import Campaign

WHITE_BOX, NOISE = "white box", "random noise"
MOST_SQUARE_DRAWS = 2  # in a query of Square, which measures what it accepted again
# (a campaign on the sample, ball of these images, the same images as the white box attacked them) -> attacked images
Rival = Callable[["Campaign", Ball, Tensor], Tensor]


def rivals(campaign: "Campaign") -> dict[str, Rival]:
    """{attack: what runs it}; also the white box, whose images are there, to be scored alike."""
    found: dict[str, Rival] = {WHITE_BOX: lambda part, ball, attacked: attacked, NOISE: _random, "FGSM": _fgsm}
    for mode in twins_in_other_modes(campaign.net):
        found[f"transfer, {mode}"] = functools.partial(_transferred, mode)
    found["Square"] = functools.partial(_square, "Square", False)
    found["Square, continued"] = functools.partial(_square, "Square, continued", True)
    return found


def score_of(campaign: "Campaign", rival: Rival, norm: str, eps: float, attacked: Tensor) -> Score:
    """The score of a rival on the sample; `attacked`: all images by the white box."""
    part = campaign.only(campaign.sample)
    return part.score(rival(part, Ball(part.images, eps, norm), attacked[campaign.sample]))


def _random(part: "Campaign", ball: Ball, attacked: Tensor) -> Tensor:
    return random_noise(ball, part.generator(NOISE))


def _fgsm(part: "Campaign", ball: Ball, attacked: Tensor) -> Tensor:
    with part.noise("making", "FGSM"):
        return fgsm(part.victim(part.twin(part.paths[0])).gradient, ball, part.target)


def _transferred(mode: str, part: "Campaign", ball: Ball, attacked: Tensor) -> Tensor:
    climb, twin = first_climb(part, f"transfer, {mode}"), twins_in_other_modes(part.net)[mode]
    return ascend(part, ball.norm, ball.eps, climb, twin, transfers=True).images


def _square(name: str, continues: bool, part: "Campaign", ball: Ball, attacked: Tensor) -> Tensor:
    part.bar.set_postfix_str(name)
    start = attacked if continues else None
    with part.noise("making", name):
        victim = part.victim(draws=min(part.draws, MOST_SQUARE_DRAWS))
        return square_attack(victim, ball, part.target, part.preset.queries, part.generator(name), start)
