"""Pictures of `experiments`."""

import numpy as np
from matplotlib.figure import Figure

from tools.analysis.statistics import SeedInterval
from tools.plots import subplots
from tools.studies.intervals import draw_intervals


def truth(rows: list) -> Figure:
    """Plot each `experiments.Estimate` / truth, with its interval; 1 + the estimate where the truth is 0."""
    figure, ((axes,),) = subplots(7.2, 0.32 * len(rows) + 1.2)
    for place, row in enumerate(reversed(rows)):
        divisor, shift = (row.truth, 0.0) if row.truth else (1.0, 1.0)
        half = (row.high - row.mean) / divisor
        axes.errorbar(row.mean / divisor + shift, place, xerr=half, fmt="o", color="C0", capsize=3, ms=4)
    axes.set_yticks(range(len(rows)), [f"{row.metric}: {row.cells}" for row in reversed(rows)], fontsize=8)
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xlabel("estimate / truth, 95 % interval\n(1 + estimate where the truth is 0)")
    axes.set_title("metrics recover truth")
    return figure


def scale(intervals: dict[float, dict[str, SeedInterval]], decoding: dict[str, int]) -> Figure:
    """Plot reliability, Fano factor and decoding {key: pooled trials} against the scale; leftmost: no noise.

    `intervals` is {scale: {quantity: interval over seeds}}.
    """
    scales = np.array(list(intervals))
    shown = np.where(scales > 0, scales, scales[scales > 0].min() / 2.5)
    figure, (axes,) = subplots(11.0, 3.8, columns=3)
    quantities = ["reliability"], ["fano"], list(decoding)
    labels = ("reliability (correlation of two trials)", "Fano factor (100 ms)", "decoding accuracy")
    for panel, keys, label in zip(axes, quantities, labels):
        for key in keys:
            draw_intervals(panel, shown, [of_scale[key] for of_scale in intervals.values()], label=decoding.get(key))
        panel.set(xscale="log", xlabel="standard deviation of the noise (thresholds)", ylabel=label)
        panel.set_xticks([shown[0], 0.05, 0.2, 0.5, 1.5], ["0", "0.05", "0.2", "0.5", "1.5"])
        panel.minorticks_off()
    axes[2].legend(title="trials pooled", fontsize=8, title_fontsize=8)
    figure.suptitle("noisy LIF cells: mean and 95 % interval over populations")
    return figure


QUANTITIES = (  # name, label, name of the recorded value
    ("cc_norm", "CC_norm", None),
    ("fano", "Fano factor", "fano_recorded"),
    ("signal_power", "signal power", "signal_power_recorded"),
    ("noise_power", "noise power", "noise_power_recorded"),
    ("reliability", "reliability", "reliability_recorded"),
    ("distance_mismatch", "mismatch of distances", None),
)


def fits(results: dict[str, dict[str, SeedInterval]], name: str) -> Figure:
    """Plot bars of the judgement of each network, {network: {quantity: interval over seeds}}."""
    figure, panels = subplots(12.0, 6.0, rows=2, columns=3, grid=False)
    ticks = [network.replace(", ", ",\n") for network in results]
    for axes, (key, label, recorded) in zip(panels.flat, QUANTITIES):
        for place, row in enumerate(results.values()):
            axes.bar(place, row[key].mean, color=f"C{place}")
            draw_intervals(axes, [place], [row[key]], color="black", capsize=3, fmt="none")
        if recorded:
            axes.axhline(row[recorded].mean, color="black", ls="--", lw=1, label="recorded")
            axes.legend(fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(len(results)), ticks, fontsize=8)
    figure.suptitle(f"fitted to {name}: mean and 95 % interval over seeds")
    return figure
