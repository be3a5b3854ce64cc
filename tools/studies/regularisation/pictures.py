"""Pictures of `experiments`; each row is an `experiments.Group`."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from tools.plots import subplots
from tools.studies.intervals import against_scale, draw_intervals

QUANTITIES = (
    ("gap", "test loss - training loss (nats)", "linear"),
    ("sharpness", "rise of loss, perturbed weights", "log"),
    ("hessian_trace", "trace of the Hessian", "log"),
    ("test_accuracy", "test accuracy, one draw", "linear"),
)


def generalisation(rows: list, sizes: Sequence[int]) -> Figure:
    """Plot `QUANTITIES` against the scale: a column for each number of images in `sizes`, a line for each law."""

    def draw(axes, quantity, of_size):
        for name, of_group in _groups(of_size).items():
            _line(axes, [row.std for row in of_group], of_group, quantity, name)

    columns = {}
    for size in sizes:
        columns[f"{size} training images"] = [row for row in rows if row.images == size]
    return against_scale(QUANTITIES, columns, draw)


def few_images(rows: list, std: float) -> Figure:
    """Plot test accuracy, and the gains of test accuracy and loss, against the number of training images.

    Accuracies are for noise of standard deviation `std`, losses for Gaussian noise of this and larger ones.
    """
    figure, (axes,) = subplots(12.4, 4.0, columns=3)
    accuracy, accuracy_gain, loss_gain = axes
    for number, (name, of_group) in enumerate(_groups([row for row in rows if row.std == std]).items()):
        sizes = _beside_each_other(of_group, number)
        _line(accuracy, sizes, of_group, "test_accuracy", name)
        if of_group[0].noisy:
            _line(accuracy_gain, sizes, of_group, "test_accuracy_gain", name)
    gaussian = [row for row in _groups(rows)["Gaussian"] if row.std >= std]
    for number, scale in enumerate(sorted({row.std for row in gaussian})):
        of_scale = [row for row in gaussian if row.std == scale]
        _line(loss_gain, _beside_each_other(of_scale, number), of_scale, "test_loss_gain", f"Gaussian, {scale}")
    accuracy.set(title=f"standard deviation {std}", ylabel="test accuracy, one draw")
    accuracy_gain.set(title=f"standard deviation {std}", ylabel="test accuracy less that without noise")
    loss_gain.set(title="by standard deviation", ylabel="test loss less that without noise (nats)")
    for panel in axes:
        panel.set(xscale="log", xlabel="training images")
    for panel in (accuracy_gain, loss_gain):
        panel.axhline(0, color="black", lw=0.8)
    for panel in (accuracy, loss_gain):
        panel.legend(fontsize=8)
    figure.suptitle("mean and 95 % interval over seeds; differences of pairs of the same seed")
    return figure


def _beside_each_other(rows, number):
    """Numbers of images, shifted so that the error bars of several groups do not overlap."""
    return [row.images * 1.06 ** (number - 2) for row in rows]


def _groups(rows):
    """{name in the legend: rows}."""
    groups = {}
    for row in rows:
        groups.setdefault(row.law if row.noisy else f"no noise, {row.law} surrogate", []).append(row)
    return groups


def _line(axes, x, rows, key, name):
    style = {} if rows[0].noisy else {"fmt": "s--", "color": "black"}
    draw_intervals(axes, x, [row.intervals[key] for row in rows], lw=1.2, label=name, **style)


def learnt_scales(found: dict) -> Figure:
    """Plot the scales of each layer over training, {initial scale: [`runs.LearntScales`]}, a panel for each."""
    figure, (axes,) = subplots(3.6 * len(found) + 1.0, 3.6, columns=len(found), sharey=True)
    for panel, (std, networks) in zip(axes, found.items()):
        for number, one in enumerate(networks):
            for layer, scales in enumerate(zip(*one.scales)):
                label = "_" if number else f"layer {layer + 1}"  # only the first network is in the legend
                panel.plot(one.steps, scales, color=f"C{layer}", lw=1.2, label=label)
        panel.set(yscale="log", xlabel="step", title=f"initially {std}")
    axes[0].set_ylabel("learnt standard deviation (thresholds)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
