"""The simulated recordings of the data set `motions`: moving real digits before an event camera.

The world is a torus of the size of the sensor, and the digit starts anywhere on it. So every class has
the same mean image; what tells the classes apart is the order of events, not where they are.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from . import EVENT

VERSION = 1  # of the recordings: a new one makes them anew
WIDTH = HEIGHT = 48
STEPS = 50  # rendered images per recording, besides the first
STEP_US = 10_000  # microseconds from one to the next
CHUNK = 32  # recordings simulated at once: what they need stays in the cache

_PATHS = {  # name -> function of progress s and phase to (right, down, clockwise, growth); see `trajectories`
    "right": lambda s, phase: (16 * s, 0 * s, 0 * s, 0 * s),
    "left": lambda s, phase: (-16 * s, 0 * s, 0 * s, 0 * s),
    "up": lambda s, phase: (0 * s, -16 * s, 0 * s, 0 * s),
    "down": lambda s, phase: (0 * s, 16 * s, 0 * s, 0 * s),
    "rotate_clockwise": lambda s, phase: (0 * s, 0 * s, 3 * s, 0 * s),
    "rotate_counterclockwise": lambda s, phase: (0 * s, 0 * s, -3 * s, 0 * s),
    "zoom_in": lambda s, phase: (0 * s, 0 * s, 0 * s, 0.8 * (s - s[-1] / 2)),
    "zoom_out": lambda s, phase: (0 * s, 0 * s, 0 * s, 0.8 * (s[-1] / 2 - s)),
    "shake_horizontally": lambda s, phase: (3.5 * torch.sin(8 * s + phase), 0 * s, 0 * s, 0 * s),
    "shake_vertically": lambda s, phase: (0 * s, 3.5 * torch.sin(8 * s + phase), 0 * s, 0 * s),
    "orbit": lambda s, phase: (3.5 * torch.cos(6 * s + phase), 3.5 * torch.sin(6 * s + phase), 0 * s, 0 * s),
}
MOTIONS = tuple(_PATHS)  # the names of the classes 0, 1, ...
# Those that mirroring left and right leaves what they are.
FLIPPABLE = ("up", "down", "zoom_in", "zoom_out", "shake_horizontally", "shake_vertically", "orbit")


def make_streams(digits, streams_per_class, seed):
    """Simulate recordings of moving digits.

    Args:
        digits: uint8 [N, 28, 28], of which each recording shows a random one.
        streams_per_class: recordings of each of `MOTIONS`.
        seed: fixes everything random.

    Returns:
        events: array of `EVENT`, one recording after the other, each in the order of time from 0.
        ends: int64 [S], where each recording ends in `events`.
        labels: int64 [S], the index in `MOTIONS`; the classes take turns.
    """
    random = np.random.RandomState(seed)  # the one generator whose numbers no version will change
    labels = np.tile(np.arange(len(MOTIONS)), streams_per_class)
    shown = digits[torch.from_numpy(random.randint(len(digits), size=len(labels)))].float() / 255
    contrasts = _uniform(random, 1.0, 1.8, len(labels)) * torch.from_numpy(random.choice([-1.0, 1.0], len(labels)))
    paths = trajectories(labels, random)
    parts, counts = [], []
    for first in range(0, len(labels), CHUNK):
        part = slice(first, first + CHUNK)
        scenes = render(shown[part], paths[part], contrasts[part].float())
        events, ends = camera(scenes, STEP_US, random)
        parts.append(events)
        counts.append(np.diff(ends, prepend=0))
    return np.concatenate(parts), np.concatenate(counts).cumsum(), labels


def trajectories(labels, random):
    r"""Draw where the digits are, how they are turned, and how large they are.

    .. math::
        s = v \tau, \quad (x, y, \varphi, \ln z)(\tau) = (x_0, y_0, 0, \ln z_0) + \mathrm{path}(s, \mathrm{phase})

    with time tau from 0 to 1, speed v log-uniform in [0.7, 1.4], (x_0, y_0) uniform on the torus and size
    z_0 uniform in [0.7, 1.1].

    Args:
        labels: int [S], indices in `MOTIONS`.
        random: numpy RandomState.

    Returns:
        float32 [S, STEPS + 1, 4]: x and y of the centre in pixels (not wrapped; y points down), angle in
        radians (positive: clockwise as seen), size in sensor pixels per digit pixel.
    """
    count = len(labels)
    speed = torch.exp(_uniform(random, math.log(0.7), math.log(1.4), count))
    phase = _uniform(random, 0, 2 * math.pi, count)
    sense = torch.from_numpy(random.choice([-1.0, 1.0], count))
    origin = torch.stack(
        [
            _uniform(random, 0, WIDTH, count),
            _uniform(random, 0, HEIGHT, count),
            torch.zeros(count).double(),
            torch.log(_uniform(random, 0.7, 1.1, count)),
        ],
        dim=1,
    )
    time = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    paths = []
    for index, label in enumerate(labels):
        name = MOTIONS[label]
        progress = speed[index] * time * (sense[index] if name == "orbit" else 1)
        paths.append(torch.stack(_PATHS[name](progress, phase[index]), dim=1))
    paths = torch.stack(paths) + origin[:, None]
    paths[..., 3].exp_()
    return paths.float()


def render(digits, paths, contrasts):
    r"""Logarithmic intensity of digits that move on the torus.

    .. math::
        L = \ln I, \quad I = 1 + m (e^c - 1)

    with the digit's mask m in [0, 1], bilinear between its pixels. A digit of contrast c > 0 is bright on
    a dark ground, one of c < 0 dark on a bright ground; both change L by |c|.

    Args:
        digits: float32 [S, 28, 28] in [0, 1].
        paths: float32 [S, K, 4], see `trajectories`.
        contrasts: float32 [S].

    Returns:
        float32 [S, K, HEIGHT, WIDTH].
    """
    streams, steps = paths.shape[:2]
    x, y, angle, size = paths.flatten(0, 1)[:, :, None, None].unbind(1)  # each [S * K, 1, 1]
    right = torch.remainder(torch.arange(WIDTH) - x + WIDTH / 2, WIDTH) - WIDTH / 2  # from the centre, by the
    down = torch.remainder(torch.arange(HEIGHT)[:, None] - y + HEIGHT / 2, HEIGHT) - HEIGHT / 2  # shorter way
    cos, sin = angle.cos() / (16 * size), angle.sin() / (16 * size)  # 14: half a digit is 1 in grid_sample
    grid = torch.stack([cos * right + sin * down, cos * down - sin * right], dim=-1)
    images = digits[:, None].expand(-1, steps, -1, -1).flatten(0, 1)[:, None]
    mask = F.grid_sample(images, grid, align_corners=False).view(streams, steps, HEIGHT, WIDTH)
    return torch.log1p(mask * torch.expm1(contrasts)[:, None, None, None])


def camera(log_intensity, step_us, random, threshold=0.25, mismatch=0.1, refractory_us=5_000, noise_hz=0.1):
    r"""Simulate an event camera that sees a logarithmic intensity, linear in time between the steps.

    A pixel remembers a level M, at first L(0). It emits an event, ON or OFF, at the time t at which

    .. math::
        L(t) - M = \theta_\mathrm{ON} \quad\text{or}\quad L(t) - M = -\theta_\mathrm{OFF}

    then its memory is held at its input for the refractory period r, so M = L(t + r). Without
    refractory period, M moves by one threshold per event.

    Args:
        log_intensity: float32 [S, K, H, W].
        step_us: microseconds from one of the K images to the next.
        random: numpy RandomState.
        threshold: nominal theta.
        mismatch: standard deviation of theta between pixels, relative; ON and OFF are independent.
        refractory_us: r in microseconds.
        noise_hz: background events per second and pixel: a Poisson process that leaves M alone, ON or OFF.

    Returns:
        array of `EVENT`, one recording after the other, and int64 [S], where each ends in it.

    Note:
        Gallego et al., "Event-based vision: a survey", IEEE TPAMI 2022, section 2.4, for the model;
        Hu, Liu and Delbruck, "v2e: from video frames to realistic DVS events", CVPRW 2021, for mismatch,
        refractory period and noise.
    """
    streams, steps, height, width = log_intensity.shape
    size = (2, streams, height * width)
    thresholds = torch.from_numpy(threshold * np.maximum(0.1, 1 + mismatch * random.standard_normal(size))).float()
    levels = log_intensity.flatten(2)
    changing = (levels != levels[:, :1]).any(1)  # [S, H * W]: the others cannot emit, so they need no simulation
    stream, pixel = changing.nonzero(as_tuple=True)
    levels = levels.transpose(0, 1)[:, changing].contiguous()  # [K, changing pixels]
    which, t, p = _crossings(levels, *thresholds[:, changing], refractory_us / step_us)
    count = random.poisson(noise_hz * 1e-6 * step_us * (steps - 1) * streams * height * width)
    stream = np.concatenate([stream[which].numpy(), random.randint(streams, size=count)])
    pixel = np.concatenate([pixel[which].numpy(), random.randint(height * width, size=count)])
    t = np.concatenate([t.numpy() * step_us, random.uniform(0, step_us * (steps - 1), count)]).astype(np.int64)
    p = np.concatenate([p.numpy(), random.randint(2, size=count) > 0])
    order = np.lexsort((pixel, t, stream))
    events = np.empty(len(order), EVENT)
    events["y"], events["x"] = np.divmod(pixel[order], width)
    events["t"], events["p"] = t[order], p[order]
    return events, np.bincount(stream, minlength=streams).cumsum()


def _crossings(levels, on, off, refractory):
    """Events of pixels: (pixel, time in steps, whether ON) of levels [K, N]; `refractory` is in steps."""
    found = []
    memory = levels[0]
    wait = torch.zeros_like(memory)  # from the start of a step to the end of the refractory period; in steps
    for step, (before, after) in enumerate(zip(levels, levels[1:])):
        change = after - before
        rising = change > 0
        needed = torch.where(rising, on, off)
        slope = change.abs()
        while True:
            memory = torch.where(wait > 0, torch.lerp(before, after, wait.clamp(max=1)), memory)
            # Time of the next event. Where `wait` is above 1 the memory is `after`, so that this is above 1, too;
            # without change it is infinite.
            time = (torch.where(rising, memory - before, before - memory) + needed) / slope
            fired = (time <= 1).nonzero().flatten()
            found.append((fired, step + time[fired].double(), rising[fired]))
            wait[fired] = time[fired] + refractory
            if refractory >= 1 or len(fired) == 0:
                break  # a pixel cannot fire again within this step
        wait = wait - 1
    return tuple(torch.cat(part) for part in zip(*found))


def _uniform(random, low, high, count):
    return torch.from_numpy(random.uniform(low, high, count))
