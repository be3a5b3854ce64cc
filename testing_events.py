"""Test a network that main_events.py trained on your own recordings, clean or perturbed; see --help."""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["events"], other_datasets=DATASETS)
