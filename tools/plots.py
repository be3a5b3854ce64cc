"""Pictures of results, as PNG files."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # and not pyplot, which would choose a backend for everybody
from matplotlib.patches import Patch


def plot_curves(path, curves, xlabel, title):
    """Accuracy against the strength of a perturbation.

    Args:
        path: the PNG file to write.
        curves: {label: points of a results file}: severity, strength, accuracy_mean and accuracy_std in [0, 1].
        xlabel: what the strength is; the axis shows it, or severities where all points have one.
        title: above the picture.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    by_severity = all(point["severity"] is not None for points in curves.values() for point in points)
    for label, points in curves.items():
        strengths = [point["severity" if by_severity else "strength"] for point in points]
        means = [100 * point["accuracy_mean"] for point in points]
        deviations = [100 * (point["accuracy_std"] or 0) for point in points]
        axes.errorbar(strengths, means, deviations, marker="o", capsize=3, label=label)
    axes.set(xlabel=f"severity of: {xlabel}" if by_severity else xlabel, ylabel="test accuracy (%)", title=title)
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(path), dpi=130)


OFF, ON = "tab:blue", "tab:red"
SHOWN_EVENTS = 3000  # of a recording, at random: more would cover each other


def plot_recordings(path, names, events, frames):
    """A row for each recording: its events in space and time, and its frames.

    Args:
        path: the PNG file to write.
        names: K titles.
        events: K arrays of `tools.events.EVENT`.
        frames: float [K, T, 2, H, W] in [0, 1] or counts; each frame is shown relative to its maximum.
    """
    timesteps = frames.shape[1]
    figure = Figure(figsize=(3.2 + timesteps, 1.6 * len(names) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(names), timesteps + 1, width_ratios=[3] + [1] * timesteps)
    for row, (name, recording) in enumerate(zip(names, events)):
        _space_time(figure.add_subplot(grid[row, 0], projection="3d"), recording)
        for step, frame in enumerate(frames[row]):
            axes = figure.add_subplot(grid[row, step + 1], xticks=[], yticks=[])
            axes.imshow(_coloured(frame), interpolation="nearest")
            axes.set_title(name if step == 0 else "", loc="left", fontsize=10)
            axes.set_xlabel(f"frame {step + 1}" if row == len(names) - 1 else "", fontsize=8)
    figure.suptitle("events in space and time, and frames made from them (red: brighter, blue: darker, black: both)")
    figure.savefig(Path(path), dpi=80)


def _space_time(axes, events):
    """Points of events at (t, x, y); y points down as on the sensor."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(events))[:SHOWN_EVENTS])
    for polarity, colour in ((False, OFF), (True, ON)):
        seen = events[chosen][events["p"][chosen] == polarity]
        elapsed_ms = (seen["t"] - events["t"][0]) / 1000
        axes.scatter(elapsed_ms, seen["x"], seen["y"], s=1.5, c=colour, linewidths=0)
    axes.invert_zaxis()
    axes.set_box_aspect((2.4, 1, 1), zoom=1.45)
    axes.view_init(elev=18, azim=-65)
    axes.tick_params(labelsize=6, pad=-3)
    axes.set(yticks=[], zticks=[])
    axes.set_xlabel("time (ms)", fontsize=7, labelpad=-8)
    axes.set_ylabel("x", fontsize=7, labelpad=-14)
    axes.set_zlabel("y", fontsize=7, labelpad=-14)


def _coloured(frame):
    """[2, H, W] -> RGB [H, W, 3]: white where nothing happened, the colour of the polarity where it did."""
    strength = frame / max(frame.max(), 1e-9)
    image = np.ones((*strength.shape[1:], 3))
    for channel, colour in zip(strength, (OFF, ON)):
        # A root, so that pixels of few events are seen beside those of many.
        image -= np.sqrt(channel)[..., None] * (1 - np.array(matplotlib.colors.to_rgb(colour)))
    return image.clip(0, 1)


def plot_rasters(path, names, samples, title):
    """Spike rasters, a panel for each sample: time steps to the right, neurons upwards, a colour for each layer.

    Args:
        path: the PNG file to write.
        names: K titles.
        samples: K times {layer: spikes [T, N]}.
        title: above the picture.
    """
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    colours = {layer: matplotlib.colors.to_rgb(f"C{number % 10}") for number, layer in enumerate(samples[0])}
    for axes, name, layers in zip(panels.flat, names, samples):
        cells = [
            np.where(spikes.numpy().T[..., None] > 0, colours[layer], 1.0) for layer, spikes in layers.items()
        ]  # [N, T, RGB] each
        image = np.concatenate(cells)
        bounds = (0.5, image.shape[1] + 0.5, 0, len(image))
        axes.imshow(image, aspect="auto", interpolation="nearest", origin="lower", extent=bounds)
        axes.set_title(name, fontsize=10)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    legend = [Patch(color=colour, label=layer) for layer, colour in reversed(colours.items())]
    figure.legend(handles=legend, loc="outside right upper", title="layer", fontsize=8)
    figure.supxlabel("time step")
    figure.supylabel("neurons that fire for one of these samples")
    figure.suptitle(title)
    figure.savefig(Path(path), dpi=80)


def plot_sweep(path, rows):
    """Test accuracy against the first setting that has several values, a line for each combination of the others.

    Args:
        path: the PNG file to write.
        rows: as `sweep.summarise` has them: {"settings": {name: value}, "mean", "std"}.
    """
    names = list(rows[0]["settings"])
    varied = [name for name in names if len({row["settings"][name] for row in rows}) > 1]
    axis = (varied or names or ["seed"])[0]
    lines = {}
    for row in rows:
        others = ", ".join(f"{name} {row['settings'][name]}" for name in varied if name != axis)
        place = row["settings"].get(axis, "")
        lines.setdefault(others, []).append((place, 100 * row["mean"], 100 * (row["std"] or 0)))
    places = list(dict.fromkeys(point[0] for points in lines.values() for point in points))
    numbers = _numbers(places)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        points = sorted((numbers[place], mean, std) for place, mean, std in points)
        axes.errorbar(*zip(*points), marker="o", capsize=3, label=label)
    if not all(isinstance(number, float) for number in numbers.values()):
        axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=axis, ylabel="test accuracy (%)", title="mean and standard deviation over seeds")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    figure.savefig(Path(path), dpi=130)


def _numbers(texts):
    """{text: the float that it is}, or where one is none, {text: its place among them, an int}."""
    try:
        return {text: float(text) for text in texts}
    except ValueError:
        return {text: place for place, text in enumerate(texts)}
