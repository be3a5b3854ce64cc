"""Test a network that main_ncaltech101.py trained, clean or perturbed; see --help."""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["ncaltech101"], other_datasets=DATASETS)
