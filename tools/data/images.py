"""Labelled images held as one uint8 tensor, and the batches made of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .batches import Batch, Batches


@dataclasses.dataclass
class LabelledImages:
    """images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor) -> "LabelledImages":
        """The images with these indices, in this order."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def batches(self, batch_size: int, device: torch.device, **options: Any) -> "ImageBatches":
        """Batches of these images; see `Batches` for the options."""
        return ImageBatches(self, batch_size, device, **options)


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int, least: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the indices of samples into two sorted tensors, the second with a fraction of each class.

    Args:
        labels: int64 [N].
        fraction: share of the second part in [0, 1], rounded to whole samples of each class.
        seed: of the choice; all versions make the same one.
        least: samples of each class in the second part, however few it has, but for one in the first.
    """
    random = np.random.RandomState(seed)  # the one generator whose numbers no version will change
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.from_numpy(random.permutation(len(members)))]
        count = max(round(fraction * len(members)), min(least, len(members) - 1))
        second[members[:count]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()


@dataclasses.dataclass(eq=False)
class ImageBatches(Batches):
    """Batches of float images in [0, 1], with their labels, of `LabelledImages`, which move to the device once.

    `augment`: (images uint8 on the device, labels) -> images float32 in [0, 1].
    """

    mix: Callable[[torch.Tensor, torch.Tensor], Batch] | None = None  # then applied to images and labels

    def __post_init__(self):
        super().__post_init__()
        self.data = LabelledImages(self.data.images.to(self.device), self.data.labels.to(self.device))

    def _batch(self, chosen: torch.Tensor) -> Batch:
        part = self.data.subset(chosen.to(self.device))
        return self._finished(part.images, part.labels)

    def _finished(self, pixels: torch.Tensor, labels: torch.Tensor) -> Batch:
        images = self.augment(pixels, labels) if self.augment else pixels.float() / 255
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        return images.contiguous(memory_format=self.memory_format), labels
