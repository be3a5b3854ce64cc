"""Train a spiking network on N-MNIST (34x34, two polarities); see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "timestep": 10, "epochs": 20, "minibatch": 32}

if __name__ == "__main__":
    train(DATASETS["nmnist"], DEFAULTS)
