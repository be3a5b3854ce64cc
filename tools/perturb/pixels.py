"""Perturbations of raw pixels in [0, 1], before any normalisation. Pure functions, seeded.

The corruptions of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations", ICLR 2019) that need no extra data, with their definitions and severities for images of 32 pixels.

They draw on the device of `generator`, so that a CPU generator gives networks on any device the same draws.
Shape: images [B, C, H, W] -> the same, clamped to [0, 1].
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from tools.runtime.seeds import draw

from .perturbation import Perturbation, entry

PERTURBATIONS: dict[str, Perturbation] = {}
_drawn = partial(entry, PERTURBATIONS, "pixels")
_fixed = partial(entry, PERTURBATIONS, "pixels", is_random=False)
_scaled = partial(_fixed, neutral=1.0)


@_drawn(
    "add_gaussian", "gaussian_sigma", "standard deviation of added noise (pixel range 1)", (0.04, 0.06, 0.08, 0.09, 0.1)
)
def add_gaussian(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """x + n, n normal with standard deviation `sigma` (in units of the pixel range), per pixel and channel."""
    return (images + sigma * draw(torch.randn, images.shape, generator, images)).clamp(0, 1)


@_drawn("multi_gaussian", "gaussian_sigma", "standard deviation of multiplied noise", (0.06, 0.1, 0.12, 0.16, 0.2))
def multiply_gaussian(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """x (1 + n), n normal with standard deviation `sigma`, per pixel and channel ("speckle")."""
    return (images * (1 + sigma * draw(torch.randn, images.shape, generator, images))).clamp(0, 1)


@_drawn("shot", "photons", "photons of a white pixel", (500, 250, 100, 75, 50), neutral=None, lowest=1)
def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Poisson(x c) / c: a camera that counts c = `photons` on average in a white pixel."""
    counts = torch.poisson((images * photons).to(generator.device), generator=generator)
    return (counts.to(images.device) / photons).clamp(0, 1)


@_drawn("sp", "sp_alpha", "fraction of pixels set to black or white", (0.01, 0.02, 0.03, 0.05, 0.07), highest=1)
def salt_and_pepper(images: Tensor, alpha: float, generator: Generator) -> Tensor:
    """A fraction `alpha` of the pixels becomes black or white in all channels, with equal probability."""
    count, _, height, width = images.shape
    lot = draw(torch.rand, (count, 1, height, width), generator, images)
    images = torch.where(lot < alpha / 2, 0.0, images)
    return torch.where(lot > 1 - alpha / 2, 1.0, images).clamp(0, 1)


@_fixed("blur", "blur_sigma", "standard deviation of the blur (pixels)", (0.4, 0.6, 0.7, 0.8, 1.0))
def blur(images: Tensor, sigma: float, generator: Generator | None) -> Tensor:
    """Gaussian blur of standard deviation `sigma` in pixels, with mirrored edges."""
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    if sigma == 0:
        return images
    # The kernel ends at 4 sigma, or at the side of the image: a mirrored edge has no more pixels.
    size = 2 * min(int(np.ceil(4 * sigma)), min(images.shape[-2:]) - 1) + 1
    return gaussian_blur(images, size, sigma).clamp(0, 1)


@_scaled("contrast", "contrast_factor", "factor of contrast", (0.75, 0.5, 0.4, 0.3, 0.15))
def contrast(images: Tensor, factor: float, generator: Generator | None) -> Tensor:
    """m + factor (x - m), with the mean m of each channel of each image."""
    mean = images.mean((-2, -1), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


@_fixed("brightness", "brightness_delta", "added to the value (pixel range 1)", (0.05, 0.1, 0.15, 0.2, 0.3), highest=1)
def brightness(images: Tensor, delta: float, generator: Generator | None) -> Tensor:
    """V + delta in HSV, V being the largest channel of a pixel; hue and saturation stay, black becomes grey."""
    value = images.amax(-3, keepdim=True)
    raised = (value + delta).clamp(0, 1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised).clamp(0, 1)


@_fixed("jpeg", "jpeg_quality", "JPEG quality", (80, 65, 58, 50, 40), neutral=None, lowest=1, highest=95)
def jpeg(images: Tensor, quality: float, generator: Generator | None) -> Tensor:
    """Compress to JPEG of a quality from 1 to 95, and back."""

    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(quality))
        return Image.open(file)

    return _through_pillow(images, compressed)


@_scaled(
    "pixelate", "pixelate_factor", "size after shrinking, of the original", (0.95, 0.9, 0.85, 0.75, 0.65), highest=1
)
def pixelate(images: Tensor, factor: float, generator: Generator | None) -> Tensor:
    """Shrink the sides to `factor` of their size, averaging over boxes, and enlarge them again."""

    def coarse(image: Image.Image) -> Image.Image:
        width, height = image.size
        small = (max(1, int(width * factor)), max(1, int(height * factor)))
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _through_pillow(images, coarse)


def _through_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Apply a function of PIL images to each image, which has one channel or three, in 8 bits."""
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    pixels = (images * 255).round().to(torch.uint8).cpu()
    return torch.stack([pil_to_tensor(change(to_pil_image(image))) for image in pixels]).to(images) / 255
