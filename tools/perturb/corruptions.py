"""A folder of corrupted test images in the format of CIFAR-10-C, which a user may have."""

from pathlib import Path

import numpy as np
import torch

from tools.data.images import LabelledImages
from tools.io.cache import stamp
from tools.io.npy import open_npy

LABELS = "labels.npy"
SEVERITIES = 5


class CorruptionFolder:
    """One file for each corruption, uint8 [5 N, H, W, C]: N test images at severity 1, then at 2, up to 5.

    Args:
        folder: holds `<corruption>.npy` files and `labels.npy`, [5 N] or [N].
        in_shape: (C, H, W) of the images that are expected.
        num_classes: labels are below.

    Raises:
        FileNotFoundError: if there is no such folder, no labels, or no corruption.
        OSError: for a file that cannot be opened.
        ValueError: for a file of another format, naming it.

    Note:
        Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
        ICLR 2019; the files are at https://zenodo.org/records/2535967. The labels are the folder's own, as its images
        need not be in the order of the test part.
    """

    def __init__(self, folder, in_shape, num_classes):
        self.folder, self.in_shape = Path(folder), tuple(in_shape)
        self.names = sorted(path.stem for path in self.folder.glob("*.npy") if path.name != LABELS)
        if not self.names or not (self.folder / LABELS).exists():
            raise FileNotFoundError(f"{self.folder.resolve()} needs {LABELS} and a .npy file for each corruption")
        labels = open_npy(self.folder / LABELS)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{self.folder / LABELS} must be integers [N], got {labels.dtype} {list(labels.shape)}")
        self.files = {name: self._open(name) for name in self.names}
        (count, *others) = {len(images) for images in self.files.values()}
        if others or not count or count % SEVERITIES or len(labels) not in (count, count // SEVERITIES):
            sizes = ", ".join(f"{name} {len(images)}" for name, images in self.files.items())
            raise ValueError(
                f"{self.folder}: files must have equally many images, at 5 severities: {sizes}, {LABELS} {len(labels)}"
            )
        self.count = count // SEVERITIES
        self.labels = torch.from_numpy(labels[: self.count].astype(np.int64))
        if len(labels) > self.count and (labels.reshape(SEVERITIES, -1) != labels[: self.count]).any():
            raise ValueError(f"{self.folder / LABELS} differs between severities")
        if self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise ValueError(f"{self.folder / LABELS} has labels outside of 0 to {num_classes - 1}")

    def _open(self, name):
        path = self.folder / f"{name}.npy"
        images = open_npy(path)
        channels, height, width = self.in_shape
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            wanted = f"uint8 [N, {height}, {width}, {channels}]"
            raise ValueError(f"{path} must be {wanted}, got {images.dtype} {list(images.shape)}")
        return images

    def stamps(self):
        """Text for each file that changes when the file does."""
        return [stamp(self.folder / f"{name}.npy") for name in self.names] + [stamp(self.folder / LABELS)]

    def part(self, name, severity):
        """The images of a corruption at a severity from 1 to 5, as `LabelledImages`."""
        images = self.files[name][(severity - 1) * self.count : severity * self.count]
        return LabelledImages(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), self.labels)
