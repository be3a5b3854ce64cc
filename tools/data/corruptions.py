"""A user's folder of corrupted test images in the format of CIFAR-10-C."""

from pathlib import Path

import numpy as np
import torch

from tools.errors import UserError
from tools.io.cache import stamp
from tools.io.npy import open_npy

from .images import LabelledImages

LABELS = "labels.npy"
SEVERITIES = (1, 2, 3, 4, 5)


class CorruptionFolder:
    """One file for each corruption, uint8 [5 N, H, W, C]: N test images at severity 1, then at 2, up to 5.

    Args:
        folder: holds `<corruption>.npy` files and `labels.npy`, [5 N] or [N], with labels from 0 to num_classes - 1.
        in_shape: (C, H, W) that the images must have.

    Raises:
        OSError: if the folder, the labels or all corruptions are missing, or a file cannot be opened.
        UserError: naming the file, if it has another format.

    Note:
        Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
        ICLR 2019; the files are at https://zenodo.org/records/2535967. The labels are those of the folder, as its
        images need not be in the order of the test part.
    """

    def __init__(self, folder: str | Path, in_shape: tuple[int, int, int], num_classes: int):
        self.folder, self.in_shape = Path(folder), tuple(in_shape)
        self.names = sorted(path.stem for path in self.folder.glob("[!.]*.npy") if path.name != LABELS)
        if not self.names or not (self.folder / LABELS).exists():
            raise FileNotFoundError(f"{self.folder.resolve()} needs {LABELS} and a .npy file for each corruption")
        labels = open_npy(self.folder / LABELS)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{self.folder / LABELS} must be integers [N], got {labels.dtype} {list(labels.shape)}")
        self.files = {name: self._open(name) for name in self.names}
        counts = {name: len(images) for name, images in self.files.items()}
        count = counts[self.names[0]]
        is_whole = count > 0 and count % len(SEVERITIES) == 0 and set(counts.values()) == {count}
        if not is_whole or len(labels) not in (count, count // len(SEVERITIES)):
            sizes = ", ".join(f"{name} {size}" for name, size in {**counts, LABELS: len(labels)}.items())
            raise UserError(
                f"{self.folder}: files must have equally many images, at {len(SEVERITIES)} severities: {sizes}"
            )
        self.count = count // len(SEVERITIES)
        self.labels = torch.from_numpy(labels[: self.count].astype(np.int64))
        if len(labels) > self.count and (labels.reshape(len(SEVERITIES), -1) != labels[: self.count]).any():
            raise UserError(f"{self.folder / LABELS} differs between severities")
        if self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise UserError(f"{self.folder / LABELS} has labels outside 0 to {num_classes - 1}")

    def _open(self, name: str) -> np.ndarray:
        path, (channels, height, width) = self.folder / f"{name}.npy", self.in_shape
        images = open_npy(path)
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            wanted = f"uint8 [N, {height}, {width}, {channels}]"
            raise UserError(f"{path} must be {wanted}, got {images.dtype} {list(images.shape)}")
        return images

    def stamps(self) -> list[str]:
        """A text for each file, which changes when the file does (`tools.io.cache.stamp`)."""
        return [stamp(self.folder / f"{name}.npy") for name in self.names] + [stamp(self.folder / LABELS)]

    def part(self, name: str, severity: int) -> LabelledImages:
        """The images of a corruption at a severity from 1 to 5."""
        images = self.files[name][(severity - 1) * self.count : severity * self.count]
        return LabelledImages(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), self.labels)
