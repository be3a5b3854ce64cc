"""Pictures of what a tested network sees and does: recordings of each class, and the spikes they cause."""

import torch

from .hooks import neuron_hooks
from .plots import plot_rasters, plot_recordings

CLASSES = 12  # at most so many are shown
NEURONS_PER_LAYER = 24


def picture_recordings(path, data, names):
    """One recording of each class: its events in space and time, and the frames made from them.

    Args:
        path: the PNG file to write.
        data: `LabelledRecordings`.
        names: of the classes, in the order of the labels.
    """
    shown = data.subset(first_of_each(data.labels))
    ((frames, _),) = shown.batches(len(shown), torch.device("cpu"))
    events = [shown.events(index) for index in range(len(shown))]
    plot_recordings(path, [names[label] for label in shown.labels], events, frames.transpose(0, 1).numpy())


def picture_spikes(path, net, data, names, forward, title):
    """Spike rasters of one sample of each class.

    Args:
        path: the PNG file to write.
        net: the network, in evaluation mode.
        data: labelled test data: has labels, subset() and batches().
        names: of the classes, in the order of the labels.
        forward: `engine.ForwardPass`.
        title: above the picture.
    """
    shown = data.subset(first_of_each(data.labels))
    ((inputs, labels),) = shown.batches(len(shown), forward.device)
    layers = {name: some_that_fire(spikes) for name, spikes in record_spikes(net, inputs, forward).items()}
    samples = [{name: spikes[:, index] for name, spikes in layers.items()} for index in range(len(shown))]
    plot_rasters(path, [names[label] for label in labels], samples, title)


def first_of_each(labels):
    """The first index of each class, of the first classes. Shape: int64 [N] -> [min(K, CLASSES)]."""
    return torch.tensor([(labels == label).nonzero()[0, 0].item() for label in labels.unique()[:CLASSES]])


@torch.no_grad()
def record_spikes(net, inputs, forward):
    """{layer: spikes [T, B, ...], on the CPU} of every neuron layer, for one batch; one draw of the noise."""
    spikes = {}

    def attach(name, neuron):
        return neuron.register_forward_hook(lambda module, args, out: spikes.update({name: out.float().cpu()}))

    with neuron_hooks(net, attach):
        forward(net, inputs)
    return spikes


def some_that_fire(spikes, count=NEURONS_PER_LAYER, seed=0):
    """Random neurons of a layer among those that fire at least once in the batch.

    Shape:
        spikes [T, B, ...] -> [T, B, at most count].
    """
    flat = spikes.flatten(2)
    firing = flat.any(1).any(0).nonzero()[:, 0]
    chosen = torch.randperm(len(firing), generator=torch.Generator().manual_seed(seed))[:count]
    return flat[:, :, firing[chosen]]
