"""Train a spiking network on motions: simulated event recordings of moving digits, which need no download.

`python main_motions.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.125, "timestep": 10, "epochs": 20, "minibatch": 50}

if __name__ == "__main__":
    train(DATASETS["motions"], DEFAULTS)
