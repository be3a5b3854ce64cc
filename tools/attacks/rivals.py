"""Attacks that the white box must not be weaker than, on a sample of the images."""

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


def rivals(campaign: "Campaign", norm: str, eps: float, attacked: Tensor) -> dict[str, Score]:
    """{attack: score on the sample}, that of the white box (`attacked` images) included.

    Square is for Linf alone: it shows whether a network hides its gradient, and that does not depend on the norm.
    """
    part = campaign.only(campaign.sample)
    ball = Ball(part.images, eps, norm)
    found = {WHITE_BOX: attacked[campaign.sample], NOISE: random_noise(ball, campaign.generator(NOISE))}
    with campaign.noise("making", "FGSM"):
        found["FGSM"] = fgsm(part.victim(part.twin(part.paths[0])).gradient, ball, part.target)
    for name, twin in twins_in_other_modes(campaign.net).items():
        climb = first_climb(part, f"transfer, {name}")
        found[climb.path] = ascend(part, norm, eps, climb, twin, transfers=True).images
    if norm == "linf":
        for name, start in {"Square": None, "Square, continued": found[WHITE_BOX]}.items():
            campaign.bar.set_postfix_str(name)
            with campaign.noise("making", name):
                squares = campaign.generator(name)
                victim = part.victim(draws=min(part.draws, MOST_SQUARE_DRAWS))
                found[name] = square_attack(victim, ball, part.target, part.preset.queries, squares, start)
    return {name: part.score(images) for name, images in found.items()}
