"""Test a network that main_dvscifar10.py trained, clean or perturbed; see --help."""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["dvscifar10"], other_datasets=DATASETS)
