"""A small fully connected network."""

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import MakeNeuron, SpikingNetwork, scaled


class ToyNet(SpikingNetwork):
    """flatten-linear 64-spike-linear K, without biases; never normalised, whatever `norm` says."""

    def __init__(
        self, neuron: MakeNeuron, in_shape: Sequence[int], num_classes: int, norm: str | None = None, width: float = 1.0
    ) -> None:
        super().__init__(in_shape)
        channels, height, image_width = self.in_shape
        hidden = scaled(64, width)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * image_width, hidden, bias=False))
        self.stem_neuron = neuron()
        self.classifier = nn.Linear(hidden, num_classes, bias=False)

    def after_stem(self, x: Tensor) -> Tensor:  # [T, B, 64] -> logits [T, B, K]
        return self.classifier(x)
