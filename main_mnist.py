"""Train a spiking network on MNIST; see --help."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "epochs": 20, "crop_padding": 2}

if __name__ == "__main__":
    train(DATASETS["mnist"], DEFAULTS)
