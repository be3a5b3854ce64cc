"""What the pictures of all studies share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.analysis.statistics import SeedInterval


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of a size in inches, and its panels: [rows, columns], with options of `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.grid(alpha=0.3)
    return figure, axes


def against_scale(
    quantities: Sequence[tuple[str, str, str]],
    columns: dict[str, Any],
    draw: Callable[[Axes, str, Any], None],
    **options,
) -> Figure:
    """Draw quantities against the standard deviation of the noise, with options of `Figure.subplots`.

    Args:
        quantities: (name, label, "linear" or "log") of each row.
        columns: {title: content} of each column.
        draw: (panel, name of the quantity, content) -> None.
    """
    count = len(quantities)
    figure, axes = panels(3.6 * len(columns) + 1.8, 2.4 * count, count, len(columns), sharex=True, **options)
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
    """Draw means with error bars, in a style of `Axes.errorbar`."""
    means = [one["mean"] for one in intervals]
    halves = [one["high"] - one["mean"] for one in intervals]
    axes.errorbar(x, means, halves, **{"fmt": "o-", "ms": 4, "capsize": 2, **style})
