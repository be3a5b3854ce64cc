"""Perturbations of the test by name: of the pixels, or hidden inside the network.

Each is a `Perturbation`: seeded, so that every compared network meets the same draws.
"""

import dataclasses
import math
from collections.abc import Callable

from . import hidden, pixels


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One way to disturb a test.

    Args:
        apply: for pixels, (images [B, C, H, W] in [0, 1], strength, generator) -> the same, in [0, 1];
            for hidden ones, (net, strength, generator) -> context manager.
        is_hidden: which of the two it is.
        flag: the command line's name of its strength.
        unit: what the strength is, for the axis of a plot.
        highest: largest strength that makes sense.
    """

    apply: Callable
    is_hidden: bool
    flag: str
    unit: str
    highest: float = math.inf


PERTURBATIONS = {
    "add_gaussian": Perturbation(
        pixels.add_gaussian, False, "gaussian_sigma", "standard deviation of added noise (pixel range 1)"
    ),
    "multi_gaussian": Perturbation(
        pixels.multiply_gaussian, False, "gaussian_sigma", "standard deviation of multiplied noise"
    ),
    "sp": Perturbation(pixels.salt_and_pepper, False, "sp_alpha", "fraction of pixels set to black or white", 1.0),
    "spike_level": Perturbation(
        hidden.flip_spikes, True, "spike_p", "probability of a flipped spike per neuron and step", 1.0
    ),
    "membrane": Perturbation(
        hidden.membrane_noise, True, "membrane_sigma", "standard deviation of extra membrane noise"
    ),
}
