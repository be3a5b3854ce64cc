"""Noise as regulariser: generalisation, sharpness, few training images, and scales that are learnt.

docs/regularisation.md has the results. `python main_regularisation.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import study


def chosen(arguments):
    from tools.studies.regularisation.experiments import experiments  # needs SciPy, which --help does without

    return experiments(DATASETS["mnist5k"])


if __name__ == "__main__":
    study("regularisation", "Noise as regulariser, on digits that need no download.", chosen)
