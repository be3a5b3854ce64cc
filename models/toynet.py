"""A small fully connected network."""

from torch import nn

from .layers import SpikingNetwork, scaled


class ToyNet(SpikingNetwork):
    """flatten-linear 64-spike-linear K, without biases; never normalised, whatever `norm` says."""

    def __init__(self, neuron, in_shape, num_classes, norm=None, width=1.0):
        super().__init__(in_shape)
        channels, height, image_width = self.in_shape
        hidden = scaled(64, width)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * image_width, hidden, bias=False))
        self.stem_neuron = neuron()
        self.classifier = nn.Linear(hidden, num_classes, bias=False)

    def body(self, current):  # [T, B, 64] -> logits [T, B, K]
        return self.classifier(self.stem_neuron(current))
