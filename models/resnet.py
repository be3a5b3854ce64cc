"""Spiking residual networks."""

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from .layers import ConvNorm, MakeNeuron, SpikingNetwork, fire, scaled


class ResidualBlock(nn.Module):
    """conv3x3-norm-spike-conv3x3-norm, plus the identity (1x1 conv-norm where the shape changes), then spike."""

    def __init__(self, neuron: MakeNeuron, in_channels: int, out_channels: int, stride: int, norm: str | None) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride, norm)
        self.neuron1 = neuron()
        self.conv2 = ConvNorm(out_channels, out_channels, 3, 1, norm)
        self.neuron2 = neuron()
        changes_shape = stride != 1 or in_channels != out_channels
        self.downsample = ConvNorm(in_channels, out_channels, 1, stride, norm) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:  # [T, B, C, H, W] -> [T, B, C', H / stride, W / stride]
        between = fire(self.neuron1, self.conv1, x)
        return fire(self.neuron2, self.conv2, between, plus=x, plus_layer=self.downsample)


class SpikingResNet(SpikingNetwork):
    """Residual network of spiking neurons, without max-pool; sizes after "->" are for 32x32 images.

    Args:
        channels: of each stage, before `width`.
        blocks: number of residual blocks of each stage.
        hidden: size of a hidden linear layer before the last, or None.
        large_stem: if true, images other than 32x32 get a 7x7 stem of stride 2.
        neuron, in_shape, num_classes, norm, width: see `build_model`.
    """

    def __init__(
        self,
        neuron: MakeNeuron,
        in_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        hidden: int | None = None,
        large_stem: bool = True,
        norm: str | None = "bn",
        width: float = 1.0,
    ) -> None:
        super().__init__(in_shape)
        stem_channels = scaled(64, width)
        kernel_size, stride = (7, 2) if large_stem and self.in_shape[1:] != (32, 32) else (3, 1)
        self.stem = ConvNorm(in_shape[0], stem_channels, kernel_size, stride, norm)
        self.stem_neuron = neuron()
        stages, in_channels = [], stem_channels
        for stage, (stage_channels, count) in enumerate(zip(channels, blocks)):
            out_channels = scaled(stage_channels, width)
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            stage_blocks = []
            for stride in strides:
                stage_blocks.append(ResidualBlock(neuron, in_channels, out_channels, stride, norm))
                in_channels = out_channels
            stages.append(nn.Sequential(*stage_blocks))
        self.stages = nn.Sequential(*stages)
        self.hidden: nn.Module | None = None
        self.hidden_neuron: nn.Module | None = None
        if hidden is not None:
            features = scaled(hidden, width)
            self.hidden, self.hidden_neuron = nn.Linear(in_channels, features), neuron()
            in_channels = features
        self.classifier = nn.Linear(in_channels, num_classes)

    def after_stem(self, x: Tensor) -> Tensor:  # [T, B, 64, H, W]
        x = self.stages(x)  # -> [T, B, 512, 4, 4] (sresnet19: 8, 8)
        x = x.mean((-2, -1))  # -> [T, B, 512]
        if self.hidden is not None and self.hidden_neuron is not None:
            x = self.hidden_neuron(self.hidden(x))  # -> [T, B, 256]
        return self.classifier(x)  # -> [T, B, K]


sresnet18 = functools.partial(SpikingResNet, channels=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
sresnet34 = functools.partial(SpikingResNet, channels=(64, 128, 256, 512), blocks=(3, 4, 6, 3))
sresnet19 = functools.partial(SpikingResNet, channels=(128, 256, 512), blocks=(3, 3, 2), hidden=256, large_stem=False)
