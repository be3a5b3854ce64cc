"""Networks that are fitted to recorded spike trains, and what they predict."""

import functools

from torch import nn

from models import LIF, Gaussian, NoisyLIF
from models.layers import over_time

SEGMENT = 100  # frames of a training sample
WARM_UP = 10  # of them, in which the network gets going from rest and is not judged
SURROGATE = Gaussian(0.3)  # also the noise at first: where there is none, the same density is the surrogate gradient
CLIP = 1e-4  # probabilities within it of 0 or 1 count as these: one surprising spike is no catastrophe


class EncodingNetwork(nn.Module):
    """Convolution - spikes - linear - spikes - linear - spikes of N cells.

    Args:
        in_shape: (frames of the stack, H, W).
        cells: N.
        hidden: whether the neurons inside are noisy.
        output: whether those that stand for the cells are.

    Shape:
        frames [T, B, depth, H, W] -> current of the last neurons [T, B, N]; `spikes` has what they do with it.
    """

    def __init__(self, in_shape, cells, hidden=True, output=True):
        super().__init__()
        depth, height, width = in_shape
        neuron = functools.partial(NoisyLIF, SURROGATE, learnable_scale=True) if hidden else self._deterministic
        self.conv = nn.Conv2d(depth, 16, 5, stride=2)
        self.conv_neuron = neuron()
        features = 16 * ((height - 5) // 2 + 1) * ((width - 5) // 2 + 1)
        self.linear = nn.Linear(features, 64)
        self.linear_neuron = neuron()
        self.readout = nn.Linear(64, cells)
        # In the last layer, threshold noise alone: given the past, a spike is then a Bernoulli variable exactly.
        self.output = NoisyLIF(SURROGATE, placement="escape", learnable_scale=True) if output else self._deterministic()

    @staticmethod
    def _deterministic():
        return LIF(SURROGATE)

    def forward(self, frames):
        x = self.conv_neuron(over_time(self.conv, frames))
        x = self.linear_neuron(over_time(self.linear, x.flatten(2)))
        return over_time(self.readout, x)

    def spikes(self, frames):
        """Of the cells, running freely: 0 or 1 [T, B, N]."""
        return self.output(self(frames))
