"""Train a spiking network on CIFAR-100; see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "sresnet18", "epochs": 300, "minibatch": 256, "crop_padding": 4, "flip": True}

if __name__ == "__main__":
    train(DATASETS["cifar100"], DEFAULTS)
