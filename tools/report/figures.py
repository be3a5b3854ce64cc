"""The pictures of a report, as matplotlib figures made from its document."""

import numpy as np
from matplotlib.figure import Figure

WIDTH = 9.6  # inches
WORST_COLUMNS = 6


def severities(document):
    """Accuracy against severity or strength, a panel for each perturbation, with intervals over seeds."""
    by_test = {}
    for row in document["tests"]:
        if row["test"] != "clean" and not row["test"].startswith("attack"):
            by_test.setdefault(row["test"], []).append(row)
    if not by_test:
        return None
    clean = next(row for row in document["tests"] if row["test"] == "clean")
    columns = min(4, len(by_test))
    count = -(-len(by_test) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False, sharey=True)
    for axes, (name, rows) in zip(panels.flat, by_test.items()):
        by_severity = all(row["severity"] is not None for row in rows)
        key = "severity" if by_severity else "strength"
        rows = [{**clean, key: 0}, *rows] if by_severity else rows
        for kind in document["kinds"]:
            _with_interval(axes, [row[key] for row in rows], [row["kinds"][kind] for row in rows], kind)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("severity" if by_severity else rows[0]["of"], fontsize=8)
        _percent_axis(axes)
    for axes in panels.flat[len(by_test) :]:
        axes.set_axis_off()
    panels[0, 0].legend(fontsize=8)
    figure.supylabel("test accuracy (%)", fontsize=9)
    return figure


def attacks(document):
    """Accuracy against the radius of the attacks, a panel for each norm."""
    rows = [row for row in document["tests"] if row["test"].startswith("attack")]
    norms = list(dict.fromkeys(row["of"] for row in rows))
    if not norms:
        return None
    clean = [
        {kind: np.mean([one["attacks"]["clean"]["accuracy"] for one in snapshots])}
        for kind, snapshots in document["kinds"].items()
    ]
    clean = {kind: value for part in clean for kind, value in part.items()}
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(norms), squeeze=False, sharey=True)
    styles = {"attack: all": "-", "attack: PGD": "--", "attack: random noise": ":"}
    for axes, norm in zip(panels.flat, norms):
        for number, kind in enumerate(document["kinds"]):
            for test, style in styles.items():
                shown = [row for row in rows if row["of"] == norm and row["test"] == test]
                radii = [0, *(row["strength"] for row in shown)]
                intervals = [{"mean": clean[kind], "low": None}, *(row["kinds"][kind] for row in shown)]
                label = f"{kind}, {test.removeprefix('attack: ')}"
                _with_interval(axes, radii, intervals, label, linestyle=style, color=f"C{number}")
        axes.set_xlabel(norm)
        _percent_axis(axes)
    panels[0, 0].set_ylabel("test accuracy (%)")
    panels[0, 0].legend(fontsize=8)
    return figure


def draws(document):
    """Accuracy, likelihood and calibration against the number of averaged draws, beside more time steps."""
    quantities = {"accuracy": "accuracy", "nll": "negative log-likelihood", "calibration_error": "calibration error"}
    measured = _with_report(document, "uncertainty")
    if not measured:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    for axes, (quantity, label) in zip(figure.subplots(1, len(quantities)), quantities.items()):
        for number, (kind, reports) in enumerate(measured.items()):
            style = dict(color=f"C{number}", marker="o", markersize=4)
            _mean_curve(axes, [report["curve"] for report in reports], "draws", quantity, f"{kind}, draws", style)
            if "more_time_steps" in reports[0]:
                base = reports[0]["more_time_steps"][0]["timesteps"]
                curves = [
                    [{**row, "cost": row["timesteps"] / base} for row in one["more_time_steps"]] for one in reports
                ]
                style = dict(color=f"C{number}", marker="s", markersize=3, linestyle=":")
                _mean_curve(axes, curves, "cost", quantity, f"{kind}, time steps", style)
            members = document["ensembles"].get(kind, [])
            if members:
                axes.plot(
                    [row["draws"] for row in members],
                    [row[quantity] for row in members],
                    color=f"C{number}",
                    marker="*",
                    linestyle="--",
                    label=f"{kind}, snapshots",
                )
        axes.set_xscale("log", base=2)
        axes.set(xlabel="compute: draws, or time steps / T, or snapshots", ylabel=label)
        axes.xaxis.label.set_fontsize(7)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def reliability(document):
    """Accuracy against confidence in bins of equal mass, before temperature scaling; a panel for each kind."""
    measured = _with_report(document, "uncertainty")
    if not measured:
        return None
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False, sharey=True)
    for axes, (kind, reports) in zip(panels.flat, measured.items()):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for number, (size, bins) in enumerate(reports[0]["reliability"].items()):
            confidence, accuracy = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
            axes.plot(confidence, accuracy, marker="o", color=f"C{number}", label=f"{size} draw{'s' * (size != '1')}")
        axes.set(title=f"{kind} (first snapshot)", xlabel="confidence", ylabel="accuracy")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def firing_rates(document):
    """Mean firing rate of each layer, a bar for each kind."""
    measured = _with_report(document, "efficiency")
    if not measured:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    layers = list(next(iter(measured.values()))[0]["firing_rates"])
    width = 0.8 / len(measured)
    for number, (kind, reports) in enumerate(measured.items()):
        means = [np.mean([one["firing_rates"].get(layer, np.nan) for one in reports]) for layer in layers]
        axes.bar(np.arange(len(layers)) + number * width, means, width, label=kind)
    axes.set_xticks(np.arange(len(layers)) + 0.4 - width / 2, layers, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("spikes per neuron and step")
    axes.legend(fontsize=8)
    return figure


def confusion(document, classes):
    """Confusion matrices, the mean over snapshots and draws, a panel for each kind."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(1, len(document["kinds"]), squeeze=False)
    for axes, (kind, snapshots) in zip(panels.flat, document["kinds"].items()):
        counts = np.mean([one["perturbations"]["clean"]["points"][0]["confusion"] for one in snapshots], axis=0)
        shares = counts / counts.sum(1, keepdims=True)
        image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # a root, so that rare mistakes are seen
        if len(classes) <= 12:
            for row, column in np.ndindex(shares.shape):
                if shares[row, column] >= 0.005:
                    colour = "white" if shares[row, column] > 0.4 else "black"
                    text = f"{100 * shares[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=7)
            axes.set_yticks(range(len(classes)), classes, fontsize=7)
        axes.set(title=f"{kind}: % of each class", xlabel="taken for", ylabel="class")
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.7, label="square root of the share")
    return figure


def worst(document, classes, sample):
    """The samples of the highest loss of the first snapshot of each kind.

    Args:
        sample: index -> image [C, H, W] in [0, 1], numpy.
    """
    kinds = document["kinds"]
    rows = {kind: snapshots[0]["perturbations"]["clean"]["points"][0]["worst"] for kind, snapshots in kinds.items()}
    lines = -(-max(map(len, rows.values())) // WORST_COLUMNS)  # of each kind
    figure = Figure(figsize=(WIDTH, 1.9 * lines * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(lines * len(rows), WORST_COLUMNS, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (kind, samples) in enumerate(rows.items()):
        mine = panels[number * lines : (number + 1) * lines]
        for axes, one in zip(mine.flat, samples):
            axes.imshow(_picture(sample(one["index"])), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            label, predicted = classes[one["label"]], classes[one["predicted"]]
            axes.set_title(f"{label}\nas {predicted}\n{100 * one['confidence']:.0f} %", fontsize=6)
        first = mine[0, 0]
        first.text(-0.1, 0.5, kind, transform=first.transAxes, ha="right", va="center", fontsize=8, rotation=90)
    return figure


def _picture(image):
    """[C, H, W] -> what imshow takes; two polarities of events as red and blue."""
    if len(image) == 2:
        off, on = image / max(image.max(), 1e-9)
        return np.stack([on, np.zeros_like(on), off], -1)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _with_report(document, name):
    """{kind: its snapshots' reports}, of the kinds that have them."""
    found = {kind: [one[name] for one in snapshots if name in one] for kind, snapshots in document["kinds"].items()}
    return {kind: reports for kind, reports in found.items() if reports}


def _mean_curve(axes, curves, x, y, label, style):
    axes.plot(
        [row[x] for row in curves[0]], np.mean([[row[y] for row in one] for one in curves], 0), label=label, **style
    )


def _with_interval(axes, x, intervals, label, **style):
    """A line of means, and their intervals where there are any, in per cent."""
    means = np.array([100 * one["mean"] for one in intervals])
    (line,) = axes.plot(x, means, marker="o", markersize=3, label=label, **style)
    bounds = [
        (100 * one["low"], 100 * one["high"]) if one["low"] is not None else (m, m) for one, m in zip(intervals, means)
    ]
    low, high = np.array(bounds).T
    axes.fill_between(x, low.clip(0), high.clip(max=100), color=line.get_color(), alpha=0.15, linewidth=0)


def _percent_axis(axes):
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
