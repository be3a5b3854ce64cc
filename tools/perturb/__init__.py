"""Perturbations of the test by name: of the pixels, of the events, or hidden inside the network.

Each is a `Perturbation`: seeded, so that every compared network meets the same draws.
"""

import dataclasses
import math
from collections.abc import Callable

from . import events, hidden, pixels


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One way to disturb a test.

    Args:
        apply: for pixels, (images [B, C, H, W] in [0, 1], strength, generator) -> the same, in [0, 1];
            for events, (events [N], strength, numpy Generator, sensor's (width, height)) -> events;
            for hidden ones, (net, strength, generator) -> context manager.
        where: "pixels", "events" or "hidden": which of the three it is.
        flag: the command line's name of its strength.
        unit: what the strength is, for the axis of a plot.
        highest: largest strength that makes sense.
    """

    apply: Callable
    where: str
    flag: str
    unit: str
    highest: float = math.inf


PERTURBATIONS = {
    "add_gaussian": Perturbation(
        pixels.add_gaussian, "pixels", "gaussian_sigma", "standard deviation of added noise (pixel range 1)"
    ),
    "multi_gaussian": Perturbation(
        pixels.multiply_gaussian, "pixels", "gaussian_sigma", "standard deviation of multiplied noise"
    ),
    "sp": Perturbation(pixels.salt_and_pepper, "pixels", "sp_alpha", "fraction of pixels set to black or white", 1.0),
    "eventdrop": Perturbation(events.drop_random, "events", "drop_p", "fraction of events dropped", 1.0),
    "drop_time": Perturbation(events.drop_time, "events", "drop_ratio", "share of the time without events", 1.0),
    "drop_area": Perturbation(events.drop_area, "events", "drop_ratio", "sides of the dead box, of the sensor's", 1.0),
    "background": Perturbation(events.background_activity, "events", "background_hz", "events per pixel and second"),
    "hot_pixels": Perturbation(events.hot_pixels, "events", "pixel_fraction", "fraction of hot pixels", 1.0),
    "dead_pixels": Perturbation(events.dead_pixels, "events", "pixel_fraction", "fraction of dead pixels", 1.0),
    "time_jitter": Perturbation(
        events.jitter_time, "events", "jitter_us", "standard deviation of times (microseconds)"
    ),
    "polarity_flip": Perturbation(events.flip_polarity, "events", "polarity_p", "fraction of flipped events", 1.0),
    "spike_level": Perturbation(
        hidden.flip_spikes, "hidden", "spike_p", "probability of a flipped spike per neuron and step", 1.0
    ),
    "membrane": Perturbation(
        hidden.membrane_noise, "hidden", "membrane_sigma", "standard deviation of extra membrane noise"
    ),
}
