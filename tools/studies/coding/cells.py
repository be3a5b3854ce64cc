"""Cells whose truth is known: a filtered movie drives them, and trials differ only by their noise."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import expit

from models import Gaussian, NoiseLaw, NoisyLIF, noise_generator

from .movie import DEPTH, FRAME_S, digit_movie, stacked

CELLS = 10


def population(digits: torch.Tensor, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A movie of moving digits [T, H, W], and what the receptive fields of cells see of it, of variance 1: [T, N]."""
    random = np.random.RandomState(seed)
    movie = digit_movie(digits, frames, random)
    drive = filtered(movie, receptive_fields(CELLS, movie.shape[1:], random))
    return movie, drive / drive.std(0)


def receptive_fields(cells: int, size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    r"""Random receptive fields, separable in space and time.

    .. math::
        k(t, x) = \left(\frac{t}{\tau} - \frac{t^2}{2 \tau^2}\right) e^{-t/\tau}
        \; e^{-|R x|^2} \cos(\omega (R x)_1 + \phi)

    Oriented (Gabor) in space with random place, orientation R, width, frequency and phase; biphasic in time with
    tau of 10 to 25 ms, where t = 0 is one frame after the current one.

    The current frame is last, and each field has norm 1: float32 [cells, DEPTH, H, W] for a size (H, W) in pixels.

    Note:
        Jones and Palmer, Journal of Neurophysiology 58, 1987, for Gabor functions; Adelson and Bergen, JOSA A 2, 1985,
        for biphasic responses in time, here of second order.
    """
    height, width = size
    column = (cells, 1, 1, 1)
    tau = random.uniform(0.010, 0.025, column)
    t = FRAME_S * np.arange(DEPTH, 0, -1)[:, None, None] / tau
    y0, x0 = random.uniform(0.25, 0.75, column) * height, random.uniform(0.25, 0.75, column) * width
    angle, phase = random.uniform(0, np.pi, column), random.uniform(0, 2 * np.pi, column)
    spread, wavelength = random.uniform(0.12, 0.25, column) * height, random.uniform(0.4, 0.8, column) * height
    y, x = np.arange(height)[:, None] + 0.5 - y0, np.arange(width) + 0.5 - x0
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    envelope = np.exp(-(along**2 + across**2) / (2 * spread**2))
    fields = (t - t**2 / 2) * np.exp(-t) * envelope * np.cos(2 * np.pi * along / wavelength + phase)
    return (fields / np.sqrt((fields**2).sum((1, 2, 3), keepdims=True))).astype(np.float32)


def filtered(movie: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """What receptive fields [N, DEPTH, H, W] see of a movie [T, H, W]: float32 [T, N]."""
    frames = stacked(movie, fields.shape[1]).flatten(1)
    return (frames @ torch.from_numpy(fields).flatten(1).T).numpy()


@dataclasses.dataclass
class LNCells:
    r"""Linear-nonlinear cells: the probability of a spike depends on what the receptive field sees, and nothing else.

    .. math::
        p(t) = \sigma(g\, d(t) + b)

    with the drive d of variance 1; counts are Bernoulli(p) or Poisson(p), independent in time and between trials.

    Note:
        Chichilnisky, "A simple white noise analysis of neuronal light responses", Network 12, 2001.
    """

    drive: np.ndarray  # d, [T, N]
    gain: float = 1.5  # g
    bias: float = -2.5  # b: sigma(b) is the probability without any drive
    poisson: bool = False  # counts are Poisson

    def rates(self) -> np.ndarray:
        """The expected count of each bin, exactly: [T, N]."""
        return expit(self.gain * self.drive.astype(float) + self.bias)

    def sample(self, trials: int, seed: int) -> np.ndarray:
        """Counts of fresh trials: uint8 [R, T, N]."""
        random, p = np.random.default_rng(seed), self.rates()
        size = (trials, *p.shape)
        counts = random.poisson(p, size) if self.poisson else random.random(size) < p
        return counts.astype(np.uint8)


@dataclasses.dataclass
class LIFCells:
    r"""Noisy leaky integrate-and-fire cells: `NoisyLIF` driven by what the receptive field sees.

    .. math::
        x(t) = g\, d(t) + b, \quad u \leftarrow \beta u + (1 - \beta) x(t) - \epsilon_1

    with threshold 1, and noise of the membrane and of the threshold; `NoisyLIF` has the equations in full.
    """

    drive: np.ndarray  # d, [T, N]
    gain: float = 0.6  # g, in thresholds
    bias: float = 0.3  # b, in thresholds
    noise: NoiseLaw = Gaussian(0.25)
    decay: float = 0.6  # beta, per frame
    placement: str = "both"  # of the noise

    def rates(self, trials: int = 4000, seed: int = 0) -> np.ndarray:
        """Probability of a spike in each bin, estimated by trials: [T, N]."""
        return self.sample(trials, seed).mean(0)

    def sample(self, trials: int, seed: int) -> np.ndarray:
        """Spikes of fresh trials: uint8 [R, T, N]."""
        current = self.gain * torch.from_numpy(self.drive).float() + self.bias
        neuron = NoisyLIF(self.noise, decay=self.decay, placement=self.placement, decay_input=True)
        with noise_generator(torch.Generator().manual_seed(seed)):
            return in_parts(neuron, current[:, None], trials, most=250)


@torch.no_grad()
def in_parts(
    respond: Callable[[torch.Tensor], torch.Tensor], stimulus: torch.Tensor, trials: int, most: int
) -> np.ndarray:
    """Spikes uint8 [R, T, N] of so many trials with the same stimulus [T, 1, ...].

    Args:
        respond: [T, B, ...] -> spikes [T, B, N].
        most: trials at once, as memory is limited.
    """
    parts = []
    for done in range(0, trials, most):
        repeated = stimulus.expand(-1, min(most, trials - done), *stimulus.shape[2:]).contiguous()
        parts.append(respond(repeated).transpose(0, 1).to(torch.uint8).numpy())
    return np.concatenate(parts)
