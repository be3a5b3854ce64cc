"""The simulated recordings of the data set `motions`: real digits that move before an event camera.

The world is a torus of the size of the sensor, with a digit anywhere on it. So all classes have the same mean image,
and only the order of events tells them apart.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import EVENT
from .recordings import Streams

WIDTH = HEIGHT = 48
STEPS = 50  # rendered images per recording, besides the first
STEP_US = 10_000  # microseconds between images
CHUNK = 32  # recordings simulated at once: bounds the memory


class _Motion(NamedTuple):
    """The numbers of a class in `trajectories`, per unit of progress."""

    right: float = 0  # r, in pixels
    down: float = 0  # d, in pixels
    turn: float = 0  # q, in radians, clockwise
    growth: float = 0  # g, of the logarithm of the size
    swing_right: float = 0  # a, in pixels
    swing_down: float = 0  # b, in pixels
    pace: float = 0  # omega, of the swing, in radians


_MOTIONS = {
    "right": _Motion(right=16),
    "left": _Motion(right=-16),
    "up": _Motion(down=-16),
    "down": _Motion(down=16),
    "rotate_clockwise": _Motion(turn=3),
    "rotate_counterclockwise": _Motion(turn=-3),
    "zoom_in": _Motion(growth=0.8),
    "zoom_out": _Motion(growth=-0.8),
    "shake_horizontally": _Motion(swing_right=3.5, pace=8),
    "shake_vertically": _Motion(swing_down=3.5, pace=8),
    "orbit": _Motion(swing_right=3.5, swing_down=3.5, pace=6),
}
MOTIONS = tuple(_MOTIONS)  # the names of the classes 0, 1, ...
# Classes that a mirror does not change.
FLIPPABLE = ("up", "down", "zoom_in", "zoom_out", "shake_horizontally", "shake_vertically", "orbit")


def make_streams(digits: torch.Tensor, streams_per_class: int, seed: int) -> Streams:
    """Simulate recordings of moving digits, each from 0 to 500 ms; the classes take turns.

    Each recording shows a random one of the digits, uint8 [N, 28, 28]; the seed fixes everything random.
    """
    random = np.random.RandomState(seed)  # the one generator whose numbers no version will change
    labels = np.tile(np.arange(len(MOTIONS)), streams_per_class)
    shown = torch.from_numpy(random.randint(len(digits), size=len(labels)))
    masks = digits[shown].float() / 255
    contrasts = torch.from_numpy(random.uniform(1.0, 1.8, len(labels)) * random.choice([-1, 1], len(labels))).float()
    paths = trajectories(labels, random)
    parts, counts = [], []
    chunks = range(0, len(labels), CHUNK)
    for first in tqdm(chunks, desc="simulating recordings", unit="chunk", disable=None, leave=False):
        chunk = slice(first, first + CHUNK)
        events, ends = camera(render(masks[chunk], paths[chunk], contrasts[chunk]), STEP_US, random)
        parts.append(events)
        counts.append(np.diff(ends, prepend=0))
    return np.concatenate(parts), np.concatenate(counts).cumsum(), labels


def trajectories(labels: np.ndarray, random: np.random.RandomState) -> torch.Tensor:
    r"""Draw the places, angles and sizes of digits over time.

    .. math::
        s &= v (\tau - 1/2) \\
        x &= x_0 + r s + a \sin(\omega s + \phi), \quad y = y_0 + d s \pm b \cos(\omega s + \phi) \\
        \varphi &= q s, \quad z = z_0 e^{g s}

    with progress s, time tau from 0 to 1, and the numbers (r, d, q, g, a, b, omega) of the class. Random are the speed
    v, log-uniform in [0.7, 1.4], the place (x_0, y_0) on the torus, the size z_0 in [0.8, 1.2], the phase phi, and the
    sign. Shape: labels [S] -> [S, STEPS + 1, 4]: x and y of the centre in pixels (not wrapped; y points down), angle in
    radians (clockwise), size in sensor pixels per pixel of the digit.
    """
    column = (len(labels), 1)
    speed = np.exp(random.uniform(math.log(0.7), math.log(1.4), column))
    x, y = random.uniform(0, WIDTH, column), random.uniform(0, HEIGHT, column)
    size, phase = random.uniform(0.8, 1.2, column), random.uniform(0, 2 * math.pi, column)
    sense = random.choice([-1, 1], column)
    numbers = np.array(list(_MOTIONS.values()))[labels]  # [S, 7]
    of = _Motion(*numbers.T[..., None])  # each [S, 1]
    progress = speed * np.linspace(-0.5, 0.5, STEPS + 1)  # [S, STEPS + 1]
    swing = of.pace * progress + phase
    x = x + of.right * progress + of.swing_right * np.sin(swing)
    y = y + of.down * progress + sense * of.swing_down * np.cos(swing)
    angle, size = of.turn * progress, size * np.exp(of.growth * progress)
    return torch.from_numpy(np.stack([x, y, angle, size], axis=-1)).float()


def render(masks: torch.Tensor, paths: torch.Tensor, contrasts: torch.Tensor) -> torch.Tensor:
    r"""Render the logarithmic intensity of digits on the torus.

    .. math::
        L = \ln I, \quad I = 1 + m (e^c - 1)

    with the digit's mask m, bilinear between its pixels, and intensities relative to the ground. A digit of contrast
    c > 0 is brighter than the ground, one of c < 0 darker; both change L by `|c|`.

    Shape: masks [S, 28, 28] in [0, 1], paths [S, K, 4] of `trajectories`, contrasts [S] -> [S, K, HEIGHT, WIDTH].
    """
    x, y, angle, size = paths.flatten(0, 1)[:, :, None, None].unbind(1)  # each [S * K, 1, 1]
    # Distance from the digit's centre, the shorter way around the torus.
    right = torch.remainder(torch.arange(WIDTH) - x + WIDTH / 2, WIDTH) - WIDTH / 2
    down = torch.remainder(torch.arange(HEIGHT)[:, None] - y + HEIGHT / 2, HEIGHT) - HEIGHT / 2
    half = masks.shape[-1] / 2 * size  # of the digit, in sensor pixels: the 1 of grid_sample
    cos, sin = angle.cos() / half, angle.sin() / half
    grid = torch.stack([cos * right + sin * down, cos * down - sin * right], dim=-1)
    images = masks.repeat_interleave(paths.shape[1], dim=0)[:, None]
    moved = F.grid_sample(images, grid, align_corners=False).view(*paths.shape[:2], HEIGHT, WIDTH)
    return torch.log1p(moved * torch.expm1(contrasts)[:, None, None, None])


def camera(
    log_intensity: torch.Tensor,
    step_us: int,
    random: np.random.RandomState,
    threshold: float = 0.25,
    mismatch: float = 0.1,
    refractory_us: float = 5_000,
    noise_hz: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Simulate an event camera before a logarithmic intensity L that is linear in time between its steps.

    A pixel remembers a level M, at first L(0). It emits an event, ON or OFF, at the time t when

    .. math::
        L(t) - M = \theta_\mathrm{ON} \quad\text{or}\quad L(t) - M = -\theta_\mathrm{OFF}

    Its memory follows the input for the refractory period r, so that then M = L(t + r). Without a refractory period, M
    moves by one threshold per event.

    Args:
        log_intensity: float32 [S, K, H, W], `step_us` microseconds from one of the K images to the next.
        threshold: nominal theta.
        mismatch: relative standard deviation of theta between pixels; each recording has its own camera.
        refractory_us: r in microseconds.
        noise_hz: background events per second and pixel: a Poisson process, ON or OFF.

    Returns the events, one recording after the other, and the end of each recording, int64 [S].
    Note: Gallego et al., "Event-based vision: a survey", IEEE TPAMI 2022, section 2.4, for the model; Hu, Liu and
    Delbruck, "v2e: from video frames to realistic DVS events", CVPRW 2021, for the rest.
    """
    levels = log_intensity.flatten(2).transpose(0, 1)  # [K, S, H * W]
    draws = random.standard_normal((2, *levels.shape[1:]))
    thresholds = torch.from_numpy(threshold * np.maximum(0.1, 1 + mismatch * draws)).float()
    changing = (levels != levels[0]).any(0)  # the other pixels emit nothing, so they need no simulation
    stream, pixel = changing.nonzero(as_tuple=True)
    on, off = thresholds[:, changing]
    which, t, p = _crossings(levels[:, changing], on, off, refractory_us / step_us)
    signal = stream[which].numpy(), pixel[which].numpy(), (t * step_us).numpy(), p.numpy()
    noise = _background(log_intensity[:, 0], step_us * (len(levels) - 1), random, noise_hz)
    stream, pixel, t, p = (np.concatenate(parts) for parts in zip(signal, noise))
    t = t.astype(np.int64)
    order = np.lexsort((pixel, t, stream))
    events = np.empty(len(order), EVENT)
    events["y"], events["x"] = np.divmod(pixel[order], log_intensity.shape[-1])
    events["t"], events["p"] = t[order], p[order]
    return events, np.bincount(stream, minlength=len(log_intensity)).cumsum()


def _crossings(levels, on, off, refractory):
    """Events of the pixels of levels [K, N]: which pixel, when, whether ON; times are in steps."""
    found = []
    memory = levels[0]
    wait = torch.zeros_like(memory)  # from the start of the step to the end of the refractory period
    for step, (before, after) in enumerate(zip(levels, levels[1:])):
        change = after - before
        rising = change > 0
        needed = torch.where(rising, on, off)
        while True:
            memory = torch.where(wait > 0, torch.lerp(before, after, wait.clamp(max=1)), memory)
            # The time of the next event, from the start of the step. If the refractory period outlasts the step, memory
            # is `after`, so this is above 1; without change it is infinite.
            time = (torch.where(rising, memory - before, before - memory) + needed) / change.abs()
            fired = (time <= 1).nonzero().flatten()
            found.append((fired, step + time[fired].double(), rising[fired]))
            memory[fired] += torch.where(rising, needed, -needed)[fired]
            wait[fired] = time[fired] + refractory
            if refractory >= 1 or len(fired) == 0:
                break  # no pixel fires again within this step
        wait = wait - 1
    return tuple(torch.cat(parts) for parts in zip(*found))


def _background(images, duration_us, random, rate_hz):
    """Poisson events of images [S, H, W]: arrays of the recording, the pixel, the time in us, whether ON."""
    streams, pixels = images.flatten(1).shape
    count = random.poisson(rate_hz * 1e-6 * duration_us * streams * pixels)
    stream, pixel = random.randint(streams, size=count), random.randint(pixels, size=count)
    return stream, pixel, random.uniform(0, duration_us, count), random.randint(2, size=count) > 0
