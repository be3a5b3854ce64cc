"""Test a network that main_motions.py trained: clean, or against the strength of a perturbation of its events.

`python testing_motions.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["motions"], other_datasets=DATASETS)
