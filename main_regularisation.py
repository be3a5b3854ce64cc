"""Noise as regulariser: generalisation, sharpness, few training images, and scales that are learnt.

`docs/regularisation.md` tells what comes out. `python main_regularisation.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import study
from tools.studies.regularisation.experiments import experiments


def chosen(arguments):
    return experiments(DATASETS["mnist5k"].load())


if __name__ == "__main__":
    study("regularisation", "Noise as regulariser, on digits that need no download.", chosen)
