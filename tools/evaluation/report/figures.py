"""The pictures of an evaluation, as matplotlib figures."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.analysis.metrics import CurvePoint
from tools.analysis.statistics import SeedInterval, seed_interval
from tools.attacks.report import ALL
from tools.data.events.pictures import coloured
from tools.evaluation.conditions import CLEAN
from tools.evaluation.results import ATTACKS, EFFICIENCY, Evaluation, Result, Row
from tools.perturb import PERTURBATIONS
from tools.plots import subplots

WIDTH = 9.6  # inches
WORST_COLUMNS = 6
QUANTITIES = {"accuracy": "accuracy", "nll": "negative log-likelihood", "calibration_error": "calibration error"}


def strengths(label: str, results: list[Result], of: str, title: str) -> Figure:
    """Accuracy of one network against the severity where all results have one, else the strength; `of`: its meaning."""
    figure, ((axes,),) = subplots(6.4, 4.2)
    by_severity = all(result.severity is not None for result in results)
    x = [result.severity if by_severity else result.strength for result in results]
    means = [100 * result.accuracy_mean for result in results]
    deviations = [100 * (result.accuracy_std or 0) for result in results]
    axes.errorbar(x, means, deviations, marker="o", capsize=3, label=label)
    axes.set(xlabel=f"severity of: {of}" if by_severity else of, ylabel="test accuracy (%)", title=title, ylim=(0, 101))
    axes.legend()
    return figure


def severities(evaluation: Evaluation) -> Figure | None:
    """Accuracy against severity or strength, a panel for each perturbation, with intervals over seeds."""
    by_test: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        if row.attack is None:
            by_test.setdefault(row.test, []).append(row)
    (clean,) = by_test.pop(CLEAN)
    if not by_test:
        return None
    columns = min(4, len(by_test))
    lines = -(-len(by_test) // columns)
    figure, panels = subplots(WIDTH, 2.3 * lines + 0.6, lines, columns)
    for axes, (name, rows) in zip(panels.flat, by_test.items()):
        by_severity = all(row.severity is not None for row in rows)
        points = [(row.severity if by_severity else row.strength, row) for row in rows]
        nothing = 0 if by_severity else PERTURBATIONS[name].neutral  # corruptions of a folder have severities
        if nothing is not None:
            points.insert(0, (nothing, clean))
        points.sort(key=lambda point: point[0])
        for number, group in enumerate(evaluation.groups):
            if group in rows[0].groups:
                accuracies = [row.groups[group] for _, row in points]
                _with_interval(axes, [x for x, _ in points], accuracies, group, color=f"C{number}")
        axes.set_xlabel("severity" if by_severity else _plain(rows[-1].of), fontsize=8)
        axes.set_title(_plain(name), fontsize=10)
        _percent_axis(axes)
    for axes in panels.flat[len(by_test) :]:
        axes.set_axis_off()
    max(panels.flat, key=lambda axes: len(axes.get_lines())).legend(fontsize=8)  # the first that has all groups
    figure.supylabel("test accuracy (%)", fontsize=9)
    return figure


def attacks(evaluation: Evaluation) -> Figure:
    """Accuracy against the radius of the attacks, a panel for each norm; the title names groups whose gates failed."""
    rows = [row for row in evaluation.rows if row.attack == ALL]
    norms = list(dict.fromkeys(row.of for row in rows))
    clean, doubtful = {}, []
    for group, reports in evaluation.reports(ATTACKS).items():
        clean[group] = seed_interval([one.clean.accuracy for one in reports])
        if not all(one.reliable for one in reports):
            doubtful.append(group)
    figure, (panels,) = subplots(WIDTH, 3.6, columns=len(norms), sharey=True)
    for axes, norm in zip(panels, norms):
        for number, group in enumerate(evaluation.groups):
            shown = [row for row in rows if row.of == norm]
            radii = [0, *(row.strength for row in shown)]
            accuracies = [clean[group], *(row.groups[group] for row in shown)]
            _with_interval(axes, radii, accuracies, group, color=f"C{number}")
        axes.axhline(50, color="grey", linewidth=0.5)
        axes.set_xlabel(norm)
        _percent_axis(axes)
    if doubtful:
        figure.suptitle(_plain(f"not reliable: gates failed for {', '.join(doubtful)}"), color="#b00")
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(fontsize=8)
    return figure


def draws(measured: dict[str, list[Any]], ensembles: dict[str, list[CurvePoint]]) -> Figure:
    """Scores against averaged draws, next to more time steps and ensembles of snapshots.

    `measured` is {group: uncertainty reports}, `ensembles` {group: curve}.
    """
    figure, (panels,) = subplots(WIDTH, 3.9, columns=len(QUANTITIES))
    for axes, (quantity, label) in zip(panels, QUANTITIES.items()):
        for number, (group, reports) in enumerate(measured.items()):
            plot = partial(_plot_scores, axes, quantity, color=f"C{number}")
            by_draws = mean_curve([report.curve for report in reports])
            plot([one.draws for one in by_draws], by_draws, f"{group}, draws", marker="o", markersize=4)
            by_steps = mean_curve([report.more_time_steps or [] for report in reports])
            if by_steps:
                by_steps.insert(0, dataclasses.replace(by_draws[0], factor=1))
                factors = [one.factor for one in by_steps]
                plot(factors, by_steps, f"{group}, time steps", marker="s", markersize=3, linestyle=":")
            if ensembles[group]:
                sizes = [one.draws for one in ensembles[group]]
                plot(sizes, ensembles[group], f"{group}, snapshots", marker="*", linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("compute: draws, or time steps / T, or snapshots", fontsize=7)
        axes.set_ylabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _plot_scores(axes: Axes, quantity: str, x: list[int], points: list[CurvePoint], label: str, **style: Any) -> None:
    axes.plot(x, [one.scores[quantity] for one in points], label=_plain(label), **style)


def reliability(measured: dict[str, list[Any]]) -> Figure:
    """Accuracy against confidence in bins of equal mass, before temperature scaling; a panel for each group.

    Bins of the same rank hold equally many samples of each snapshot, so means over snapshots are means over samples.
    """
    figure, (panels,) = subplots(WIDTH, 3.8, columns=len(measured), sharey=True)
    for axes, (group, reports) in zip(panels, measured.items()):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for number, size in enumerate(reports[0].reliability):
            bins = [report.reliability[size] for report in reports]  # [snapshots][bins]
            confidence = np.mean([[one.confidence for one in of_snapshot] for of_snapshot in bins], axis=0)
            accuracy = np.mean([[one.accuracy for one in of_snapshot] for of_snapshot in bins], axis=0)
            label = "1 draw" if size == "1" else f"{size} draws"
            axes.plot(confidence, accuracy, marker="o", color=f"C{number}", label=label)
        axes.set(title=_plain(group), xlabel="confidence", ylabel="accuracy")
        axes.legend(fontsize=8)
    return figure


def firing_rates(evaluation: Evaluation) -> Figure | None:
    """Mean firing rate of each layer (in the mean field: firing probability), a bar for each group with spikes."""
    measured = evaluation.reports(EFFICIENCY)
    measured = {group: reports for group, reports in measured.items() if reports[0].firing_rates}
    if not measured:
        return None
    figure, ((axes,),) = subplots(WIDTH, 3.2, grid=False)
    layers: dict[str, None] = {}  # in the order of their first appearance
    for reports in measured.values():
        layers |= dict.fromkeys(reports[0].firing_rates)
    width = 0.8 / len(measured)
    for number, (group, reports) in enumerate(measured.items()):
        rates = [[one.firing_rates.get(layer, np.nan) for layer in layers] for one in reports]
        means = np.mean(rates, axis=0)
        label = f"{group}: mean probability" if evaluation.modes[group] == "mean_field" else group
        colour = f"C{list(evaluation.groups).index(group)}"
        axes.bar(np.arange(len(layers)) + number * width, means, width, label=_plain(label), color=colour)
    axes.set_xticks(np.arange(len(layers)) + 0.4 - width / 2, layers, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("spikes per neuron and step")
    axes.legend(fontsize=8)
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Confusion matrices, the mean over snapshots and draws, a panel for each group."""
    count = len(evaluation.groups)
    figure, (panels,) = subplots(WIDTH if count > 1 else 0.6 * WIDTH, 4.6, columns=count, grid=False)
    names = [_plain(name) for name in evaluation.dataset.classes]
    for axes, (group, snapshots) in zip(panels, evaluation.groups.items()):
        counts = np.mean([one.clean.confusion for one in snapshots], axis=0)
        shares = counts / counts.sum(1, keepdims=True).clip(min=1e-9)  # some classes may have no samples
        image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # the root makes rare mistakes visible
        if len(names) <= 12:
            for row, column in np.argwhere(shares >= 0.005):
                share = shares[row, column]
                style = dict(ha="center", va="center", fontsize=7, color="white" if share > 0.4 else "black")
                axes.text(column, row, f"{100 * share:.0f}", **style)
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(title=_plain(f"{group}: % of each class"), xlabel="predicted class", ylabel="class")
    figure.colorbar(image, ax=panels.tolist(), shrink=0.7, label="square root of the share")
    return figure


def worst(evaluation: Evaluation) -> Figure:
    """The samples with the highest loss, for the first snapshot of each group."""
    found = {group: snapshots[0].clean.worst for group, snapshots in evaluation.groups.items()}
    lines = -(-max(map(len, found.values())) // WORST_COLUMNS)  # rows of panels, for each group
    height = 1.9 * lines * len(found) + 0.3
    figure, panels = subplots(WIDTH, height, lines * len(found), WORST_COLUMNS, grid=False)
    for axes in panels.flat:
        axes.set_axis_off()
    names = [_plain(name) for name in evaluation.dataset.classes]
    for number, (group, mistakes) in enumerate(found.items()):
        mine = panels[number * lines : (number + 1) * lines]
        for axes, one in zip(mine.flat, mistakes):
            axes.imshow(_picture(evaluation.picture(one.index)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            title = f"{names[one.label]}\nas {names[one.predicted]}\n{100 * one.confidence:.0f} %"
            axes.set_title(title, fontsize=6)
        first, centred = mine[0, 0], dict(ha="right", va="center", fontsize=8, rotation=90)
        first.text(-0.1, 0.5, _plain(group), transform=first.transAxes, **centred)
    return figure


def mean_curve(curves: list[list[CurvePoint]]) -> list[CurvePoint]:
    """The mean scores of several curves with the same compute; [] without curves."""
    means = []
    for points in zip(*curves):
        scores = {name: float(np.mean([point.scores[name] for point in points])) for name in points[0].scores}
        means.append(dataclasses.replace(points[0], scores=scores))
    return means


def _picture(image: np.ndarray) -> np.ndarray:
    """An image [C, H, W] as imshow takes it; the two polarities of events are coloured."""
    if len(image) == 2:
        return coloured(image)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _plain(text: str) -> str:
    """Text with escaped dollars, which matplotlib would take for formulas."""
    return text.replace("$", r"\$")


def _with_interval(axes: Axes, x: list[float], accuracies: list[SeedInterval], label: str, **style: str) -> None:
    """Plot means in per cent, and their intervals if there are several seeds."""
    means = [100 * one.mean for one in accuracies]
    (line,) = axes.plot(x, means, marker="o", markersize=3, label=_plain(label), **style)
    if accuracies[0].low is not None:
        low, high = [max(100 * one.low, 0) for one in accuracies], [min(100 * one.high, 100) for one in accuracies]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _percent_axis(axes: Axes) -> None:
    """Set the limits to the tens below the lowest mean and above the highest; intervals may reach beyond."""
    means = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    low, high = 10 * np.floor((means.min() - 1) / 10), 10 * np.ceil((means.max() + 1) / 10)
    axes.set(ylim=(max(low, -1), min(high, 101)))
    axes.tick_params(labelsize=8)
