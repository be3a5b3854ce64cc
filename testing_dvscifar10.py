"""Test a network that main_dvscifar10.py trained: clean, or against the strength of a perturbation of its events.

`python testing_dvscifar10.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["dvscifar10"], other_datasets=DATASETS)
