"""What the pictures of all packages share."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def subplots(
    width: float, height: float, rows: int = 1, columns: int = 1, *, grid: bool = True, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of a size in inches, and its panels [rows, columns]; options are those of `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if grid:
        for one in axes.flat:
            one.grid(alpha=0.3)
    return figure, axes
