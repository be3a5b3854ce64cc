"""Noise as a regulariser: generalisation, sharpness, few images, learnt scales (docs/regularisation.md)."""

from dataset_utils import DATASETS
from tools.cli import study


def chosen(arguments):
    from tools.studies.regularisation.experiments import experiments  # needs SciPy; --help does not
    from tools.studies.regularisation.runs import Data

    dataset = DATASETS["mnist5k"]
    return experiments(Data.of(dataset.load(), dataset.mean, dataset.std))


if __name__ == "__main__":
    study("regularisation", __doc__, chosen)
