"""Train a spiking network on your own event recordings, {train,test}/<class>/* in --data_root; see --help.

Files may be of any format that tools/data/events reads. Classes and the size of the sensor are found.
"""

from dataset_utils import DATASETS
from tools.cli import train

DEFAULTS = {"model": "vggwoap", "width": 0.25, "timestep": 10, "epochs": 30, "minibatch": 16}

if __name__ == "__main__":
    train(DATASETS["events"], DEFAULTS)
