"""Accuracy against the strength of one perturbation, as a PNG file."""

from pathlib import Path

from matplotlib.figure import Figure


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
