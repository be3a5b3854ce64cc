"""Test a network that main_ncars.py trained, clean or perturbed; see --help."""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["ncars"], other_datasets=DATASETS)
