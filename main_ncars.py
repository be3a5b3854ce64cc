"""Train a spiking network on N-CARS (120x100, cars or background); see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.5, "timestep": 10, "epochs": 30, "minibatch": 64}

if __name__ == "__main__":
    train(DATASETS["ncars"], DEFAULTS)
