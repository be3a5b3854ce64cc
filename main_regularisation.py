"""Noise as regulariser: generalisation, sharpness, few training images, and scales that are learnt.

docs/regularisation.md has the results. `python main_regularisation.py --help` lists all settings.
"""

from dataset_utils import DATASETS
from tools.cli import study


def chosen(arguments):
    # These need SciPy and Matplotlib, which --help does without.
    from tools.studies.regularisation.experiments import experiments
    from tools.studies.regularisation.runs import Data

    dataset = DATASETS["mnist5k"]
    return experiments(Data.of(dataset.load(), dataset.mean, dataset.std))


if __name__ == "__main__":
    study("regularisation", "Noise as regulariser, on digits that need no download.", chosen)
