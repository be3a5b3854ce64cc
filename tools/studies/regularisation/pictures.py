"""Pictures of `experiments`."""

from matplotlib.figure import Figure

_QUANTITIES = (
    ("gap", "test loss - training loss (nats)", "linear"),
    ("sharpness", "rise of loss, perturbed weights", "log"),
    ("hessian_trace", "trace of the Hessian", "log"),
    ("test_accuracy", "test accuracy, one draw", "linear"),
)


def generalisation(rows: list[dict]) -> Figure:
    """Draw gap, sharpness and accuracy against the scale: a column for each number of images, a line for each law."""
    sizes = (100, 1000, 4000)
    figure = Figure(figsize=(3.7 * len(sizes) + 1.6, 2.3 * len(_QUANTITIES)), layout="constrained")
    panels = figure.subplots(len(_QUANTITIES), len(sizes), sharex=True, squeeze=False)
    for line, (key, label, scale) in enumerate(_QUANTITIES):
        for column, size in enumerate(sizes):
            axes = panels[line, column]
            for name, of_group in _groups([row for row in rows if row["images"] == size]).items():
                _errorbars(axes, [row["std"] for row in of_group], of_group, key, name)
            axes.set(xscale="log", yscale=scale)
            axes.grid(alpha=0.3)
            if line == 0:
                axes.set_title(f"{size} training images")
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("standard deviation (thresholds)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def few_images(rows: list[dict], std: float) -> Figure:
    """Draw, against the number of training images, accuracy at one scale, and what noise adds to it and to test loss.

    Args:
        rows: of `experiments.generalisation`.
        std: of the noise, for accuracy; test losses are for Gaussian noise of this scale and of larger ones.
    """
    figure = Figure(figsize=(12.4, 4.0), layout="constrained")
    panels = accuracy, accuracy_gain, loss_gain = figure.subplots(1, 3)
    for number, (name, of_group) in enumerate(_groups([row for row in rows if row["std"] == std]).items()):
        sizes = _beside_each_other(of_group, number)
        _errorbars(accuracy, sizes, of_group, "test_accuracy", name)
        if of_group[0]["noisy"]:
            _errorbars(accuracy_gain, sizes, of_group, "test_accuracy_gain", name)
    gaussian = [row for row in _groups(rows)["Gaussian"] if row["std"] >= std]
    for number, scale in enumerate(sorted({row["std"] for row in gaussian})):
        of_scale = [row for row in gaussian if row["std"] == scale]
        _errorbars(loss_gain, _beside_each_other(of_scale, number), of_scale, "test_loss_gain", f"Gaussian, {scale}")
    accuracy.set(title=f"standard deviation {std}", ylabel="test accuracy, one draw")
    accuracy_gain.set(title=f"standard deviation {std}", ylabel="test accuracy less that without noise")
    loss_gain.set(title="by standard deviation", ylabel="test loss less that without noise (nats)")
    for axes in panels:
        axes.set(xscale="log", xlabel="training images")
        axes.grid(alpha=0.3)
        if axes is not accuracy:
            axes.axhline(0, color="black", lw=0.8)
    accuracy.legend(fontsize=8)
    loss_gain.legend(fontsize=8)
    figure.suptitle("mean and 95 % interval over seeds; differences of pairs of the same seed")
    return figure


def _beside_each_other(rows, number):
    """Numbers of images, shifted on a logarithmic axis so that the error bars of several groups do not overlap."""
    return [row["images"] * 1.06 ** (number - 2) for row in rows]


def _groups(rows):
    """{name for the legend: its rows}."""
    groups = {}
    for row in rows:
        groups.setdefault(row["law"] if row["noisy"] else f"no noise, {row['law']} surrogate", []).append(row)
    return groups


def _errorbars(axes, x, rows, key, name):
    means = [row[key]["mean"] for row in rows]
    halves = [row[key]["high"] - row[key]["mean"] for row in rows]
    fmt, color = ("s--", "black") if name.startswith("no noise") else ("o-", None)
    axes.errorbar(x, means, halves, fmt=fmt, color=color, ms=4, lw=1.2, capsize=2, label=name)


def learnt_scales(found: dict) -> Figure:
    """Draw the scale of each layer during training, a panel for each initial scale, a line for each network.

    Args:
        found: {initial scale: [`runs.LearntScales` of each network]}.
    """
    figure = Figure(figsize=(3.6 * len(found) + 1.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (std, networks) in zip(panels, found.items()):
        for one in networks:
            for layer, scales in enumerate(zip(*one.scales)):
                axes.plot(one.steps, scales, color=f"C{layer}", lw=1.2)
        axes.set(yscale="log", xlabel="step", title=f"initially {std}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("learnt standard deviation (thresholds)")
    layers = len(networks[0].scales[0])
    handles = [panels[0].plot([], [], color=f"C{layer}", label=f"layer {layer + 1}")[0] for layer in range(layers)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure
