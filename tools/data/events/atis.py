"""Reader of the recordings of ATIS cameras in N-MNIST and N-Caltech101."""

import numpy as np

from .reading import Counts, Reading, Source, camera_events

EVENT_BYTES = 5
MARKER = 240  # a row that no sensor of these data sets has
CLOCK_BITS = 23


def read_atis(source: Source) -> Reading:
    """Read the .bin format of N-MNIST and N-Caltech101: 40 bits an event.

    Bits from the highest: 8 x, 8 y, 1 polarity, 23 time in microseconds. An event with y = 240, which is below every
    sensor of these data sets, only says that all later times are 2^13 microseconds later.

    Note: Orchard, Jayawant, Cohen and Thakor, Frontiers in Neuroscience 9 (2015) 437, the data set's readme, and its
    authors' event-Python for y = 240.
    """
    counts = Counts()
    stop = source.whole(0, EVENT_BYTES, counts)
    columns = np.frombuffer(source.raw, np.uint8, stop).reshape(-1, EVENT_BYTES)
    x, y, p = columns[:, 0], columns[:, 1], columns[:, 2] >> 7
    time = (columns[:, 2] & 127).astype(np.int64)
    for byte in (3, 4):
        time <<= 8
        time |= columns[:, byte]
    marker = y == MARKER
    if not marker.any():
        events = camera_events(x, y, time, p, CLOCK_BITS, counts)
        return Reading(source.path, events, lambda index: EVENT_BYTES * index, "ATIS", "ATIS", counts=counts)
    inner = np.flatnonzero(~marker)
    time += np.cumsum(marker) << 13
    events = camera_events(x[inner], y[inner], time[inner], p[inner], CLOCK_BITS, counts)
    return Reading(source.path, events, lambda index: EVENT_BYTES * int(inner[index]), "ATIS", "ATIS", counts=counts)
