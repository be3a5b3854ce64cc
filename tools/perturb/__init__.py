"""Perturbations by name: of pixels, of events, inside the network, by an attack.

The decorator of each function enters it into the table. All are seeded, so that compared networks get the same draws.
"""

from . import attacks, events, hidden, pixels
from .perturbation import Perturbation

__all__ = ["PERTURBATIONS", "SETS", "Perturbation", "applicable"]

PERTURBATIONS = {**pixels.PERTURBATIONS, **events.PERTURBATIONS, **hidden.PERTURBATIONS, **attacks.PERTURBATIONS}
# Those that a name stands for, where they apply. The tests of Ma, Yan and Tang (Patterns 4 (2023) 100831) are the
# attacks "direct optimisation" and FGSM, lost input spikes, and flipped spikes of the neurons.
SETS = {
    "all": tuple(name for name, one in PERTURBATIONS.items() if one.where != "attack"),
    "published": ("adversarial", "fgsm", "eventdrop", "spike_level"),
}


def applicable(has_pixels: bool, has_spikes: bool = True, has_neurons: bool = True) -> list[str]:
    """Names of the perturbations for a data set of images (`has_pixels`) or of events.

    The mean field has neurons without spikes; a ReLU network has no neurons.
    """
    others = ("events",) if has_pixels else ("pixels", "attack")
    others += () if has_neurons else ("hidden",)
    possible = {name: one for name, one in PERTURBATIONS.items() if one.where not in others}
    return [name for name, one in possible.items() if has_spikes or not one.needs_spikes]
