"""Test a network that main_cifar100.py trained: clean, or against the strength of a perturbation.

`python testing_cifar100.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["cifar100"], other_datasets=DATASETS)
