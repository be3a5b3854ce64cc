"""Perturbations of raw event streams, before they are framed. Pure functions, seeded.

All are called as f(events, strength, random, size). `events` has the dtype `EVENT` and is in the
order of time and on the sensor, `random` is a numpy.random.Generator, `size` is (width, height) of
the sensor in pixels. They return a new array, again in the order of time (stable: events of one
microsecond keep their order). Strength 0 changes nothing. Shape: events [N] -> [M].
"""

import numpy as np

from tools.data.events import EVENT

HOT_PIXEL_RATE_HZ = 100.0


def as_share(value):
    """A number in [0, 1] as it is; ValueError for others."""
    if not 0 <= value <= 1:
        raise ValueError(f"a share is from 0 to 1, got {value}")
    return value


def choose(count, share, random):
    """Which of `count` things are chosen: exactly round(share * count), uniformly. Shape: bool [count]."""
    chosen = np.zeros(count, bool)
    chosen[random.choice(count, round(as_share(share) * count), replace=False, shuffle=False)] = True
    return chosen


def duration(events):
    """From the first event to the last, in microseconds; 0 for an empty recording."""
    return int(events["t"][-1] - events["t"][0]) if len(events) else 0


def in_time_order(events):
    """The same events sorted by time, stable."""
    return events[np.argsort(events["t"], kind="stable")]


def fire(events, where, rate_hz, random, size):
    """Independent Poisson processes at some pixels over the duration of `events`, not sorted.

    Args:
        where: the pixels, y * width + x. Shape: [K].
        rate_hz: mean rate of each, in 1/s.

    Shape:
        new events [N] without polarity (all OFF).
    """
    microseconds = duration(events)
    where = np.repeat(where, random.poisson(rate_hz * microseconds * 1e-6, len(where)))
    new = np.zeros(len(where), EVENT)
    new["y"], new["x"] = np.divmod(where, size[0])
    if microseconds:  # otherwise there is nothing new, and perhaps no first event either
        new["t"] = events["t"][0] + random.integers(0, microseconds, len(new), endpoint=True)
    return new


def drop_random(events, p, random, size):
    """Remove exactly round(p N) of the N events, chosen uniformly. Args: p: in [0, 1]."""
    return events[~choose(len(events), p, random)]


def drop_time(events, ratio, random, size):
    """Remove all events in one window of time, placed uniformly in the recording.

    Args:
        ratio: length of the window over the duration of the recording, in [0, 1].

    Note:
        Gu et al., "EventDrop: data augmentation for event-based learning", IJCAI 2021. Their
        code starts the window anywhere from time 0 on, so it can stick out over the end.
    """
    length = as_share(ratio) * duration(events)
    if not length:
        return events.copy()
    elapsed = events["t"] - events["t"][0]  # recordings need not begin at 0
    start = random.uniform(0, elapsed[-1] - length)
    begin, end = elapsed.searchsorted(start, "left"), elapsed.searchsorted(start + length, "right")
    return np.delete(events, slice(begin, end))


def drop_area(events, ratio, random, size):
    """Remove all events in one box, placed uniformly inside the sensor.

    Args:
        ratio: sides of the box over those of the sensor, in [0, 1]; rounded to whole pixels.

    Note:
        Gu et al., "EventDrop: data augmentation for event-based learning", IJCAI 2021. Their
        code removes all rows and columns that the box touches; here it is the box alone.
    """
    inside = np.ones(len(events), bool)
    for axis, pixels in zip("xy", size):
        side = round(as_share(ratio) * pixels)
        start = random.integers(0, pixels - side, endpoint=True)
        inside &= (events[axis] >= start) & (events[axis] < start + side)
    return events[~inside]


def background_activity(events, rate_hz, random, size):
    """Every pixel fires by itself, a Poisson process of either polarity with equal chance.

    Args:
        rate_hz: mean rate of each pixel, in 1/s, at least 0.
    """
    new = fire(events, np.arange(size[0] * size[1]), rate_hz, random, size)
    new["p"] = random.random(len(new)) < 0.5
    return in_time_order(np.concatenate([events, new]))


def hot_pixels(events, fraction, random, size):
    """Some pixels fire by themselves, Poisson processes of `HOT_PIXEL_RATE_HZ`, each of one polarity.

    Args:
        fraction: of the pixels of the sensor, in [0, 1]; exactly round(fraction * pixels) are hot.
    """
    width, height = size
    hot = choose(width * height, fraction, random)
    bright = random.random((height, width)) < 0.5  # a pixel's leak has one sign
    new = fire(events, np.flatnonzero(hot), HOT_PIXEL_RATE_HZ, random, size)
    new["p"] = bright[new["y"], new["x"]]
    return in_time_order(np.concatenate([events, new]))


def dead_pixels(events, fraction, random, size):
    """Some pixels are silent: their events are removed.

    Args:
        fraction: of the pixels of the sensor, in [0, 1]; exactly round(fraction * pixels) are dead.
    """
    width, height = size
    dead = choose(width * height, fraction, random).reshape(height, width)
    return events[~dead[events["y"], events["x"]]]


def jitter_time(events, sigma_us, random, size):
    """t + n, n normal, rounded to microseconds and clipped to the first and last time of the recording.

    Args:
        sigma_us: standard deviation of n, in microseconds, at least 0.
    """
    jittered = events.copy()
    if duration(events):
        shift = np.rint(random.normal(0, sigma_us, len(events))).astype(np.int64)
        jittered["t"] = np.clip(events["t"] + shift, events["t"][0], events["t"][-1])
    return in_time_order(jittered)


def flip_polarity(events, p, random, size):
    """Exactly round(p N) of the N events, chosen uniformly, change polarity. Args: p: in [0, 1]."""
    flipped = events.copy()
    flipped["p"] ^= choose(len(events), p, random)
    return flipped
