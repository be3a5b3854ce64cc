"""Train a spiking network on DVS-Gesture (frames of 48x48, two polarities); see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vgg", "timestep": 10, "epochs": 210, "minibatch": 32, "lr": 3e-4, "sigma": 0.2}

if __name__ == "__main__":
    train(DATASETS["dvsgesture"], DEFAULTS)
