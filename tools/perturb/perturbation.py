"""What a perturbation is."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One way to disturb the input or the inside of a network.

    Args:
        where: the family, which says how `apply` is called (all draw from a seeded generator):
            "pixels": (images [B, C, H, W] in [0, 1], strength, generator) -> the same, in [0, 1];
            "events": (events [N], strength, numpy Generator, (width, height) of the sensor) -> events;
            "hidden": (net, strength, generator) -> context manager;
            "attack": (gradient, images, target, strength, generator) -> attacked images in [0, 1].
        apply: the function.
        flag: name of the setting that holds its strength.
        unit: what the strength is, for the axis of a plot.
        severities: the strengths of severity 1 to 5.
        neutral: the strength that changes nothing; None if there is none.
        lowest, highest: the strengths allowed, bounds included.
        is_random: whether it draws anything.
    """

    where: str
    apply: Callable[..., Any]
    flag: str
    unit: str
    severities: tuple[float, ...]
    neutral: float | None = 0.0
    lowest: float = 0.0
    highest: float = math.inf
    is_random: bool = True
