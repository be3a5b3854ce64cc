"""Pictures of `experiments`."""

import numpy as np
from matplotlib.figure import Figure

from .estimators import DETERMINISTIC, STOCHASTIC

_COLOURS = {name: f"C{number}" for number, name in enumerate((*STOCHASTIC, *DETERMINISTIC))}


def firing(u: np.ndarray, curves: dict, std: float) -> Figure:
    """Draw probabilities above, slopes below, a column for each law; points are measured, lines F and its density.

    Args:
        u: potentials [K].
        curves: {(name of the law, placement): (measured, expected)}, both `experiments.Curves`.
        std: standard deviation of the noise.
    """
    laws = list(dict.fromkeys(law for law, _ in curves))
    figure = Figure(figsize=(3.0 * len(laws), 5.4), layout="constrained")
    panels = figure.subplots(2, len(laws), sharex=True, sharey="row")
    for column, law in enumerate(laws):
        for placement, colour in (("escape", "C0"), ("both", "C1")):
            measured, expected = curves[law, placement]
            for axes, quantity in zip(panels[:, column], ("probability", "gradient")):
                axes.plot(u, getattr(expected, quantity), color=colour, label=f"{placement}: expected")
                axes.plot(u, getattr(measured, quantity), ".", color=colour, ms=5, label=f"{placement}: measured")
            panels[1, column].plot((u[1:] + u[:-1]) / 2, measured.slope, "x", color=colour, ms=3)
        panels[0, column].set_title(law)
        panels[1, column].set_xlabel("potential u (threshold 1)")
    panels[0, 0].set_ylabel("probability of a spike")
    panels[1, 0].set_ylabel("mean gradient of the spike by u (.)\nslope of the probability (x)")
    panels[0, 0].legend(fontsize=8)
    for axes in panels.flat:
        axes.axvline(1.0, color="black", lw=0.5, ls=":")
    figure.suptitle(f"firing probability is F(u - threshold), its gradient the density (standard deviation {std})")
    return figure


def limit(scales: np.ndarray, shares: dict[str, list[float]]) -> Figure:
    """Draw the share of spikes that differ from the deterministic neuron's, {law: [scales]}, against the scale."""
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for law, row in shares.items():
        axes.loglog(scales, row, "o-", ms=4, label=law)
    axes.set(xlabel="standard deviation of the noise (thresholds)", ylabel="share of spikes that differ")
    axes.set_title("the deterministic LIF is the limit of vanishing noise")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def exactness(rows: list[dict]) -> Figure:
    """Draw the bias of noise-driven learning with one layer: by width for both losses, and by the number of steps."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    by_width, by_steps = figure.subplots(1, 2, sharey=True)
    for loss in ("linear", "squared"):
        chosen = [row for row in rows if row["loss"] == loss and row["steps"] == 1]
        by_width.plot([row["width"] for row in chosen], [row["bias"] for row in chosen], "o-", label=f"{loss} loss")
    chosen = [row for row in rows if row["loss"] == "linear" and row["width"] == 3]
    steps = [row["steps"] for row in chosen]
    by_steps.plot(steps, [row["bias"] for row in chosen], "o-", color="C0")
    by_width.set(xlabel="neurons of the layer", ylabel="bias / norm of the gradient", title="one layer, one step")
    by_steps.set(xlabel="time steps", title="one layer, linear loss", xticks=steps)
    by_width.legend()
    for axes in (by_width, by_steps):
        axes.grid(alpha=0.3)
    return figure


def gradients(scales: tuple[float, ...], medians: dict, law: str) -> Figure:
    """Draw bias, variance and cosines against the scale, a column for each depth, a line for each estimator.

    A bias smaller than the number of draws can resolve is drawn at that limit.

    Args:
        scales: standard deviations.
        medians: {depth: {estimator: {quantity: [scales]}}}.
        law: its name.
    """
    quantities = (
        ("bias", "bias / norm", "log"),
        ("variance", "variance of a draw / norm²", "log"),
        ("cosine", "cosine of the mean", "linear"),
        ("cosine_of_one", "mean cosine of a draw", "linear"),
    )
    figure = Figure(figsize=(3.6 * len(medians) + 1.8, 2.4 * len(quantities)), layout="constrained")
    panels = figure.subplots(len(quantities), len(medians), sharex=True, sharey="row")
    for line, (quantity, label, scale) in enumerate(quantities):
        for column, (depth, estimators) in enumerate(medians.items()):
            axes = panels[line, column]
            for name, colour in _COLOURS.items():
                if quantity == "variance" and name in DETERMINISTIC:
                    continue
                values = estimators[name][quantity]
                if quantity == "bias":
                    values = [max(pair) for pair in zip(values, estimators[name]["bias_error"])]
                style = "o-" if name in STOCHASTIC else "s--"
                axes.plot(scales, values, style, color=colour, ms=3.5, lw=1.2, label=name)
            axes.set(xscale="log", yscale=scale)
            if quantity == "variance":
                axes.set_ylim(bottom=1e-4)
            axes.grid(alpha=0.3)
            if line == 0:
                axes.set_title(depth.replace("1 layers", "1 layer"))
            if column == 0:
                axes.set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("standard deviation (thresholds)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"gradients against the exact one: {law}")
    return figure
