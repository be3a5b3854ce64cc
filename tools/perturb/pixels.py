"""Perturbations of raw pixels in [0, 1], before any normalisation. Pure functions, seeded.

The corruptions of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations", ICLR 2019) that need no extra data, with their definitions and severities for images of 32 pixels.

They draw on the device of `generator` and move the numbers: a CPU generator gives networks on any device the same
draws. Shape: images [B, C, H, W] -> the same, clamped to [0, 1].
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from .perturbation import Perturbation


def draw(sampler: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    """Numbers from `sampler` (torch.rand or torch.randn), on the device and in the dtype of `like`."""
    return sampler(shape, generator=generator, device=generator.device).to(like.device, like.dtype)


def add_gaussian(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """x + n, n normal with standard deviation `sigma` (in units of the pixel range), per pixel and channel."""
    return (images + sigma * draw(torch.randn, images.shape, generator, images)).clamp(0, 1)


def multiply_gaussian(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """x (1 + n), n normal with standard deviation `sigma`, per pixel and channel ("speckle")."""
    return (images * (1 + sigma * draw(torch.randn, images.shape, generator, images))).clamp(0, 1)


def salt_and_pepper(images: Tensor, alpha: float, generator: Generator) -> Tensor:
    """A fraction `alpha` of the pixels, in all channels at once, becomes black or white, with equal chance."""
    count, _, height, width = images.shape
    lot = draw(torch.rand, (count, 1, height, width), generator, images)
    images = torch.where(lot < alpha / 2, 0.0, images)
    return torch.where(lot > 1 - alpha / 2, 1.0, images).clamp(0, 1)


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Poisson(x c) / c: a camera that counts c = `photons` on average in a white pixel."""
    counts = torch.poisson((images * photons).to(generator.device), generator=generator)
    return (counts.to(images.device) / photons).clamp(0, 1)


def blur(images: Tensor, sigma: float, generator: Generator | None) -> Tensor:
    """Gaussian blur of standard deviation `sigma` in pixels, with mirrored edges.

    The kernel ends at 4 sigma, or at the image's width, beyond which a mirror shows nothing.
    """
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    if sigma == 0:
        return images
    size = 2 * min(int(np.ceil(4 * sigma)), min(images.shape[-2:]) - 1) + 1
    return gaussian_blur(images, size, sigma).clamp(0, 1)


def contrast(images: Tensor, factor: float, generator: Generator | None) -> Tensor:
    """m + factor (x - m), with the mean m of each channel of each image."""
    mean = images.mean((-2, -1), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def brightness(images: Tensor, delta: float, generator: Generator | None) -> Tensor:
    """V + delta for each pixel in HSV, V being the largest channel.

    Hue and saturation stay: all channels are scaled by one factor; a black pixel becomes grey.
    """
    value = images.amax(-3, keepdim=True)
    raised = (value + delta).clamp(0, 1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised).clamp(0, 1)


def jpeg(images: Tensor, quality: float, generator: Generator | None) -> Tensor:
    """Compress to JPEG of a quality from 1 to 95, and back."""

    def compressed(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(quality))
        return Image.open(file)

    return _through_pillow(images, compressed)


def pixelate(images: Tensor, factor: float, generator: Generator | None) -> Tensor:
    """Shrink the sides to `factor` of their size, averaging over boxes, and enlarge again."""

    def coarse(image):
        width, height = image.size
        small = (max(1, int(width * factor)), max(1, int(height * factor)))
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _through_pillow(images, coarse)


def _through_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Apply a function of PIL images to each image, in 8 bits; one channel or three."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = []
    for image in pixels:
        image = image.squeeze(-1) if image.shape[-1] == 1 else image
        changed.append(np.asarray(change(Image.fromarray(image))))
    return torch.from_numpy(np.stack(changed).reshape(pixels.shape)).permute(0, 3, 1, 2).to(images) / 255


_drawn = partial(Perturbation, "pixels")
_fixed = partial(Perturbation, "pixels", is_random=False)
PERTURBATIONS = {
    "add_gaussian": _drawn(
        add_gaussian,
        "gaussian_sigma",
        "standard deviation of added noise (pixel range 1)",
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "multi_gaussian": _drawn(
        multiply_gaussian, "gaussian_sigma", "standard deviation of multiplied noise", (0.06, 0.10, 0.12, 0.16, 0.20)
    ),
    "shot": _drawn(shot_noise, "photons", "photons of a white pixel", (500, 250, 100, 75, 50), neutral=None, lowest=1),
    "sp": _drawn(
        salt_and_pepper,
        "sp_alpha",
        "fraction of pixels set to black or white",
        (0.01, 0.02, 0.03, 0.05, 0.07),
        highest=1,
    ),
    "blur": _fixed(blur, "blur_sigma", "standard deviation of the blur (pixels)", (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": _fixed(contrast, "contrast_factor", "factor of contrast", (0.75, 0.5, 0.4, 0.3, 0.15), neutral=1.0),
    "brightness": _fixed(
        brightness, "brightness_delta", "added to the value (pixel range 1)", (0.05, 0.1, 0.15, 0.2, 0.3), highest=1
    ),
    "jpeg": _fixed(jpeg, "jpeg_quality", "JPEG quality", (80, 65, 58, 50, 40), neutral=None, lowest=1, highest=95),
    "pixelate": _fixed(
        pixelate,
        "pixelate_factor",
        "size after shrinking, of the original",
        (0.95, 0.9, 0.85, 0.75, 0.65),
        neutral=1.0,
        highest=1,
    ),
}
