"""A spiking network for fast training on small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import ConvNorm, MakeNeuron, SpikingNetwork, fire, scaled

PATCH = 2  # side of the patches that are whitened
FLOOR = 0.05  # added to variances of normalised pixels, so that noise in directions without signal is not blown up


def pooled(layer: ConvNorm, sides: Sequence[int]) -> ConvNorm:
    """The layer with 2x2 max pooling before its normalisation, which then has a quarter of the work.

    Where a side of its input is a single pixel, nothing is pooled.
    """
    if min(sides) > 1:
        layer.conv = nn.Sequential(layer.conv, nn.MaxPool2d(2))
    return layer


def halved(sides: Sequence[int]) -> tuple[int, ...]:
    """The sides of an image after `pooled`."""
    return tuple(side // 2 for side in sides) if min(sides) > 1 else tuple(sides)


class Whitening(nn.Conv2d):
    """A convolution that does not learn: its outputs are uncorrelated, of variance 1, and there with both signs."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__(channels, 2 * channels * PATCH**2, PATCH, padding=padding)
        for name in ("weight", "bias"):
            values = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, values)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the weights by images [N, C, H, W]."""
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [N, C, H', W', PATCH, PATCH]
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1).double()
        variances, directions = torch.linalg.eigh(torch.cov(patches.T, correction=0))
        assert self.bias is not None
        rows = (directions / (variances + FLOOR).sqrt()).T.flip(0)  # the strongest first
        rows = torch.cat([rows, -rows])
        self.weight.copy_(rows.unflatten(1, self.weight.shape[1:]))
        self.bias.copy_(-rows @ patches.mean(0))


class SpeedGroup(nn.Module):
    """conv-pool-norm-spike, then conv-norm plus the spikes before, then spike."""

    def __init__(
        self, neuron: MakeNeuron, in_channels: int, out_channels: int, norm: str | None, sides: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = pooled(ConvNorm(in_channels, out_channels, 3, 1, norm), sides)
        self.neuron1 = neuron()
        self.conv2 = ConvNorm(out_channels, out_channels, 3, 1, norm)
        self.neuron2 = neuron()

    def forward(self, x: Tensor) -> Tensor:  # [T, B, C, H, W] -> [T, B, C', H / 2, W / 2]
        x = fire(self.neuron1, self.conv1, x)
        return fire(self.neuron2, self.conv2, x, plus=x)


class SpeedNet(SpikingNetwork):
    """Three wide groups after a fixed layer that whitens patches; for 32x32 images, 2 million weights.

    `adapt_to` sets the fixed layer; without it, the layer has random weights. The other convolutions begin as
    identities, as far as their channels allow.

    Args:
        neuron, in_shape, num_classes, norm, width: see `build_model`.

    Note:
        The plan is that of K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498, section 3,
        with neurons for GELU, residual connections, and no neuron after the fixed layer.
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
        channels = [scaled(count, width) for count in (64, 256, 256)]
        padding = max(0, PATCH - min(in_shape[1:]))
        whitening = Whitening(in_shape[0], padding)
        sides: Sequence[int] = [side + 2 * padding - PATCH + 1 for side in in_shape[1:]]
        stem = pooled(ConvNorm(whitening.out_channels, channels[0], 3, 1, norm), sides)
        stem.conv = nn.Sequential(whitening, stem.conv)
        self.stem = stem
        self.stem_neuron = neuron()
        self.second = ConvNorm(channels[0], channels[0], 3, 1, norm)
        self.second_neuron = neuron()
        groups = []
        for before, after in zip(channels, channels[1:]):
            sides = halved(sides)
            groups.append(SpeedGroup(neuron, before, after, norm, sides))
        self.groups = nn.Sequential(*groups)
        self.classifier = nn.Linear(channels[2], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                nn.init.dirac_(layer.weight[: layer.in_channels].detach())

    def adapt_to(self, images: Tensor) -> None:
        """Set the fixed layer by images [N, C, H, W] or frames [T, N, C, H, W] of the training data, in raw pixels."""
        whitening = self.get_submodule("stem.conv.0")
        assert isinstance(whitening, Whitening)
        whitening.fit(self.normalize(images).flatten(0, -4))

    def after_stem(self, x: Tensor) -> Tensor:  # [T, B, 64, H / 2, W / 2]
        x = fire(self.second_neuron, self.second, x, plus=x)
        x = self.groups(x)  # -> [T, B, 256, H / 8, W / 8]
        return self.classifier(x.mean((-2, -1)))  # -> [T, B, K]
