"""Perturbations by name: of pixels, of events, inside the network, by an attack.

Each family has its table beside its functions. All are seeded, so that all compared networks meet the same draws.
"""

from functools import partial

from tools.attacks.gradients import direct_optimisation

from . import events, hidden, pixels
from .perturbation import Perturbation

__all__ = ["PERTURBATIONS", "Perturbation", "applicable"]

_spike = partial(Perturbation, "hidden", highest=1)
FEW, MANY = (0.001, 0.003, 0.01, 0.03, 0.1), (0.05, 0.1, 0.2, 0.3, 0.5)
HIDDEN = {
    "spike_level": _spike(hidden.flip_spikes, "spike_p", "probability of a flipped spike per neuron and step", FEW),
    "spike_delete": _spike(hidden.delete_spikes, "spike_p", "probability that a spike is lost", MANY),
    "spike_insert": _spike(
        hidden.insert_spikes, "spike_p", "probability of an extra spike per silent neuron and step", FEW
    ),
    "membrane": Perturbation(
        "hidden",
        hidden.membrane_noise,
        "membrane_sigma",
        "standard deviation of extra membrane noise",
        (0.1, 0.2, 0.3, 0.5, 1.0),
    ),
}
ATTACKS = {
    "adversarial": Perturbation(
        "attack",
        direct_optimisation,
        "adv_gamma",
        "L2 norm of the attack, before it is cut to [0, 1]",
        (0.25, 0.5, 1.0, 1.5, 2.0),
    ),
}
PERTURBATIONS = {**pixels.PERTURBATIONS, **events.PERTURBATIONS, **HIDDEN, **ATTACKS}


def applicable(has_pixels: bool) -> list[str]:
    """Names of the perturbations for a data set that has pixels, or else events."""
    others = ("events",) if has_pixels else ("pixels", "attack")
    return [name for name, perturbation in PERTURBATIONS.items() if perturbation.where not in others]
