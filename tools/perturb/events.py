"""Perturbations of raw event streams, before they are framed. Pure functions, seeded.

All are called as f(events [N], strength, random, size): `events` of dtype `EVENT`, in the order of time and on the
sensor; `size` (width, height) of the sensor in pixels. They return a new array [M], in the order of time; events of the
same microsecond keep their order. Strength 0 changes nothing. Shares are exact: round(share * N) events or pixels.
"""

from functools import partial

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from tools.data.events import EVENT

from .perturbation import Perturbation, entry

Size = tuple[int, int]
HOT_PIXEL_RATE_HZ = 100.0  # our choice: 20 times the strongest background activity
PERTURBATIONS: dict[str, Perturbation] = {}
_entry = partial(entry, PERTURBATIONS, "events")
_share = partial(entry, PERTURBATIONS, "events", highest=1)


def as_share(value: float) -> float:
    """`value`, if it is in [0, 1]; ValueError otherwise."""
    if not 0 <= value <= 1:
        raise ValueError(f"a share must be from 0 to 1, got {value}")
    return value


def choose(count: int, share: float, random: Generator) -> ndarray:
    """Choose round(share * count) of `count` things, uniformly. Shape: bool [count]."""
    chosen = np.zeros(count, bool)
    chosen[random.choice(count, round(as_share(share) * count), replace=False, shuffle=False)] = True
    return chosen


def duration(events: ndarray) -> int:
    """Microseconds from the first event to the last; 0 without events."""
    return int(events["t"][-1] - events["t"][0]) if len(events) else 0


def in_time_order(events: ndarray) -> ndarray:
    """The events sorted by time; the sort is stable."""
    return events[np.argsort(events["t"], kind="stable")]


def fire(events: ndarray, where: ndarray, rate_hz: float, random: Generator, size: Size) -> ndarray:
    """New events of Poisson processes at pixels `where` (y * width + x) while `events` last; all OFF, unsorted."""
    microseconds = duration(events)
    where = np.repeat(where, random.poisson(rate_hz * microseconds * 1e-6, len(where)))
    new = np.zeros(len(where), EVENT)
    new["y"], new["x"] = np.divmod(where, size[0])
    if microseconds:  # otherwise there are no new events, and perhaps no first event
        new["t"] = events["t"][0] + random.integers(0, microseconds, len(new), endpoint=True)
    return new


@_share("eventdrop", "drop_p", "fraction of events dropped", (0.1, 0.3, 0.5, 0.7, 0.9))
def drop_random(events: ndarray, p: float, random: Generator, size: Size) -> ndarray:
    """Remove a share `p` of the events, chosen uniformly."""
    return events[~choose(len(events), p, random)]


@_share("drop_time", "drop_ratio", "share of the time without events", (0.1, 0.2, 0.3, 0.5, 0.7))
def drop_time(events: ndarray, ratio: float, random: Generator, size: Size) -> ndarray:
    """Remove all events in one window of time, of `ratio` of the duration, placed uniformly in the recording.

    Note: Gu et al., "EventDrop: data augmentation for event-based learning", IJCAI 2021. The window of their code can
    extend beyond the end.
    """
    length = as_share(ratio) * duration(events)
    if not length:
        return events.copy()
    elapsed = events["t"] - events["t"][0]  # recordings need not begin at 0
    start = random.uniform(0, elapsed[-1] - length)
    begin, end = elapsed.searchsorted(start, "left"), elapsed.searchsorted(start + length, "right")
    return np.delete(events, slice(begin, end))


@_share("drop_area", "drop_ratio", "sides of the dead box, of the sensor's", (0.1, 0.2, 0.3, 0.4, 0.5))
def drop_area(events: ndarray, ratio: float, random: Generator, size: Size) -> ndarray:
    """Remove all events in one box, of `ratio` of the sensor's sides in whole pixels, placed uniformly inside it.

    Note: Gu et al., as above. Their code removes all rows and columns that the box touches.
    """
    inside = np.ones(len(events), bool)
    for axis, pixels in zip("xy", size):
        side = round(as_share(ratio) * pixels)
        start = random.integers(0, pixels - side, endpoint=True)
        inside &= (events[axis] >= start) & (events[axis] < start + side)
    return events[~inside]


@_entry("background", "background_hz", "events per pixel and second", (0.1, 0.3, 1.0, 3.0, 5.0))
def background_activity(events: ndarray, rate_hz: float, random: Generator, size: Size) -> ndarray:
    """Add Poisson noise of `rate_hz` events per second at every pixel, ON and OFF with equal probability."""
    new = fire(events, np.arange(size[0] * size[1]), rate_hz, random, size)
    new["p"] = random.random(len(new)) < 0.5
    return in_time_order(np.concatenate([events, new]))


@_share("hot_pixels", "pixel_fraction", "fraction of hot pixels", (0.001, 0.003, 0.01, 0.03, 0.1))
def hot_pixels(events: ndarray, fraction: float, random: Generator, size: Size) -> ndarray:
    """Make a fraction of the pixels fire, as Poisson processes of `HOT_PIXEL_RATE_HZ`, each of one polarity."""
    width, height = size
    hot = choose(width * height, fraction, random)
    bright = random.random((height, width)) < 0.5  # a pixel's leak has one sign
    new = fire(events, np.flatnonzero(hot), HOT_PIXEL_RATE_HZ, random, size)
    new["p"] = bright[new["y"], new["x"]]
    return in_time_order(np.concatenate([events, new]))


@_share("dead_pixels", "pixel_fraction", "fraction of dead pixels", (0.01, 0.03, 0.1, 0.2, 0.3))
def dead_pixels(events: ndarray, fraction: float, random: Generator, size: Size) -> ndarray:
    """Remove all events of a fraction of the pixels, chosen uniformly."""
    width, height = size
    dead = choose(width * height, fraction, random).reshape(height, width)
    return events[~dead[events["y"], events["x"]]]


@_entry("time_jitter", "jitter_us", "standard deviation of times (microseconds)", (1000, 5000, 10_000, 30_000, 100_000))
def jitter_time(events: ndarray, sigma_us: float, random: Generator, size: Size) -> ndarray:
    """t + n, n normal with standard deviation `sigma_us`, rounded and clipped to the times of the recording."""
    jittered = events.copy()
    if duration(events):
        shift = np.rint(random.normal(0, sigma_us, len(events))).astype(np.int64)
        jittered["t"] = np.clip(events["t"] + shift, events["t"][0], events["t"][-1])
    return in_time_order(jittered)


@_share("polarity_flip", "polarity_p", "fraction of flipped events", (0.05, 0.1, 0.2, 0.3, 0.5))
def flip_polarity(events: ndarray, p: float, random: Generator, size: Size) -> ndarray:
    """Invert the polarity of a share `p` of the events, chosen uniformly."""
    flipped = events.copy()
    flipped["p"] ^= choose(len(events), p, random)
    return flipped
