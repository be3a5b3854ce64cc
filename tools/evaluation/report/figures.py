"""The pictures of a report, as matplotlib figures made from its document."""

import numpy as np
from matplotlib.figure import Figure

from tools.analysis.statistics import seed_interval
from tools.evaluation.comparison import ATTACK
from tools.evaluation.conditions import CLEAN
from tools.perturb import PERTURBATIONS

WIDTH = 9.6  # inches
COUNTS = {"draws", "ensembles", "factor", "timesteps", "count"}  # the same in all reports, and no measurement
WORST_COLUMNS = 6


def severities(document):
    """Accuracy against severity or strength, a panel for each perturbation, with intervals over seeds."""
    by_test = {}
    for row in document["tests"]:
        if row["test"] != CLEAN and not row["test"].startswith(ATTACK):
            by_test.setdefault(row["test"], []).append(row)
    if not by_test:
        return None
    clean = next(row for row in document["tests"] if row["test"] == CLEAN)
    columns = min(4, len(by_test))
    count = -(-len(by_test) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False)
    for axes, (name, rows) in zip(panels.flat, by_test.items()):
        by_severity = all(row["severity"] is not None for row in rows)
        key = "severity" if by_severity else "strength"
        axes.set_xlabel("severity" if by_severity else _plain(rows[0]["of"]), fontsize=8)
        nothing = 0 if by_severity else PERTURBATIONS[name].neutral  # there are strengths only of these
        if nothing is not None:
            rows = sorted([{**clean, key: nothing}, *rows], key=lambda row: row[key])
        for kind in document["kinds"]:
            _with_interval(axes, [row[key] for row in rows], [row["kinds"][kind] for row in rows], kind)
        axes.set_title(_plain(name), fontsize=10)
        _percent_axis(axes)
    for axes in panels.flat[len(by_test) :]:
        axes.set_axis_off()
    panels[0, 0].legend(fontsize=8)
    figure.supylabel("test accuracy (%)", fontsize=9)
    return figure


def attacks(document):
    """Accuracy against the radius of the attacks, a panel for each norm; its title says where gates failed."""
    rows = [row for row in document["tests"] if row["test"].startswith(ATTACK)]
    norms = list(dict.fromkeys(row["of"] for row in rows))
    if not norms:
        return None
    reports = {kind: [one["attacks"] for one in snapshots] for kind, snapshots in document["kinds"].items()}
    clean = {kind: seed_interval([one["clean"]["accuracy"] for one in ones]) for kind, ones in reports.items()}
    doubtful = [kind for kind, ones in reports.items() if not all(one["reliable"] for one in ones)]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(norms), squeeze=False, sharey=True)
    styles = {"all": "-", "PGD": "--", "random noise": ":"}
    for axes, norm in zip(panels.flat, norms):
        for number, kind in enumerate(document["kinds"]):
            for attack, style in styles.items():
                shown = [row for row in rows if row["of"] == norm and row["test"].endswith(f": {attack}")]
                radii = [0, *(row["strength"] for row in shown)]
                intervals = [clean[kind], *(row["kinds"][kind] for row in shown)]
                _with_interval(axes, radii, intervals, f"{kind}, {attack}", linestyle=style, color=f"C{number}")
        axes.set_xlabel(norm)
        _percent_axis(axes)
    if doubtful:
        figure.suptitle(_plain(f"not reliable, as gates failed: {', '.join(doubtful)}"), color="#b00")
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
            curve = mean_rows(reports, "curve")
            _curve(axes, curve, "draws", quantity, f"{kind}, draws", style)
            if "more_time_steps" in reports[0]:
                more = [{**curve[0], "factor": 1}, *mean_rows(reports, "more_time_steps")]
                style = dict(color=f"C{number}", marker="s", markersize=3, linestyle=":")
                _curve(axes, more, "factor", quantity, f"{kind}, time steps", style)
            members = document["ensembles"].get(kind, [])
            if members:
                style = dict(color=f"C{number}", marker="*", linestyle="--")
                _curve(axes, members, "draws", quantity, f"{kind}, snapshots", style)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="compute: draws, or time steps / T, or snapshots", ylabel=label)
        axes.xaxis.label.set_fontsize(7)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def reliability(document):
    """Accuracy against confidence in bins of equal mass, before temperature scaling; a panel for each kind.

    Bins of the same rank hold equally many samples of each snapshot, so that their means are those of all snapshots.
    """
    measured = _with_report(document, "uncertainty")
    if not measured:
        return None
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False, sharey=True)
    for axes, (kind, reports) in zip(panels.flat, measured.items()):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for number, size in enumerate(reports[0]["reliability"]):
            bins = mean_rows([report["reliability"] for report in reports], size)
            confidence, accuracy = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
            axes.plot(confidence, accuracy, marker="o", color=f"C{number}", label=f"{size} draw{'s' * (size != '1')}")
        axes.set(title=_plain(kind), xlabel="confidence", ylabel="accuracy")
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
    layers = list(dict.fromkeys(layer for reports in measured.values() for layer in reports[0]["firing_rates"]))
    width = 0.8 / len(measured)
    for number, (kind, reports) in enumerate(measured.items()):
        means = [np.mean([one["firing_rates"].get(layer, np.nan) for one in reports]) for layer in layers]
        axes.bar(np.arange(len(layers)) + number * width, means, width, label=_plain(kind))
    axes.set_xticks(np.arange(len(layers)) + 0.4 - width / 2, layers, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("spikes per neuron and step")
    axes.legend(fontsize=8)
    return figure


def confusion(document, classes):
    """Confusion matrices, the mean over snapshots and draws, a panel for each kind."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(1, len(document["kinds"]), squeeze=False)
    names = [_plain(name) for name in classes]
    for axes, (kind, snapshots) in zip(panels.flat, document["kinds"].items()):
        counts = np.mean([one["perturbations"][CLEAN]["points"][0]["confusion"] for one in snapshots], axis=0)
        shares = counts / counts.sum(1, keepdims=True).clip(min=1e-9)  # a class may have no sample
        image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # a root, so that rare mistakes are seen
        if len(classes) <= 12:
            for row, column in np.ndindex(shares.shape):
                if shares[row, column] >= 0.005:
                    colour = "white" if shares[row, column] > 0.4 else "black"
                    text = f"{100 * shares[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=7)
            axes.set_yticks(range(len(classes)), names, fontsize=7)
        axes.set(title=_plain(f"{kind}: % of each class"), xlabel="taken for", ylabel="class")
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.7, label="square root of the share")
    return figure


def worst(document, classes, sample):
    """The samples of the highest loss of the first snapshot of each kind.

    Args:
        sample: index -> image [C, H, W] in [0, 1], numpy.
    """
    kinds = document["kinds"]
    rows = {kind: snapshots[0]["perturbations"][CLEAN]["points"][0]["worst"] for kind, snapshots in kinds.items()}
    lines = -(-max(map(len, rows.values())) // WORST_COLUMNS)  # of each kind
    figure = Figure(figsize=(WIDTH, 1.9 * lines * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(lines * len(rows), WORST_COLUMNS, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (kind, samples) in enumerate(rows.items()):
        mine = panels[number * lines : (number + 1) * lines]
        for axes, one in zip(mine.flat, samples):
            axes.imshow(_picture(sample(one["index"])), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            label, predicted = (_plain(classes[one[key]]) for key in ("label", "predicted"))
            axes.set_title(f"{label}\nas {predicted}\n{100 * one['confidence']:.0f} %", fontsize=6)
        first = mine[0, 0]
        first.text(-0.1, 0.5, _plain(kind), transform=first.transAxes, ha="right", va="center", fontsize=8, rotation=90)
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


def mean_rows(reports, name):
    """The rows that each report has by a name, averaged over the reports."""
    return [
        {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        | {key: rows[0][key] for key in COUNTS & rows[0].keys()}
        for rows in zip(*(report[name] for report in reports))
    ]


def _curve(axes, rows, x, y, label, style):
    axes.plot([row[x] for row in rows], [row[y] for row in rows], label=_plain(label), **style)


def _plain(text):
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _with_interval(axes, x, intervals, label, **style):
    """A line of means, and their intervals where there are any, in per cent."""
    means = np.array([100 * one["mean"] for one in intervals])
    (line,) = axes.plot(x, means, marker="o", markersize=3, label=_plain(label), **style)
    bounds = [
        (100 * one["low"], 100 * one["high"]) if one["low"] is not None else (m, m) for one, m in zip(intervals, means)
    ]
    low, high = np.array(bounds).T
    axes.fill_between(x, low.clip(0), high.clip(max=100), color=line.get_color(), alpha=0.15, linewidth=0)


def _percent_axis(axes):
    """From the tens below the lowest mean to the tens above the highest; intervals may reach beyond."""
    means = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    low, high = 10 * np.floor((means.min() - 1) / 10), 10 * np.ceil((means.max() + 1) / 10)
    axes.set_ylim(max(low, -1), min(high, 101))
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
