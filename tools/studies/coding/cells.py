"""Cells whose truth is known: a filtered movie drives them, and trials differ by their noise alone."""

import dataclasses

import numpy as np
import torch
from scipy.special import expit

from models import Gaussian, NoiseLaw, NoisyLIF, noise_generator

from .movie import DEPTH, FRAME_S, stacked

TRIALS_AT_ONCE = 250


def receptive_fields(cells, size, random):
    r"""Random receptive fields, separable in space and time.

    .. math::
        k(t, x) = \left(\frac{t}{\tau} - \frac{t^2}{2 \tau^2}\right) e^{-t/\tau}
        \; e^{-|R x|^2} \cos(\omega (R x)_1 + \phi)

    Oriented (Gabor) in space with random place, orientation R, width, frequency and phase; biphasic in time with
    tau of 10 to 25 ms, t = 0 for the present frame plus one.

    Args:
        cells: N.
        size: (H, W) in pixels.
        random: numpy RandomState.

    Returns:
        float32 [N, DEPTH, H, W], each of norm 1; the present frame is last.

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


def filtered(movie, fields):
    """What fields [N, DEPTH, H, W] see of a movie [T, H, W]: float32 [T, N]."""
    frames = stacked(movie, fields.shape[1]).flatten(1)
    return (frames @ torch.from_numpy(fields).flatten(1).T).numpy()


@dataclasses.dataclass
class LNCells:
    r"""Linear-nonlinear cells: the probability of a spike is a function of what the receptive field sees, and no more.

    .. math::
        p(t) = \sigma(g\, d(t) + b)

    with the drive d of variance 1; counts are Bernoulli(p) or Poisson(p), independent in time and between trials.

    Args:
        drive: [T, N].
        gain: g.
        bias: b; sigma(b) is the probability without any drive.
        poisson: counts are Poisson.

    Note:
        Chichilnisky, "A simple white noise analysis of neuronal light responses", Network 12, 2001.
    """

    drive: np.ndarray
    gain: float = 1.5
    bias: float = -2.5
    poisson: bool = False

    def rates(self, trials=None, seed=None):
        """The expected count of each bin, exactly; [T, N]. Other cells need trials and a seed for it."""
        return expit(self.gain * self.drive.astype(float) + self.bias)

    def sample(self, trials, seed):
        """Counts of fresh trials: uint8 [R, T, N]."""
        random, p = np.random.default_rng(seed), self.rates()
        draw = random.poisson if self.poisson else lambda p, size: random.random(size) < p
        return draw(p, size=(trials, *p.shape)).astype(np.uint8)


@dataclasses.dataclass
class LIFCells:
    r"""Noisy leaky integrate-and-fire cells: `NoisyLIF` driven by what the receptive field sees.

    .. math::
        x(t) = g\, d(t) + b, \quad u \leftarrow \beta u + (1 - \beta) x(t) - \epsilon_1

    with threshold 1, decay beta and noise of the membrane and of the threshold.

    Args:
        drive: [T, N].
        gain, bias: g and b, in thresholds.
        noise: the law.
        decay: beta, per frame.
        placement: where the noise acts.

    Note:
        `NoisyLIF` has the equations in full.
    """

    drive: np.ndarray
    gain: float = 0.6
    bias: float = 0.3
    noise: NoiseLaw = dataclasses.field(default_factory=lambda: Gaussian(0.25))
    decay: float = 0.6
    placement: str = "both"

    def sample(self, trials, seed):
        """Spikes of fresh trials: uint8 [R, T, N]."""
        with noise_generator(torch.Generator().manual_seed(seed)):
            parts = [self._some(min(TRIALS_AT_ONCE, trials - done)) for done in range(0, trials, TRIALS_AT_ONCE)]
        return np.concatenate(parts)

    def rates(self, trials=4000, seed=0):
        """Probability of a spike in each bin, as the mean of so many trials: [T, N]."""
        with noise_generator(torch.Generator().manual_seed(seed)):
            total = sum(
                self._some(min(TRIALS_AT_ONCE, trials - done)).sum(0, dtype=np.int64)
                for done in range(0, trials, TRIALS_AT_ONCE)
            )
        return total / trials

    @torch.no_grad()
    def _some(self, trials):
        current = self.gain * torch.from_numpy(self.drive).float() + self.bias
        neuron = NoisyLIF(self.noise, decay=self.decay, placement=self.placement, decay_input=True)
        spikes = neuron(current[:, None].expand(-1, trials, -1).contiguous())
        return spikes.transpose(0, 1).to(torch.uint8).numpy()
