"""Train a spiking network on your own images, {train,test}/<class>/* in --data_root, of any size; see --help."""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "timestep": 4, "epochs": 30, "minibatch": 32}

if __name__ == "__main__":
    train(DATASETS["images"], DEFAULTS)
