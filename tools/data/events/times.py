"""Times of events that a camera's clock has made: wrapped, set to zero, or not in order."""

from bisect import bisect_right

import numpy as np

WINDOW = 16  # events on each side of a fall of the clock, which tell whether it was set back or some are late


def unwrapped(time: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Let the times of a counter of `bits` bits go on where it begins again at 0; and how often it did.

    A step of nearly a whole range, forwards or backwards, counts as the small step that remains without the range. A
    camera sends events more often than every eighth of a range. Shape: int64 [N] -> int64 [N].
    """
    whole = 2**bits
    if len(time) == 0 or time.max() - time.min() < whole - whole // 8:
        return time, 0
    steps = np.diff(time)
    ranges = (steps + whole // 2) // whole
    ranges[np.abs(steps - ranges * whole) > whole // 8] = 0
    gone_back = np.concatenate([[0], np.cumsum(ranges)])  # ranges; an event that is late across a wrap goes forwards
    return time - whole * gone_back, -int(gone_back.min())


def continued(time: np.ndarray, bits: int) -> tuple[np.ndarray, dict[str, int]]:
    """Let times of a counter of `bits` bits go on where it wraps or was set to zero, and how often it did either.

    It was set to zero where a time is less than half of the one before, and `WINDOW` events are all earlier than as
    many before them (fewer at the ends, but at least two). Otherwise some events are early or late, and the clock went
    on. Shape: int64 [N] -> int64 [N].
    """
    gone_on, wraps = unwrapped(time, bits)
    falls = np.flatnonzero((2 * time[1:] < time[:-1]) & (gone_on[1:] < gone_on[:-1])) + 1  # of the counter, not wraps
    resets = falls[_are_set_back(time, falls)]
    if len(resets):
        shifts = np.zeros_like(time)
        shifts[resets] = gone_on[resets - 1] - gone_on[resets]
        gone_on = gone_on + np.cumsum(shifts)
    return gone_on, {"clock wraps": wraps, "clock resets": len(resets)}


def _are_set_back(time: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Whether the events from each start on are earlier than those before it: bool, one for each."""
    last = len(time) - 1
    before, after = time[starts - 1], time[starts]
    for distance in range(1, WINDOW):
        before = np.minimum(before, time[np.maximum(starts - 1 - distance, 0)])
        after = np.maximum(after, time[np.minimum(starts + distance, last)])
    return (after < before) & (starts >= 2) & (starts < last)


def ascending(time: np.ndarray) -> np.ndarray:
    """Which events to keep so that times ascend and as few as possible are dropped: bool [N].

    An event is in order if none before it is later and none after it is earlier. It is then kept in any case, so that
    a longest ascending subsequence is only searched for between such events.
    """
    highest = np.maximum.accumulate(time)
    lowest = np.minimum.accumulate(time[::-1])[::-1]
    keep = (highest == time) & (lowest == time)
    changes = np.flatnonzero(np.diff(np.concatenate([[True], keep, [True]]).astype(np.int8)))
    for start, stop in changes.reshape(-1, 2):
        keep[start + _longest_ascending(time[start:stop].tolist())] = True
    return keep


def _longest_ascending(values: list[int]) -> np.ndarray:
    """Indices of a longest subsequence that does not descend.

    Note: Fredman, "On computing the length of longest increasing subsequences", Discrete Mathematics 11, 1975.
    """
    lasts: list[int] = []  # the smallest last value of the subsequences of each length
    ends: list[int] = []  # where it is
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect_right(lasts, value)
        before.append(ends[length - 1] if length else -1)
        if length == len(lasts):
            lasts.append(value)
            ends.append(index)
        else:
            lasts[length], ends[length] = value, index
    chosen = []
    index = ends[-1]
    while index >= 0:
        chosen.append(index)
        index = before[index]
    return np.array(chosen[::-1])
