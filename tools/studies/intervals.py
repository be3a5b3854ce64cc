"""Intervals over seeds of what is measured once for each seed, as dataclasses of numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

from tools.analysis.statistics import SeedInterval, seed_interval


def over_seeds(found: Sequence[Any]) -> dict[str, SeedInterval]:
    """{quantity: `seed_interval`} of measurements with different seeds."""
    return {key: seed_interval([getattr(one, key) for one in found]) for key in vars(found[0])}


def gains(found: Sequence[Any], others: Sequence[Any], keys: Iterable[str]) -> dict[str, SeedInterval]:
    """{<quantity>_gain: `seed_interval` of the difference} of pairs of measurements with the same seed."""
    intervals = {}
    for key in keys:
        differences = [getattr(one, key) - getattr(other, key) for one, other in zip(found, others)]
        intervals[f"{key}_gain"] = seed_interval(differences)
    return intervals
