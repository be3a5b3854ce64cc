"""Pictures of `experiments`."""

import numpy as np
from matplotlib.figure import Figure

from tools.plots import subplots
from tools.studies.intervals import against_scale

from .estimators import ESTIMATORS, STOCHASTIC


def firing(u: np.ndarray, curves: dict, std: float) -> Figure:
    """Plot probabilities above, slopes below, a column for each law; points are measured, lines expected.

    Args:
        u: potentials [K].
        curves: {(name of the law, placement): (measured, expected)}, both `experiments.Curves`.
        std: standard deviation of the noise.
    """
    laws = list(dict.fromkeys(law for law, _ in curves))
    figure, axes = subplots(3.0 * len(laws), 5.4, rows=2, columns=len(laws), sharex=True, sharey="row")
    for law, (above, below) in zip(laws, axes.T):
        for placement, colour in (("escape", "C0"), ("both", "C1")):
            measured, expected = curves[law, placement]
            for panel, quantity in ((above, "probability"), (below, "gradient")):
                panel.plot(u, getattr(expected, quantity), color=colour, label=f"{placement}: expected")
                panel.plot(u, getattr(measured, quantity), ".", color=colour, ms=5, label=f"{placement}: measured")
                panel.axvline(1.0, color="black", lw=0.5, ls=":")
            below.plot((u[1:] + u[:-1]) / 2, measured.slope, "x", color=colour, ms=3)
        above.set_title(law)
        below.set_xlabel("potential u (threshold 1)")
    axes[0, 0].set_ylabel("probability of a spike")
    axes[1, 0].set_ylabel("mean gradient of the spike by u (.)\nslope of the probability (x)")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"firing probability is F(u - threshold), its gradient the density (standard deviation {std})")
    return figure


def limit(scales: np.ndarray, shares: dict[str, list[float]]) -> Figure:
    """Draw, against the scale, the share of spikes that differ from the deterministic neuron's: {law: [scales]}."""
    figure, ((axes,),) = subplots(6.0, 4.2)
    for law, row in shares.items():
        axes.loglog(scales, row, "o-", ms=4, label=law)
    axes.set(xlabel="standard deviation of the noise (thresholds)", ylabel="share of spikes that differ")
    axes.set_title("the deterministic LIF is the limit of vanishing noise")
    axes.legend()
    return figure


def exactness(rows: list, width: int) -> Figure:
    """Plot each `experiments.MedianBias` of one layer, by width for both losses, and by steps for one `width`."""
    figure, ((by_width, by_steps),) = subplots(8.4, 3.8, columns=2, sharey=True)
    for loss in ("linear", "squared"):
        chosen = [row for row in rows if row.loss == loss and row.steps == 1]
        by_width.plot([row.width for row in chosen], [row.bias for row in chosen], "o-", label=f"{loss} loss")
    chosen = [row for row in rows if row.loss == "linear" and row.width == width]
    steps = [row.steps for row in chosen]
    by_steps.plot(steps, [row.bias for row in chosen], "o-")
    by_width.set(xlabel="neurons of the layer", ylabel="bias / norm of the gradient", title="one layer, one step")
    by_steps.set(xlabel="time steps", title="one layer, linear loss", xticks=steps)
    by_width.legend()
    return figure


QUANTITIES = (
    ("bias", "bias / norm", "log"),
    ("variance", "variance of a draw / norm²", "log"),
    ("cosine", "cosine of the mean", "linear"),
    ("cosine_of_one", "mean cosine of a draw", "linear"),
)


def gradients(scales: tuple[float, ...], medians: dict, law: str) -> Figure:
    """Plot {depth: {estimator: {quantity: [scales]}}}, a column for each depth, a line for each estimator.

    A bias smaller than the number of draws can resolve is drawn at that limit.
    """

    def draw(axes, quantity, estimators):
        for number, name in enumerate(ESTIMATORS):
            values = estimators[name][quantity]
            if quantity == "bias":
                values = np.maximum(values, estimators[name]["bias_error"])
            if name in STOCHASTIC or quantity != "variance":
                style = "o-" if name in STOCHASTIC else "s--"
                axes.plot(scales, values, style, color=f"C{number}", ms=3.5, lw=1.2, label=name)

    columns = {depth.replace("1 layers", "1 layer"): estimators for depth, estimators in medians.items()}
    figure = against_scale(QUANTITIES, columns, draw, sharey="row")
    figure.axes[len(columns)].set_ylim(bottom=1e-4)  # of variances
    figure.suptitle(f"gradients against the exact one: {law}")
    return figure
