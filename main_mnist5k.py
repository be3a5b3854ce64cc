"""Train a spiking network on mnist5k: 5,000 real MNIST digits that need no download.

The split is fixed: 3,600 images to train, 400 to choose the best epoch, 1,000 to test.
`python main_mnist5k.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "epochs": 20, "minibatch": 50, "crop_padding": 2}

if __name__ == "__main__":
    train(DATASETS["mnist5k"], DEFAULTS)
