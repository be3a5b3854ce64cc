"""Pictures of `experiments`."""

import numpy as np
from matplotlib.figure import Figure


def truth(rows: list[dict]) -> Figure:
    """Draw estimate / truth of each metric, with its interval; 1 + the estimate where the truth is 0."""
    figure = Figure(figsize=(7.2, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        divisor, shift = (row["truth"], 0.0) if row["truth"] else (1.0, 1.0)
        mean, low, high = (row[key] / divisor + shift for key in ("mean", "low", "high"))
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3, ms=4)
    axes.set_yticks(range(len(rows)), [f"{row['metric']}: {row['cells']}" for row in reversed(rows)], fontsize=8)
    axes.axvline(1.0, color="black", lw=0.8)
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="estimate / truth (1 + estimate where the truth is 0), 95 % interval", title="metrics recover truth"
    )
    return figure


def scale(rows: list[dict], decoding: dict[str, int]) -> Figure:
    """Draw reliability, Fano factor and decoding against the scale of the noise; no noise is the leftmost point.

    Args:
        rows: one for each scale: {"std", quantity: interval}.
        decoding: {key of the accuracy: number of pooled trials}.
    """
    scales = np.array([row["std"] for row in rows])
    shown = np.where(scales > 0, scales, scales[scales > 0].min() / 2.5)
    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    _line(panels[0], shown, rows, "reliability")
    _line(panels[1], shown, rows, "fano")
    for number, (key, pooled) in enumerate(decoding.items()):
        _line(panels[2], shown, rows, key, str(pooled), f"C{number}")
    panels[2].legend(title="trials pooled", fontsize=8, title_fontsize=8)
    labels = ("reliability (correlation of two trials)", "Fano factor (100 ms)", "decoding accuracy")
    for axes, label in zip(panels, labels):
        axes.set(xscale="log", xlabel="standard deviation of the noise (thresholds)", ylabel=label)
        axes.set_xticks([shown[0], 0.05, 0.2, 0.5, 1.5], ["0", "0.05", "0.2", "0.5", "1.5"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle("noisy LIF cells: mean and 95 % interval over populations")
    return figure


def _line(axes, x, rows, key, label=None, colour="C0"):
    mean, low, high = (np.array([row[key][part] for row in rows]) for part in ("mean", "low", "high"))
    axes.plot(x, mean, "o-", ms=4, color=colour, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.2)


def fits(results: dict[str, dict], name: str) -> Figure:
    """Draw bars of what `judge` says of each network, with intervals over seeds.

    Args:
        results: {network: {quantity: interval}}.
        name: of the cells.
    """
    quantities = (
        ("cc_norm", "CC_norm", None),
        ("fano", "Fano factor", "fano_recorded"),
        ("signal_power", "signal power", "signal_power_recorded"),
        ("noise_power", "noise power", "noise_power_recorded"),
        ("reliability", "reliability", "reliability_recorded"),
        ("distance_mismatch", "mismatch of distances", None),
    )
    figure = Figure(figsize=(12.0, 6.0), layout="constrained")
    networks = list(results)
    for axes, (key, label, recorded) in zip(figure.subplots(2, 3).flat, quantities):
        for place, network in enumerate(networks):
            row = results[network][key]
            mean, low, high = row["mean"], row["low"], row["high"]
            axes.bar(place, mean, color=f"C{place}")
            axes.errorbar(place, mean, [[max(mean - low, 0)], [max(high - mean, 0)]], color="black", capsize=3)
        if recorded:
            axes.axhline(results[networks[0]][recorded]["mean"], color="black", ls="--", lw=1, label="recorded")
            axes.legend(fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(len(networks)), [network.replace(", ", ",\n") for network in networks], fontsize=8)
    figure.suptitle(f"fitted to {name}: mean and 95 % interval over seeds")
    return figure
