"""Perturbations of raw pixels in [0, 1], before any normalisation. Pure functions, seeded.

The corruptions of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations", ICLR 2019) that need no extra data, with their definitions and strengths for images of 32 pixels.

They draw on the device of `generator` and then move: a CPU generator gives every network on every
device the same draws. Shape: images [B, C, H, W] -> the same, clamped to [0, 1].
"""

import io

import numpy as np
import torch
import torchvision.transforms.functional as transforms
from PIL import Image


def draw(sampler, shape, generator, like):
    """Numbers from `sampler` (torch.rand or torch.randn), moved to the device and dtype of `like`."""
    return sampler(shape, generator=generator, device=generator.device).to(like.device, like.dtype)


def add_gaussian(images, sigma, generator):
    """x + n, n normal with standard deviation `sigma` (in units of the pixel range), per pixel and channel."""
    return (images + sigma * draw(torch.randn, images.shape, generator, images)).clamp(0, 1)


def multiply_gaussian(images, sigma, generator):
    """x (1 + n), n normal with standard deviation `sigma`, per pixel and channel ("speckle")."""
    return (images * (1 + sigma * draw(torch.randn, images.shape, generator, images))).clamp(0, 1)


def salt_and_pepper(images, alpha, generator):
    """A fraction `alpha` of the pixels, in all channels at once, becomes black or white, with equal chance."""
    count, _, height, width = images.shape
    lot = draw(torch.rand, (count, 1, height, width), generator, images)
    images = torch.where(lot < alpha / 2, 0.0, images)
    return torch.where(lot > 1 - alpha / 2, 1.0, images).clamp(0, 1)


def shot_noise(images, photons, generator):
    """Poisson(x c) / c, as of a camera that counts on average c photons in a white pixel. Args: photons: c."""
    counts = torch.poisson((images * photons).to(generator.device), generator=generator)
    return (counts.to(images.device) / photons).clamp(0, 1)


def blur(images, sigma, generator):
    """Gaussian blur of standard deviation `sigma` in pixels, cut off at 4 sigma; the edge is mirrored.

    A mirror shows one image's width at most: a wider blur is cut off there.
    """
    if sigma == 0:
        return images
    size = 2 * min(int(np.ceil(4 * sigma)), min(images.shape[-2:]) - 1) + 1
    return transforms.gaussian_blur(images, size, sigma).clamp(0, 1)


def contrast(images, factor, generator):
    """m + factor (x - m), with the mean m of each channel of each image."""
    mean = images.mean((-2, -1), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def brightness(images, delta, generator):
    """`delta` is added to the value of each pixel, the V of HSV and the largest of its channels.

    Hue and saturation stay, so that the channels are scaled by one factor; a black pixel becomes grey.
    """
    value = images.amax(-3, keepdim=True)
    raised = (value + delta).clamp(0, 1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised).clamp(0, 1)


def jpeg(images, quality, generator):
    """Compress to JPEG of a quality from 1 to 95, and back."""

    def compressed(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(quality))
        return Image.open(file)

    return _through_pillow(images, compressed)


def pixelate(images, factor, generator):
    """Shrink the sides to `factor` of their size, averaging over boxes, and enlarge again."""

    def coarse(image):
        width, height = image.size
        small = (max(1, int(width * factor)), max(1, int(height * factor)))
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _through_pillow(images, coarse)


def _through_pillow(images, change):
    """Images of 8 bits, of one channel or three, each changed by a function of PIL images."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = [
        np.asarray(change(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image))) for image in pixels
    ]
    return torch.from_numpy(np.stack(changed).reshape(pixels.shape)).permute(0, 3, 1, 2).to(images) / 255
