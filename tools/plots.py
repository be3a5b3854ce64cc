"""Pictures of results, as PNG files."""

from pathlib import Path

from matplotlib.figure import Figure  # and not pyplot, which would choose a backend for everybody


def plot_curves(path, curves, xlabel, title):
    """Accuracy against the strength of a perturbation.

    Args:
        path: the PNG file to write.
        curves: {label: points of a results file}: strength, accuracy_mean and accuracy_std in [0, 1].
        xlabel: what the strength is.
        title: above the picture.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        strengths = [point["strength"] for point in points]
        means = [100 * point["accuracy_mean"] for point in points]
        deviations = [100 * point["accuracy_std"] for point in points]
        axes.errorbar(strengths, means, deviations, marker="o", capsize=3, label=label)
    axes.set(xlabel=xlabel, ylabel="test accuracy (%)", title=title)
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(path), dpi=130)
