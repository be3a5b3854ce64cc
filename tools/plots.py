"""What the pictures of all packages share."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# "C0" to "C9" in all pictures: colours that the colour-blind can tell apart (M. A. Petroff, "Accessible color sequences
# for data visualization", 2021).
_COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
_COLOURS += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=_COLOURS)


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
