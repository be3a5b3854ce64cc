"""Train a recurrent spiking network on the Heidelberg spoken digits (SHD), 700 channels of a cochlea; see --help.

With --demo, on chirps that are made here: nothing to download.
"""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {
    "model": "rsnn",
    "tau": 1.05,
    "frames_by": "duration",
    "frame_ms": 10.0,
    "frame_values": "count",
    "epochs": 30,
    "minibatch": 64,
}

if __name__ == "__main__":
    train(DATASETS["shd"], DEFAULTS)
