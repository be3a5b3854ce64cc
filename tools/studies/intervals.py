"""Intervals over seeds, and pictures of them; a measurement is a dataclass of numbers, one for each seed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.analysis.statistics import SeedInterval, seed_interval
from tools.plots import subplots


def over_seeds(found: Sequence[Any]) -> dict[str, SeedInterval]:
    """{quantity: `seed_interval`} of measurements with different seeds."""
    intervals = {}
    for key in vars(found[0]):
        intervals[key] = seed_interval([getattr(one, key) for one in found])
    return intervals


def gains(found: Sequence[Any], others: Sequence[Any], keys: Iterable[str]) -> dict[str, SeedInterval]:
    """{<quantity>_gain: `seed_interval` of the difference} of pairs of measurements with the same seed."""
    intervals = {}
    for key in keys:
        differences = [getattr(one, key) - getattr(other, key) for one, other in zip(found, others)]
        intervals[f"{key}_gain"] = seed_interval(differences)
    return intervals


def against_scale(quantities: Sequence[tuple[str, str, str]], columns: dict, draw: Callable, **options: Any) -> Figure:
    """Plot quantities against the standard deviation of the noise; options are those of `Figure.subplots`.

    Args:
        quantities: (name, label, "linear" or "log") of each row.
        columns: {title: content} of each column.
        draw: (panel, name of the quantity, content) -> None.
    """
    count = len(quantities)
    figure, axes = subplots(3.6 * len(columns) + 1.8, 2.4 * count, count, len(columns), sharex=True, **options)
    for line, (name, label, scale) in zip(axes, quantities):
        for panel, content in zip(line, columns.values()):
            draw(panel, name, content)
            panel.set(xscale="log", yscale=scale)
        line[0].set_ylabel(label, fontsize=9)
    for title, top, bottom in zip(columns, axes[0], axes[-1]):
        top.set_title(title)
        bottom.set_xlabel("standard deviation (thresholds)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def draw_intervals(axes: Axes, x: Sequence[float], intervals: Sequence[SeedInterval], **style: Any) -> None:
    """Plot means with error bars; style is that of `Axes.errorbar`."""
    means = [one.mean for one in intervals]
    halves = [one.high - one.mean for one in intervals]
    axes.errorbar(x, means, halves, **{"fmt": "o-", "ms": 4, "capsize": 2, **style})
