"""The description of a perturbation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One way to disturb the input or the inside of a network.

    Args:
        where: the family, which determines how `apply` is called:
            "pixels": (images [B, C, H, W] in [0, 1], strength, generator) -> the same, in [0, 1];
            "events": (events [N], strength, numpy Generator, (width, height) of the sensor) -> events;
            "hidden": (net, strength, generator) -> context manager;
            "attack": (gradient, images, target, strength, generator) -> attacked images in [0, 1].
    """

    where: str
    apply: Callable[..., Any]
    flag: str  # the setting that holds its strength
    unit: str  # meaning and unit of the strength, for the axis of a plot
    severities: tuple[float, ...]  # the strengths of severity 1 to 5
    neutral: float | None = 0.0  # the strength that changes nothing; None if there is none
    lowest: float = 0.0  # strength allowed
    highest: float = math.inf
    is_random: bool = True  # whether it draws anything from the generator
    needs_spikes: bool = False  # whether it has no meaning where neurons output probabilities


def entry(
    table: dict[str, Perturbation], where: str, name: str, flag: str, unit: str, severities: tuple, **more: Any
) -> Callable[..., Any]:
    """Decorator that enters a function into a table as a `Perturbation`.

    Args:
        table: of the perturbations of one family, by name.
        where, flag, unit, severities, more: fields of `Perturbation`.
        name: as in --perturbation and in results.

    Raises:
        ValueError: for a name that the table has already.
    """

    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        if name in table:
            raise ValueError(f"there is a perturbation {name!r} already")
        table[name] = Perturbation(where, apply, flag, unit, severities, **more)
        return apply

    return enter
