"""Test a network that main_images.py trained on your own images, clean, perturbed or attacked; see --help."""

from dataset_utils import DATASETS
from tools.cli import test

if __name__ == "__main__":
    test(DATASETS["images"], other_datasets=DATASETS)
