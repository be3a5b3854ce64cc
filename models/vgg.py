"""VGG and CIFARNet, from one block: convolution, normalisation where there is one, spiking neuron."""

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from .layers import ConvNorm, MakeNeuron, SpikingNetwork, fire, over_time, scaled
from .parameters import ArgumentError

Layer = int | tuple[int, int] | None
POOL: Layer = None


class SpikingConv(nn.Module):
    """conv3x3-norm-spike: [T, B, C, H, W] -> spikes [T, B, C', H', W']."""

    def __init__(self, neuron: MakeNeuron, in_channels: int, out_channels: int, stride: int, norm: str | None) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride, norm, bias=True)
        self.neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        return fire(self.neuron, self.conv, x)


class Pool(nn.Module):
    """2x2 average pool; at the edge of an odd-sized map it averages what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:  # [T, B, C, H, W] -> [T, B, C, ceil(H / 2), ceil(W / 2)]
        return over_time(self.pool, x)


class SpikingVGG(SpikingNetwork):
    """A chain of convolutions and pools, then linear layers.

    Args:
        plan: for each layer its channels, or (channels, stride), or POOL; the first is a stride-1 convolution.
        hidden: sizes of the linear layers before the last. No neurons between them, as in published checkpoints.
        neuron, in_shape, num_classes, norm, width: see `build_model`.

    Raises:
        ValueError: if the plan does not begin with a number of channels.
    """

    def __init__(
        self,
        neuron: MakeNeuron,
        in_shape: Sequence[int],
        num_classes: int,
        plan: Sequence[Layer],
        hidden: Sequence[int] = (),
        norm: str | None = "bn",
        width: float = 1.0,
    ) -> None:
        super().__init__(in_shape)
        in_channels, height, image_width = self.in_shape
        first, *rest = plan
        if not isinstance(first, int):
            raise ArgumentError(f"a plan begins with the channels of a stride-1 convolution, got {first!r}")
        channels = scaled(first, width)
        self.stem = ConvNorm(in_channels, channels, 3, 1, norm, bias=True)
        self.stem_neuron = neuron()
        features: list[nn.Module] = []
        for layer in rest:
            if layer is None:
                stride = 2
                features.append(Pool())
            else:
                out_channels, stride = layer if isinstance(layer, tuple) else (layer, 1)
                features.append(SpikingConv(neuron, channels, scaled(out_channels, width), stride, norm))
                channels = scaled(out_channels, width)
            height, image_width = -(-height // stride), -(-image_width // stride)
        self.features = nn.Sequential(*features)
        sizes = [channels * height * image_width, *(scaled(size, width) for size in hidden), num_classes]
        self.classifier = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))

    def after_stem(self, x: Tensor) -> Tensor:  # [T, B, 64, H, W]
        x = self.features(x)  # -> [T, B, 512, H / 16, W / 16] (cifarnet: H / 4, W / 4)
        return self.classifier(x.flatten(2))  # -> [T, B, K]


PLAN = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
PLAN_WITHOUT_POOLS = (64, (128, 2), 256, (256, 2), 512, (512, 2), 512, (512, 2))  # strides instead of pools
vgg = functools.partial(SpikingVGG, plan=PLAN)
vggwoap = functools.partial(SpikingVGG, plan=PLAN_WITHOUT_POOLS)


def cifarnet(
    neuron: MakeNeuron, in_shape: Sequence[int], num_classes: int, norm: str | None = None, width: float = 1.0
) -> SpikingVGG:
    """128, 256, P, 512, P, 1024, 512, three linear layers; never normalised, whatever `norm` says."""
    plan = (128, 256, POOL, 512, POOL, 1024, 512)
    return SpikingVGG(neuron, in_shape, num_classes, plan, (1024, 512), None, width)
