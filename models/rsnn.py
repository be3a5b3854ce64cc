"""A recurrent spiking network (RSNN) of linear layers, for inputs that are not images, such as spikes of a cochlea."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .composed import Recurrent
from .layers import MakeNeuron, SpikingNetwork, over_time, scaled
from .parameters import ArgumentError


class LinearNorm(nn.Sequential):
    """Linear layer and, where `norm` is "bn", batch normalisation: [N, F] -> [N, F']; ArgumentError for others."""

    def __init__(self, in_features: int, out_features: int, norm: str | None) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=norm is None)
        if norm == "bn":
            self.norm = nn.BatchNorm1d(out_features)
        elif norm is not None:
            raise ArgumentError(f'norm must be "bn" or None, got {norm!r}')


def _recurrent(neuron: Any, size: int) -> Recurrent:
    if not getattr(neuron, "emits_spikes", False):
        raise ArgumentError(f"rsnn feeds spikes back, so that it needs a spiking neuron, got {neuron!r}")
    return Recurrent(neuron, nn.Linear(size, size, bias=False))


class RSNN(SpikingNetwork):
    """flatten-[linear 128-recurrent spikes]x2-linear K.

    Each spike of a recurrent layer reaches all its neurons one step later. ArgumentError for a module that does not
    emit spikes.
    """

    def __init__(
        self,
        neuron: MakeNeuron,
        in_shape: Sequence[int],
        num_classes: int,
        norm: str | None = "bn",
        width: float = 1.0,
    ) -> None:
        super().__init__(in_shape)
        channels, height, image_width = self.in_shape
        hidden = scaled(128, width)
        self.stem = nn.Sequential(nn.Flatten(), LinearNorm(channels * height * image_width, hidden, norm))
        self.first = _recurrent(neuron(), hidden)
        self.middle = LinearNorm(hidden, hidden, norm)
        self.second = _recurrent(neuron(), hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def body(self, current: Tensor) -> Tensor:  # [T, B, 128] -> logits [T, B, K]
        spikes = self.second(over_time(self.middle, self.first(current)))
        return self.classifier(spikes)
