"""Train a spiking network on N-Caltech101 (240x180, 100 classes); see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vgg", "timestep": 10, "epochs": 100, "minibatch": 32}

if __name__ == "__main__":
    train(DATASETS["ncaltech101"], DEFAULTS)
