"""Train a spiking network on Fashion-MNIST; see --help."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vgg", "width": 0.5, "epochs": 30, "crop_padding": 2, "flip": True}

if __name__ == "__main__":
    train(DATASETS["fashionmnist"], DEFAULTS)
