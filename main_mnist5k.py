"""Train a spiking network on 5,000 MNIST digits that need no download; see --help, and the recipes in configs/.

3,600 train it, 400 choose the best epoch, and 1,000 test it, always the same ones.
"""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "epochs": 20, "minibatch": 50, "crop_padding": 2}

if __name__ == "__main__":
    train(DATASETS["mnist5k"], DEFAULTS)
