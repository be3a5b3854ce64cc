"""Movies, and simulated cells that a filtered movie drives; trials differ only by noise."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit

from models import Gaussian, NoiseLaw, NoisyLIF, noise_generator
from tools.data.events import motions

CELLS = 10
FRAME_S = motions.STEP_US / 1e6  # seconds from one frame to the next
DEPTH = 8  # frames that receptive fields and networks see at once, the current one last
_POOLING = 3  # pixels of the rendered scene per pixel of the movie, in each direction


def population(digits: torch.Tensor, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A movie of moving digits [T, H, W], and its drive to cells with receptive fields, of variance 1: [T, N]."""
    random = np.random.RandomState(seed)
    movie = digit_movie(digits, frames, random)
    drive = filtered(movie, receptive_fields(CELLS, movie.shape[1:], random))
    return movie, drive / drive.std(0)


def digit_movie(digits: torch.Tensor, frames: int, random: np.random.RandomState) -> np.ndarray:
    """Moving real digits: scenes of 0.5 s, each with a random digit, motion, size and contrast.

    Pixels are the logarithm of the light on a torus (see `tools.data.events.motions`), of mean 0 and variance 1.
    Shape: digits uint8 [N, 28, 28] -> float32 [frames, 16, 16].
    """
    per_scene = motions.STEPS + 1
    scenes = -(-frames // per_scene)
    labels = random.randint(len(motions.MOTIONS), size=scenes)
    masks = digits[torch.from_numpy(random.randint(len(digits), size=scenes))].float() / 255
    contrasts = random.uniform(1.0, 1.8, scenes) * random.choice([-1, 1], scenes)
    paths = motions.trajectories(labels, random)
    light = motions.render(masks, paths, torch.from_numpy(contrasts).float())  # [scenes, frames, H, W]
    movie = F.avg_pool2d(light, _POOLING).flatten(0, 1)[:frames].numpy()
    return ((movie - movie.mean()) / movie.std()).astype(np.float32)


def stacked(movie: np.ndarray, depth: int) -> torch.Tensor:
    """The latest `depth` frames at each time, the current one last, 0 before the first: float32 [T, depth, H, W]."""
    frames = torch.as_tensor(movie, dtype=torch.float32)
    padded = torch.cat([frames.new_zeros(depth - 1, *frames.shape[1:]), frames])
    return padded.unfold(0, depth, 1).permute(0, 3, 1, 2)


def receptive_fields(cells: int, size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    r"""Random receptive fields, separable in space and time.

    .. math::
        k(t, x) = \left(\frac{t}{\tau} - \frac{t^2}{2 \tau^2}\right) e^{-t/\tau}
        \; e^{-|R x|^2} \cos(\omega (R x)_1 + \phi)

    In space, Gabor functions of random place, orientation R, width, frequency and phase; in time, biphasic with tau of
    10 to 25 ms, where t = 0 is one frame after the current one, which is last. Each field has norm 1.
    Shape: size (H, W) -> float32 [cells, DEPTH, H, W].
    Note: Jones and Palmer, Journal of Neurophysiology 58, 1987, for Gabor functions; Adelson and Bergen, JOSA A 2,
    1985, for biphasic responses in time, here of second order.
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
    """Responses of receptive fields [N, DEPTH, H, W] to a movie [T, H, W]: float32 [T, N]."""
    frames = stacked(movie, fields.shape[1]).flatten(1)
    return (frames @ torch.from_numpy(fields).flatten(1).T).numpy()


@dataclasses.dataclass
class LNCells:
    r"""Linear-nonlinear cells: the probability of a spike depends on the drive of the same bin alone.

    .. math::
        p(t) = \sigma(g\, d(t) + b)

    Counts are Bernoulli(p) or Poisson(p), independent in time and between trials.
    Note: Chichilnisky, "A simple white noise analysis of neuronal light responses", Network 12, 2001.
    """

    drive: np.ndarray  # d, [T, N], of variance 1
    gain: float = 1.5  # g
    bias: float = -2.5  # b: sigma(b) is the probability without drive
    poisson: bool = False

    def rates(self) -> np.ndarray:
        """The exact expected count of each bin: [T, N]."""
        return expit(self.gain * self.drive.astype(float) + self.bias)

    def sample(self, trials: int, seed: int) -> np.ndarray:
        """Counts of fresh trials: uint8 [R, T, N]."""
        random, p = np.random.default_rng(seed), self.rates()
        size = (trials, *p.shape)
        counts = random.poisson(p, size) if self.poisson else random.random(size) < p
        return counts.astype(np.uint8)


@dataclasses.dataclass
class LIFCells:
    r"""Noisy leaky integrate-and-fire cells: `NoisyLIF` with the input :math:`x(t) = g\, d(t) + b`."""

    drive: np.ndarray  # d, [T, N], of variance 1
    gain: float = 0.6  # g, in thresholds
    bias: float = 0.3  # b, in thresholds
    noise: NoiseLaw = Gaussian(0.25)

    def sample(self, trials: int, seed: int) -> np.ndarray:
        """Spikes of fresh trials: uint8 [R, T, N]."""
        current = self.gain * torch.from_numpy(self.drive).float() + self.bias
        neuron = NoisyLIF(self.noise, decay=0.6, decay_input=True)
        with noise_generator(torch.Generator().manual_seed(seed)):
            return in_parts(neuron, current[:, None], trials, most=250)


@torch.no_grad()
def in_parts(respond: Callable, stimulus: torch.Tensor, trials: int, most: int) -> np.ndarray:
    """Spikes uint8 [R, T, N] in trials of the same stimulus, at most `most` at once to save memory.

    Shape: respond: [T, B, ...] -> [T, B, N]; stimulus [T, 1, ...].
    """
    parts = []
    for done in range(0, trials, most):
        repeated = stimulus.expand(-1, min(most, trials - done), *stimulus.shape[2:]).contiguous()
        parts.append(respond(repeated).transpose(0, 1).to(torch.uint8).numpy())
    return np.concatenate(parts)
