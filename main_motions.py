"""Train a spiking network on simulated event recordings of moving digits; see --help, and the recipes in configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.125, "timestep": 10, "epochs": 20, "minibatch": 50}

if __name__ == "__main__":
    train(DATASETS["motions"], DEFAULTS)
