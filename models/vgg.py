"""VGG and CIFARNet, from one block: convolution, normalisation where there is one, spiking neuron."""

from torch import nn

from .layers import ConvNorm, SpikingNetwork, over_time, scaled

POOL = "P"


class SpikingConv(nn.Module):
    """conv3x3-norm-spike: [T, B, C, H, W] -> spikes [T, B, C', H', W']."""

    def __init__(self, neuron, in_channels, out_channels, stride, norm):
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride, norm, bias=True)
        self.neuron = neuron()

    def forward(self, x):
        return self.neuron(over_time(self.conv, x))


class Pool(nn.Module):
    """2x2 average pool; at the edge of an odd-sized map it averages what there is."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x):  # [T, B, C, H, W] -> [T, B, C, ceil(H / 2), ceil(W / 2)]
        return over_time(self.pool, x)


class SpikingVGG(SpikingNetwork):
    """A chain of convolutions and pools, then linear layers.

    Args:
        neuron: zero-argument callable that makes a fresh neuron.
        in_shape: (C, H, W).
        num_classes: K.
        plan: for each layer its channels, or (channels, stride), or POOL; the first is a stride-1 convolution.
        hidden: sizes of the linear layers before the last. No neurons between them: the published
            checkpoints have none.
        norm: "bn" or None.
        width: factor on all channel counts and hidden sizes.
    """

    def __init__(self, neuron, in_shape, num_classes, plan, hidden, norm, width):
        super().__init__(in_shape)
        in_channels, height, image_width = self.in_shape
        channels = scaled(plan[0], width)
        self.stem = ConvNorm(in_channels, channels, 3, 1, norm, bias=True)
        self.stem_neuron = neuron()
        features = []
        for layer in plan[1:]:
            out_channels, stride = (None, 2) if layer == POOL else layer if isinstance(layer, tuple) else (layer, 1)
            if out_channels is None:
                features.append(Pool())
            else:
                features.append(SpikingConv(neuron, channels, scaled(out_channels, width), stride, norm))
                channels = scaled(out_channels, width)
            height, image_width = -(-height // stride), -(-image_width // stride)
        self.features = nn.Sequential(*features)
        sizes = [channels * height * image_width, *(scaled(size, width) for size in hidden), num_classes]
        self.classifier = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))

    def body(self, current):
        x = self.stem_neuron(current)  # [T, B, 64, H, W]
        x = self.features(x)  # -> [T, B, 512, H / 16, W / 16] (cifarnet: H / 4, W / 4)
        return self.classifier(x.flatten(2))  # -> [T, B, K]


def vgg(neuron, in_shape, num_classes, norm="bn", width=1.0):
    """64, 128, P, 256, 256, P, 512, 512, P, 512, 512, P, one linear layer."""
    plan = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
    return SpikingVGG(neuron, in_shape, num_classes, plan, (), norm, width)


def vggwoap(neuron, in_shape, num_classes, norm="bn", width=1.0):
    """`vgg` without average pools: the convolution before each pool has stride 2 instead."""
    plan = (64, (128, 2), 256, (256, 2), 512, (512, 2), 512, (512, 2))
    return SpikingVGG(neuron, in_shape, num_classes, plan, (), norm, width)


def cifarnet(neuron, in_shape, num_classes, norm=None, width=1.0):
    """128, 256, P, 512, P, 1024, 512, three linear layers; never normalised, whatever `norm` says."""
    plan = (128, 256, POOL, 512, POOL, 1024, 512)
    return SpikingVGG(neuron, in_shape, num_classes, plan, (1024, 512), None, width)
