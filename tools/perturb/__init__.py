"""Perturbations by name: of pixels, of events, inside the network, by an attack.

The decorator of each function enters it into the table. All are seeded, so that compared networks get the same draws.
"""

from tools.attacks.gradients import direct_optimisation

from . import events, hidden, pixels
from .perturbation import Perturbation

__all__ = ["PERTURBATIONS", "Perturbation", "applicable"]

GAMMA = "L2 norm of the attack, before it is cut to [0, 1]"
ADVERSARIAL = Perturbation("attack", direct_optimisation, "adv_gamma", GAMMA, (0.25, 0.5, 1.0, 1.5, 2.0))
PERTURBATIONS = {**pixels.PERTURBATIONS, **events.PERTURBATIONS, **hidden.PERTURBATIONS, "adversarial": ADVERSARIAL}


def applicable(has_pixels: bool, has_spikes: bool = True) -> list[str]:
    """Names of the perturbations for a data set of images (`has_pixels`) or of events; the mean field has no spikes."""
    others = ("events",) if has_pixels else ("pixels", "attack")
    possible = {name: one for name, one in PERTURBATIONS.items() if one.where not in others}
    return [name for name, one in possible.items() if has_spikes or not one.needs_spikes]
