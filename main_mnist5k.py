"""Train a spiking network on 5,000 MNIST digits (3,600 train, 400 validate, 1,000 test); see --help and configs/."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "epochs": 20, "minibatch": 50, "crop_padding": 2}

if __name__ == "__main__":
    train(DATASETS["mnist5k"], DEFAULTS)
