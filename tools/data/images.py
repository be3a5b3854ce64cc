"""Labelled images held as one uint8 tensor, and the batches made of them."""

import dataclasses

import numpy as np
import torch

from .batches import Batches


@dataclasses.dataclass
class LabelledImages:
    """images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        return LabelledImages(self.images[indices], self.labels[indices])

    def batches(self, batch_size, device, **options):
        return ImageBatches(self, batch_size, device, **options)


def stratified_split(labels, fraction, seed):
    """Split indices so that each class gives the same share.

    Args:
        labels: int64 [N].
        fraction: share of each class in the second part, in (0, 1).
        seed: fixes the split.

    Returns:
        Two sorted index tensors.
    """
    random = np.random.RandomState(seed)  # the one generator whose numbers no version will change
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.from_numpy(random.permutation(len(members)))]
        second[members[: round(fraction * len(members))]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()


class ImageBatches(Batches):
    """Batches of float images in [0, 1], with their labels.

    Args:
        data: `LabelledImages`; on CUDA, the whole uint8 tensor moves there, once.
        augment: function of a uint8 batch on the device, and its labels, to a float batch; or None.
        batch_size, device, shuffle, memory_format, limit: see `Batches`.
    """

    def __init__(self, data, batch_size, device, **options):
        super().__init__(LabelledImages(data.images.to(device), data.labels.to(device)), batch_size, device, **options)

    def _batch(self, chosen):
        part = self.data.subset(chosen.to(self.device))
        images = self.augment(part.images, part.labels) if self.augment else part.images.float() / 255
        return images.contiguous(memory_format=self.memory_format), part.labels
