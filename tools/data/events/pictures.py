"""Pictures of recordings: events in space and time, and the frames made of them."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from .labelled import LabelledRecordings
from .reading import PathLike

OFF, ON = "tab:blue", "tab:red"
SHOWN_EVENTS = 3000  # of a recording, at random; more would cover each other
CLASSES, FRAMES = 12, 16  # most that are shown


def picture_recordings(path: PathLike, data: LabelledRecordings, names: Sequence[str]) -> None:
    """Plot one recording of each class in a PNG file; `names`: of the classes, in the order of the labels."""
    shown = data.subset(first_of_each(data.labels))
    ((frames, *_),) = shown.batches(len(shown), torch.device("cpu"))
    events = [shown.events(index) for index in range(len(shown))]
    plot_recordings(path, [names[label] for label in shown.labels], events, frames.transpose(0, 1).numpy())


def first_of_each(labels: torch.Tensor) -> torch.Tensor:
    """The first index of each of the first classes. Shape: int64 [N] -> [min(K, CLASSES)]."""
    return torch.tensor([(labels == label).nonzero()[0, 0].item() for label in labels.unique()[:CLASSES]])


def plot_recordings(path: PathLike, names: Sequence[str], events: Sequence[np.ndarray], frames: np.ndarray) -> None:
    """Plot a row for each of K recordings: its events, `EVENT` [N], in space and time, and its frames.

    The frames [K, T, 2, H, W] are in [0, 1] or counts; each is shown relative to its maximum. Of more than `FRAMES`
    frames, as many are shown, spread over all.
    """
    timesteps = frames.shape[1]
    steps = np.linspace(0, timesteps - 1, min(timesteps, FRAMES)).round().astype(int)
    figure = Figure(figsize=(3.2 + len(steps), 1.6 * len(names) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(names), len(steps) + 1, width_ratios=[3] + [1] * len(steps))
    for row, (name, recording) in enumerate(zip(names, events)):
        _space_time(figure.add_subplot(grid[row, 0], projection="3d"), recording)
        for column, step in enumerate(steps, 1):
            axes = figure.add_subplot(grid[row, column], xticks=[], yticks=[])
            axes.imshow(coloured(frames[row, step]), interpolation="nearest")
            axes.set_title(name if step == 0 else "", loc="left", fontsize=10)
            axes.set_xlabel(f"frame {step + 1}" if row == len(names) - 1 else "", fontsize=8)
    figure.suptitle("events in space and time, and frames made from them (red: brighter, blue: darker, black: both)")
    figure.savefig(path, dpi=80)


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


def coloured(frame: np.ndarray) -> np.ndarray:
    """[2, H, W] -> RGB [H, W, 3]: white where nothing happened, the colour of the polarity where it did."""
    strength = frame / max(frame.max(), 1e-9)
    image = np.ones((*strength.shape[1:], 3))
    for channel, colour in zip(strength, (OFF, ON)):
        # A root, so that pixels with few events are visible next to those with many.
        image -= np.sqrt(channel)[..., None] * (1 - np.array(matplotlib.colors.to_rgb(colour)))
    return image.clip(0, 1)
