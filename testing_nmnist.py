"""Test a network that main_nmnist.py trained: clean, or against the strength of a perturbation of its events.

`python testing_nmnist.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["nmnist"], other_datasets=DATASETS)
