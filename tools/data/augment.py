"""Augmentation of whole batches on their device, drawn anew for each image of a batch."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F


def random_crop(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Pad each image with zeros and crop it to its size at a random place. Shape: [B, C, H, W] -> the same.

    Note: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)  # [B, H]
    columns = left + torch.arange(width, device=images.device)  # [B, W]
    which = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around the channel axis puts it last: [B, H, W, C].
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Mirror each image left and right with probability 1/2, if it is `allowed`, bool [B]; None: all are.

    Shape: [B, ..., H, W] -> the same.
    """
    chosen = torch.rand(len(images), device=images.device) < 0.5
    if allowed is not None:
        chosen &= allowed
    chosen = chosen.view([len(images)] + [1] * (images.dim() - 1))
    return torch.where(chosen, images.flip(-1), images)


def cutout(images: torch.Tensor, side: int) -> torch.Tensor:
    """Set a square of `side` pixels to zero, with its centre anywhere in the image: it may extend beyond the edge.

    Shape: [B, C, H, W] -> the same.
    Note: DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.
    """
    count, _, height, width = images.shape

    def inside(size: int) -> torch.Tensor:  # [B, size]
        start = torch.randint(0, size, (count, 1), device=images.device) - side // 2
        position = torch.arange(size, device=images.device)
        return (position >= start) & (position < start + side)

    hole = inside(height)[:, None, :, None] & inside(width)[:, None, None, :]
    return images.masked_fill(hole, 0)


@dataclasses.dataclass
class Augment:
    """The augmentation of training images: crop, flip, AutoAugment, cutout, in this order.

    Shape: uint8 [B, C, H, W] -> float32 in [0, 1], [B, C, H, W].
    """

    crop_padding: int = 0  # pixels around the image before a random crop; 0: no crop
    flip: bool = False
    cutout_side: int = 0  # in pixels; 0: no cutout
    autoaugment: bool = False  # torchvision's, with the policy for CIFAR-10

    def __post_init__(self):
        if self.autoaugment:
            from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # slow to import

            self.policy = AutoAugment(AutoAugmentPolicy.CIFAR10)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if self.crop_padding:
            images = random_crop(images, self.crop_padding)
        if self.flip:
            images = random_flip(images)
        if self.autoaugment:  # image by image, because torchvision draws once per call
            images = torch.stack([self.policy(image) for image in images])
        images = images.float() / 255
        if self.cutout_side:
            images = cutout(images, self.cutout_side)
        return images


def mixing(mixup: float, cutmix: float, num_classes: int) -> Callable | None:
    """torchvision's MixUp and CutMix with these alphas, chosen anew for each batch; None if both are 0.

    Shape: (float images [B, C, H, W], int64 labels [B]) -> the same, but probabilities [B, K] for labels.
    Note: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    if not (mixup or cutmix):
        return None
    from torchvision.transforms import v2  # slow to import

    chosen = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
    if cutmix:
        chosen.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
