"""Accuracy of calibrated conversions of a trained ReLU network, beside SpikingJelly's, and fine-tuned with noise.

    python benchmarks/convert.py [--dataset mnist5k | cifar10] [--epochs 10] [--width 16] [--tuning_epochs 6]
        [--timesteps 2 4 16 64] [--limit 2000] [--data-root FOLDER] [--net FILE] [--device cpu] [--amp bf16]

Trains a small network with batch normalisation, max and average pooling and residual connections, or reads it from
FILE, which it writes if it is missing. All conversions are calibrated with the same 1,000 training images and tested on
the same images, drawn at random. One JSON line per conversion and number of time steps. Needs SpikingJelly 2.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.common import report
from dataset_utils import DATASETS
from models import Gaussian, NoisyIF, convert
from tools.config.train import TrainConfig
from tools.data.augment import Augment

SPIKINGJELLY = {  # settings of its RateCodingRecipe
    "spikingjelly": dict(),
    "spikingjelly, 99.9%": dict(mode="99.9%"),
    "spikingjelly, 99.9%, by channel": dict(mode="99.9%", channel_wise=True),
    "spikingjelly, 99.9%, by channel, from half": dict(mode="99.9%", channel_wise=True, half_threshold=True),
    "spikingjelly, 99%, by channel, from half": dict(mode="99%", channel_wise=True, half_threshold=True),
}


class Block(nn.Module):
    """relu(x' + conv(relu(conv(x)))), each convolution with batch normalisation."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_channels, channels, 3, stride, 1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        out = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(out)) + self.shortcut(x))


def network(channels, width):
    """[B, C, H, W] -> [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Block(width, 2 * width, 1),
        nn.MaxPool2d(2),
        Block(2 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def some(images, count):
    """Images drawn at random: a folder is sorted by class."""
    return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count])


class Benchmark:
    """The data, and what is done with networks."""

    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        parts = DATASETS[args.dataset].load(TrainConfig(data_root=args.data_root))
        augment = Augment(crop_padding=2, flip=args.dataset == "cifar10")
        options = dict(device=self.device, memory_format=torch.channels_last)
        self.fit = parts.train.batches(100, shuffle=True, augment=augment, **options)
        self.calibration = list(some(parts.train, 1000).batches(100, **options))
        self.test = list(some(parts.test, args.limit).batches(100, **options))
        self.channels = parts.train.images.shape[1]

    def train(self, net, epochs, lr, logits):
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-2)
        steps = epochs * len(self.fit)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in range(epochs):
            for images, target in self.fit:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp == "bf16"):
                    output = logits(net, images)
                loss = F.cross_entropy(output.float(), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def accuracy(self, net, logits):
        net.eval()
        right = sum((logits(net, images).argmax(-1) == target).sum().item() for images, target in self.test)
        return right / sum(len(target) for _, target in self.test)

    def report(self, conversion, timesteps, accuracy):
        args = self.args
        report("convert", args.device, dataset=args.dataset, conversion=conversion, T=timesteps, accuracy=accuracy)


def over(timesteps):
    """(network, images) -> the mean of the logits of a converted network over time."""
    return lambda net, images: net(images, timesteps=timesteps).mean(0)


def of_spikingjelly(timesteps):
    from spikingjelly.activation_based import functional

    def logits(net, images):
        functional.reset_net(net)
        return sum(net(images) for _ in range(timesteps)) / timesteps

    return logits


def noisy_neuron():
    """Threshold noise: without a leak, membrane noise would add up."""
    return NoisyIF(Gaussian(0.2), placement="escape", reset="subtract", v_leak=0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("mnist5k", "cifar10"), default="mnist5k")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tuning_epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[2, 4, 16, 64])
    parser.add_argument("--tuning_timesteps", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--data-root", default="")
    parser.add_argument("--net", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("no", "bf16"), default="no")
    args = parser.parse_args()
    torch.manual_seed(0)
    benchmark = Benchmark(args)
    net = network(benchmark.channels, args.width).to(args.device, memory_format=torch.channels_last)
    if args.net and args.net.exists():
        net.load_state_dict(torch.load(args.net, weights_only=True))
    else:
        benchmark.train(net, args.epochs, 5e-3, lambda net, images: net(images))
        if args.net:
            torch.save(net.state_dict(), args.net)
    net.eval()
    benchmark.report("none: ReLU", None, benchmark.accuracy(net, lambda net, images: net(images)))
    for quantile in (None, 0.99, 0.999):
        for steps in args.timesteps:
            converted = convert(net, timesteps=steps, calibrate=benchmark.calibration, quantile=quantile)
            accuracy = benchmark.accuracy(converted, over(steps))
            benchmark.report(f"models.convert, quantile={quantile}", steps, accuracy)
    from spikingjelly.activation_based import ann2snn

    for name, settings in SPIKINGJELLY.items():
        recipe = ann2snn.RateCodingRecipe(benchmark.calibration, **settings)
        theirs = ann2snn.Converter(recipe).convert(copy.deepcopy(net))
        for steps in args.timesteps:
            benchmark.report(name, steps, benchmark.accuracy(theirs, of_spikingjelly(steps)))
    for steps in args.tuning_timesteps:
        tuned = convert(net, noisy_neuron, steps, calibrate=benchmark.calibration)
        benchmark.report("models.convert, noisy", steps, benchmark.accuracy(tuned, over(steps)))
        benchmark.train(tuned, args.tuning_epochs, 2e-3, over(steps))
        benchmark.report("models.convert, noisy, fine-tuned", steps, benchmark.accuracy(tuned, over(steps)))


if __name__ == "__main__":
    main()
