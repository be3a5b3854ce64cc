"""Perturbations of the test by name: of the pixels, of the events, hidden inside the network, or by an attack.

Each is a `Perturbation`: seeded, so that every compared network meets the same draws.
"""

import dataclasses
import math
from collections.abc import Callable

from tools.attacks.gradients import direct_optimisation

from . import events, hidden, pixels


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One way to disturb a test.

    Args:
        apply: for pixels, (images [B, C, H, W] in [0, 1], strength, generator) -> the same, in [0, 1];
            for events, (events [N], strength, numpy Generator, sensor's (width, height)) -> events;
            for hidden ones, (net, strength, generator) -> context manager;
            for attacks, (gradient, images, target, strength, generator) -> attacked images in [0, 1].
        where: "pixels", "events", "hidden" or "attack": which of the four it is.
        flag: the command line's name of its strength.
        unit: what the strength is, for the axis of a plot.
        severities: the strengths of severity 1 to 5.
        neutral: the strength that changes nothing; None where there is none.
        lowest, highest: range of strengths that make sense.
        is_random: whether it draws anything.
    """

    apply: Callable
    where: str
    flag: str
    unit: str
    severities: tuple
    neutral: float = 0.0
    lowest: float = 0.0
    highest: float = math.inf
    is_random: bool = True


# Severities of pixels are those of CIFAR-10-C, for images of 32 pixels (Hendrycks and Dietterich, ICLR 2019).
PERTURBATIONS = {
    "add_gaussian": Perturbation(
        pixels.add_gaussian,
        "pixels",
        "gaussian_sigma",
        "standard deviation of added noise (pixel range 1)",
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "multi_gaussian": Perturbation(
        pixels.multiply_gaussian,
        "pixels",
        "gaussian_sigma",
        "standard deviation of multiplied noise",
        (0.06, 0.10, 0.12, 0.16, 0.20),
    ),
    "shot": Perturbation(
        pixels.shot_noise,
        "pixels",
        "photons",
        "photons of a white pixel",
        (500, 250, 100, 75, 50),
        neutral=None,
        lowest=1,
    ),
    "sp": Perturbation(
        pixels.salt_and_pepper,
        "pixels",
        "sp_alpha",
        "fraction of pixels set to black or white",
        (0.01, 0.02, 0.03, 0.05, 0.07),
        highest=1.0,
    ),
    "blur": Perturbation(
        pixels.blur,
        "pixels",
        "blur_sigma",
        "standard deviation of the blur (pixels)",
        (0.4, 0.6, 0.7, 0.8, 1.0),
        is_random=False,
    ),
    "contrast": Perturbation(
        pixels.contrast,
        "pixels",
        "contrast_factor",
        "factor of contrast",
        (0.75, 0.5, 0.4, 0.3, 0.15),
        neutral=1.0,
        is_random=False,
    ),
    "brightness": Perturbation(
        pixels.brightness,
        "pixels",
        "brightness_delta",
        "added to the value (pixel range 1)",
        (0.05, 0.1, 0.15, 0.2, 0.3),
        highest=1.0,
        is_random=False,
    ),
    "jpeg": Perturbation(
        pixels.jpeg,
        "pixels",
        "jpeg_quality",
        "JPEG quality",
        (80, 65, 58, 50, 40),
        neutral=None,
        lowest=1,
        highest=95,
        is_random=False,
    ),
    "pixelate": Perturbation(
        pixels.pixelate,
        "pixels",
        "pixelate_factor",
        "size after shrinking, of the original",
        (0.95, 0.9, 0.85, 0.75, 0.65),
        neutral=1.0,
        highest=1.0,
        is_random=False,
    ),
    "eventdrop": Perturbation(
        events.drop_random, "events", "drop_p", "fraction of events dropped", (0.1, 0.3, 0.5, 0.7, 0.9), highest=1.0
    ),
    "drop_time": Perturbation(
        events.drop_time,
        "events",
        "drop_ratio",
        "share of the time without events",
        (0.1, 0.2, 0.3, 0.5, 0.7),
        highest=1.0,
    ),
    "drop_area": Perturbation(
        events.drop_area,
        "events",
        "drop_ratio",
        "sides of the dead box, of the sensor's",
        (0.1, 0.2, 0.3, 0.4, 0.5),
        highest=1.0,
    ),
    "background": Perturbation(
        events.background_activity,
        "events",
        "background_hz",
        "events per pixel and second",
        (0.1, 0.3, 1.0, 3.0, 5.0),
    ),
    "hot_pixels": Perturbation(
        events.hot_pixels,
        "events",
        "pixel_fraction",
        "fraction of hot pixels",
        (0.001, 0.003, 0.01, 0.03, 0.1),
        highest=1.0,
    ),
    "dead_pixels": Perturbation(
        events.dead_pixels,
        "events",
        "pixel_fraction",
        "fraction of dead pixels",
        (0.01, 0.03, 0.1, 0.2, 0.3),
        highest=1.0,
    ),
    "time_jitter": Perturbation(
        events.jitter_time,
        "events",
        "jitter_us",
        "standard deviation of times (microseconds)",
        (1_000, 5_000, 10_000, 30_000, 100_000),
    ),
    "polarity_flip": Perturbation(
        events.flip_polarity,
        "events",
        "polarity_p",
        "fraction of flipped events",
        (0.05, 0.1, 0.2, 0.3, 0.5),
        highest=1.0,
    ),
    "spike_level": Perturbation(
        hidden.flip_spikes,
        "hidden",
        "spike_p",
        "probability of a flipped spike per neuron and step",
        (0.001, 0.003, 0.01, 0.03, 0.1),
        highest=1.0,
    ),
    "spike_delete": Perturbation(
        hidden.delete_spikes,
        "hidden",
        "spike_p",
        "probability that a spike is lost",
        (0.05, 0.1, 0.2, 0.3, 0.5),
        highest=1.0,
    ),
    "spike_insert": Perturbation(
        hidden.insert_spikes,
        "hidden",
        "spike_p",
        "probability of an extra spike per silent neuron and step",
        (0.001, 0.003, 0.01, 0.03, 0.1),
        highest=1.0,
    ),
    "membrane": Perturbation(
        hidden.membrane_noise,
        "hidden",
        "membrane_sigma",
        "standard deviation of extra membrane noise",
        (0.1, 0.2, 0.3, 0.5, 1.0),
    ),
    "adversarial": Perturbation(
        direct_optimisation,
        "attack",
        "adv_gamma",
        "L2 norm of the attack, before it is cut to [0, 1]",
        (0.25, 0.5, 1.0, 1.5, 2.0),
    ),
}


def applicable(has_pixels):
    """Names of the perturbations for a data set that has pixels, or else events: of its inputs, and hidden ones."""
    others = ("events",) if has_pixels else ("pixels", "attack")
    return [name for name, perturbation in PERTURBATIONS.items() if perturbation.where not in others]
