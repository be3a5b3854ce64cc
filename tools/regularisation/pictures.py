"""Pictures of `experiments`, as PNG files."""

from matplotlib.figure import Figure

from ..study import DPI

_QUANTITIES = (
    ("gap", "test loss - training loss (nats)", "linear"),
    ("sharpness", "rise of loss, perturbed weights", "log"),
    ("hessian_trace", "trace of the Hessian", "log"),
    ("test_accuracy", "test accuracy, one draw", "linear"),
)


def generalisation(path, rows):
    """Gap, sharpness and accuracy against the scale: a column for each number of images, a line for each law."""
    sizes = sorted({row["images"] for row in rows})
    sizes = [size for size in sizes if size in (100, 1000, 4000)]
    figure = Figure(figsize=(3.7 * len(sizes) + 1.6, 2.3 * len(_QUANTITIES)), layout="constrained")
    panels = figure.subplots(len(_QUANTITIES), len(sizes), sharex=True, squeeze=False)
    for line, (key, label, scale) in enumerate(_QUANTITIES):
        for column, size in enumerate(sizes):
            axes = panels[line, column]
            for name, of_kind in _kinds([row for row in rows if row["images"] == size]).items():
                _errorbars(axes, [row["std"] for row in of_kind], of_kind, key, name)
            axes.set(xscale="log", yscale=scale)
            axes.grid(alpha=0.3)
            if line == 0:
                axes.set_title(f"{size} training images")
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("standard deviation (thresholds)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=DPI)


def few_images(path, rows, std):
    """Against the number of training images: test accuracy, and what noise adds to it in networks of the same seed."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    accuracy, gain = figure.subplots(1, 2)
    for number, (name, of_kind) in enumerate(_kinds(rows).items()):
        sizes = [row["images"] * 1.06 ** (number - 2) for row in of_kind]  # beside each other
        _errorbars(accuracy, sizes, of_kind, "test_accuracy", name)
        if of_kind[0]["noisy"]:
            _errorbars(gain, sizes, of_kind, "test_accuracy_gain", name)
    gain.axhline(0, color="black", lw=0.8)
    accuracy.set(ylabel="test accuracy, one draw")
    gain.set(ylabel="difference to no noise, same seed")
    for axes in (accuracy, gain):
        axes.set(xscale="log", xlabel="training images")
        axes.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    figure.suptitle(f"standard deviation {std}; mean and 95 % interval over seeds")
    figure.savefig(path, dpi=DPI)


def _kinds(rows):
    """{name for the legend: rows of that kind}."""
    kinds = {}
    for row in rows:
        kinds.setdefault(row["law"] if row["noisy"] else f"no noise, {row['law']} surrogate", []).append(row)
    return kinds


def _errorbars(axes, x, rows, key, name):
    means = [row[key]["mean"] for row in rows]
    halves = [row[key]["high"] - row[key]["mean"] if row[key]["high"] is not None else 0 for row in rows]
    style = "s--" if name.startswith("no noise") else "o-"
    axes.errorbar(
        x,
        means,
        halves,
        fmt=style,
        color="black" if name.startswith("no noise") else None,
        ms=4,
        lw=1.2,
        capsize=2,
        label=name,
    )


def learnt_scales(path, found):
    """Scale of each layer during training, a panel for each scale at first, a line for each network.

    Args:
        path: the PNG file to write.
        found: {scale at first: [{"steps", "scales" [times][layers]} of each network]}.
    """
    figure = Figure(figsize=(3.6 * len(found) + 1.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (std, networks) in zip(panels, found.items()):
        for one in networks:
            for layer, scales in enumerate(zip(*one["scales"])):
                axes.plot(one["steps"], scales, color=f"C{layer}", lw=1.2)
        axes.set(yscale="log", xlabel="step", title=f"at first {std}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("learnt standard deviation (thresholds)")
    layers = len(networks[0]["scales"][0])
    handles = [panels[0].plot([], [], color=f"C{layer}", label=f"layer {layer + 1}")[0] for layer in range(layers)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=DPI)
