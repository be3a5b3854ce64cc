"""Times of events that a camera's clock has made: wrapped, set to zero, or not in order."""

from bisect import bisect_right

import numpy as np

WINDOW = 2  # events on each side of a fall of the clock, which tell whether it was set back or an event is late


def unwrapped(time: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Let the times of a counter of `bits` bits go on where it begins again at 0; and how often it did.

    A step of nearly a whole range, forwards or backwards, is the small step that is left without the range. A camera
    sends events more often than every eighth of a range. Shape: int64 [N] -> int64 [N].
    """
    whole = 2**bits
    if len(time) == 0 or time.max() - time.min() < whole - whole // 8:
        return time, 0
    steps = np.diff(time)
    ranges = (steps + whole // 2) // whole
    ranges[np.abs(steps - ranges * whole) > whole // 8] = 0
    return time - whole * np.concatenate([[0], np.cumsum(ranges)]), int(np.count_nonzero(ranges < 0))


def continued(time: np.ndarray) -> tuple[np.ndarray, int]:
    """Let times go on where the clock was set to zero in the middle of a recording; and how often it was.

    It was where a time is less than half of the one before, and `WINDOW` events are earlier than as many before them; a
    single one is only late. Shape: int64 [N] -> int64 [N].
    """
    falls = np.flatnonzero(2 * time[1:] < time[:-1]) + 1
    behind = [start for start in falls if _is_set_back(time, start)]
    if not behind:
        return time, 0
    time = time.copy()
    for start in behind:
        time[start:] += time[start - 1] - time[start]
    return time, len(behind)


def _is_set_back(time: np.ndarray, start: int) -> bool:
    before, after = time[max(0, start - WINDOW) : start], time[start : start + WINDOW]
    return len(before) == len(after) == WINDOW and after.max() < before.min()


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
