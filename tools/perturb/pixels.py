"""Perturbations of raw pixels in [0, 1], before any normalisation. Pure functions, seeded.

They draw on the device of `generator` and then move: a CPU generator gives every network on every
device the same draws. Shape: images [B, C, H, W] -> the same, clamped to [0, 1].
"""

import torch


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
