"""tools/data/events/times.py: clocks that wrap or are set to zero, and the least that makes times ascend."""

import itertools
import random

import numpy as np
import pytest

from tools.data.events.times import ascending, continued, unwrapped


@pytest.mark.parametrize("bits", [23, 31, 32])
def test_a_clock_goes_on_where_it_wraps(bits):
    whole = 2**bits
    true = whole - 50 + np.cumsum(np.random.default_rng(0).integers(0, whole // 9, size=200))
    found, wraps = unwrapped(true % whole, bits)
    assert (np.diff(found) == np.diff(true)).all() and found[0] == true[0] % whole
    assert wraps == true[-1] // whole - true[0] // whole > 5


def test_without_a_wrap_times_stay():
    times = np.array([5, 9, 7, 2**31, 2**32 - 2**29])
    found, wraps = unwrapped(times, 32)
    assert found is times and wraps == 0
    assert unwrapped(times[:0], 32)[1] == 0


def test_an_event_that_is_late_across_the_wrap_stays_late():
    whole = 2**32
    found, wraps = unwrapped(np.array([whole - 3, 1, whole - 2, 4]), 32)
    assert found.tolist() == [whole - 3, whole + 1, whole - 2, whole + 4] and wraps == 2 - 1 + 1


def test_a_counter_of_overflows_that_comes_late_is_not_counted_twice():
    whole = 2**31
    found, _ = unwrapped(np.array([whole - 1, 0, 5 + whole, 6 + whole]), 31)  # the second packet counts the overflow
    assert found.tolist() == [whole - 1, whole, whole + 5, whole + 6]


def test_a_clock_that_is_set_to_zero_goes_on():
    times = np.array([10**6, 10**6 + 10, 0, 10, 25, 30, 40, 3, 4, 8, 500])
    found, resets = continued(times)
    assert resets == 2
    assert found.tolist() == [10**6, *(10**6 + 10 + np.array([0, 0, 10, 25, 30, 40, 40, 41, 45, 537])).tolist()]
    found, resets = continued(np.array([100, 200, 300, 0, 100, 200, 300, 400]))
    assert found.tolist() == [100, 200, 300, 300, 400, 500, 600, 700] and resets == 1


@pytest.mark.parametrize("at", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("time", [0, 10**9])
def test_a_single_wrong_time_is_no_reset(at, time):
    times = np.insert(1000 + 10 * np.arange(20), at, time)
    found, resets = continued(times)
    assert found is times and resets == 0


def test_as_few_events_as_possible_are_dropped():
    draw = random.Random(0)
    for size in range(9):
        for _ in range(100):
            times = np.array([draw.randint(0, 6) for _ in range(size)], np.int64)
            kept = times[ascending(times)]
            assert (np.diff(kept) >= 0).all()
            longer = itertools.combinations(times, len(kept) + 1)
            assert not any((np.diff(other) >= 0).all() for other in longer)


def test_many_late_events_take_no_time():
    times = np.arange(300_000)
    times[1000] = 10**9  # all behind it are earlier
    times[200_000:200_400] = times[200_000:200_400][::-1]
    keep = ascending(times)
    assert not keep[1000] and np.count_nonzero(~keep) == 1 + 399
