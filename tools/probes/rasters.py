"""Spike rasters of a network."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Patch
from torch import Tensor, nn

from tools.data.events.pictures import first_of_each
from tools.data.parts import Labelled
from tools.inference import ForwardPass
from tools.plots import subplots

from .hooks import Traces, neuron_hooks

NEURONS_PER_LAYER = 24


def picture_spikes(
    path: Path, net: nn.Module, data: Labelled, names: Sequence[str], forward: ForwardPass, title: str
) -> None:
    """Write a PNG with a raster of one sample of each class: time to the right, neurons upwards, a colour per layer.

    Args:
        net: in evaluation mode.
        data: the test samples.
        names: of the classes, in the order of the labels.
    """
    shown = data.subset(first_of_each(data.labels))
    ((inputs, labels, *lengths),) = shown.batches(len(shown), forward.device)
    recorded = record_spikes(net, inputs, forward)
    if lengths:  # spikes after the end of a shorter recording are not shown
        has_ended = torch.arange(len(inputs))[:, None] >= lengths[0].cpu()
        for spikes in recorded.values():
            spikes[has_ended] = 0
    layers = {layer: some_that_fire(spikes) for layer, spikes in recorded.items()}
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = subplots(3.2 * columns, 3.0 * rows + 0.8, rows, columns, grid=False, sharex=True, sharey=True)
    colours = {layer: matplotlib.colors.to_rgb(f"C{number % 10}") for number, layer in enumerate(layers)}
    for index, (label, axes) in enumerate(zip(labels.tolist(), panels.flat)):
        cells = []  # [N, T, RGB] each
        for layer, spikes in layers.items():
            cells.append(np.where(spikes[:, index].numpy().T[..., None] > 0, colours[layer], 1.0))
        image = np.concatenate(cells)
        bounds = (0.5, image.shape[1] + 0.5, 0, len(image))
        if len(image):
            axes.imshow(image, aspect="auto", interpolation="nearest", origin="lower", extent=bounds)
        else:
            axes.text(0.5, 0.5, "no neuron fires", transform=axes.transAxes, ha="center")
        axes.set_title(names[label], fontsize=10)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    legend = [Patch(color=colour, label=layer) for layer, colour in reversed(colours.items())]
    figure.legend(handles=legend, loc="outside right upper", title="layer", fontsize=8)
    figure.supxlabel("time step")
    figure.supylabel("neurons that fire for one of these samples")
    figure.suptitle(title)
    figure.savefig(path, dpi=80)


@torch.no_grad()
def record_spikes(net: nn.Module, inputs: Tensor, forward: ForwardPass) -> dict[str, Tensor]:
    """{layer: spikes [T, B, ...], on the CPU} of every neuron layer for one batch and one draw of the noise.

    A neuron that is used again is "<layer>#2", and so on.
    """
    traces = Traces()
    with neuron_hooks(net, lambda layer, neuron, spikes, continues: traces.add(layer, continues, spikes)):
        forward(net, inputs)
    return {layer: spikes for layer, (spikes,) in traces.found.items()}


def some_that_fire(spikes: Tensor, count: int = NEURONS_PER_LAYER) -> Tensor:
    """The spikes of at most `count` random neurons that fire in the batch. Shape: [T, B, ...] -> [T, B, N]."""
    flat = spikes.flatten(2)
    firing = flat.any(1).any(0).nonzero()[:, 0]
    chosen = torch.randperm(len(firing), generator=torch.Generator().manual_seed(0))[:count]
    return flat[:, :, firing[chosen]]
