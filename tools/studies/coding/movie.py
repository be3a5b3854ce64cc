"""Movies that drive cells, with mean 0 and variance 1 over all frames and pixels."""

import numpy as np
import torch
import torch.nn.functional as F

from tools.data.events import motions

FRAME_S = motions.STEP_US / 1e6  # seconds from one frame to the next
DEPTH = 8  # frames that receptive fields and networks see at once, the current one last
_POOLING = 3  # pixels of the rendered scene that make one of the movie


def digit_movie(digits: torch.Tensor, frames: int, random: np.random.RandomState) -> np.ndarray:
    """Moving real digits, in scenes of 0.5 s with a random digit, motion, size and contrast each.

    Args:
        digits: uint8 [N, 28, 28].
        frames: T.
        random: generator of all choices.

    Returns:
        float32 [T, 16, 16], the logarithm of the light on a torus; see `tools.data.events.motions`.
    """
    per_scene = motions.STEPS + 1
    scenes = -(-frames // per_scene)
    labels = random.randint(len(motions.MOTIONS), size=scenes)
    masks = digits[torch.from_numpy(random.randint(len(digits), size=scenes))].float() / 255
    contrasts = random.uniform(1.0, 1.8, scenes) * random.choice([-1, 1], scenes)
    paths = motions.trajectories(labels, random)
    light = motions.render(masks, paths, torch.from_numpy(contrasts).float())  # [scenes, frames, H, W]
    return _standardised(F.avg_pool2d(light, _POOLING).flatten(0, 1)[:frames].numpy())


def natural_noise(frames: int, size: int, random: np.random.RandomState, corner_s: float = 0.1) -> np.ndarray:
    r"""Gaussian noise with the second-order statistics of natural scenes.

    .. math::
        S(k, f) \propto \frac{1}{k^2} \, \frac{1}{1 + (f / f_c)^2}

    for spatial frequency k (cycles per image, not below 1) and temporal frequency f.

    Args:
        frames: T.
        size: H = W in pixels.
        random: generator of the noise.
        corner_s: 1 / f_c in seconds.

    Returns:
        float32 [T, size, size].

    Note:
        Field, JOSA A 4, 1987, for space; Dong and Atick, Network 6, 1995, for time, here as a separable spectrum.
    """
    f = np.fft.fftfreq(frames, FRAME_S)[:, None, None]
    k = np.fft.fftfreq(size, 1 / size)
    squared = np.maximum(k[:, None] ** 2 + k**2, 1.0)
    amplitude = np.sqrt(1 / squared / (1 + (f * corner_s) ** 2))
    white = np.fft.fftn(random.standard_normal((frames, size, size)))
    return _standardised(np.fft.ifftn(white * amplitude).real)


def stacked(movie: np.ndarray, depth: int) -> torch.Tensor:
    """The latest `depth` frames at each time, the current one last, 0 before the first: float32 [T, depth, H, W]."""
    frames = torch.as_tensor(np.asarray(movie), dtype=torch.float32)
    padded = torch.cat([frames.new_zeros(depth - 1, *frames.shape[1:]), frames])
    return padded.unfold(0, depth, 1).permute(0, 3, 1, 2)


def _standardised(movie: np.ndarray) -> np.ndarray:
    return ((movie - movie.mean()) / movie.std()).astype(np.float32)
