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
    assert found.tolist() == [whole - 3, whole + 1, whole - 2, whole + 4] and wraps == 1
    found, wraps = unwrapped(np.array([3, whole - 2, 5]), 32)  # begins behind a wrap
    assert found.tolist() == [3, -2, 5] and wraps == 0


def test_a_counter_of_overflows_that_comes_late_is_not_counted_twice():
    whole = 2**31
    found, _ = unwrapped(np.array([whole - 1, 0, 5 + whole, 6 + whole]), 31)  # the second packet counts the overflow
    assert found.tolist() == [whole - 1, whole, whole + 5, whole + 6]


def found(wraps, resets):
    return {"clock wraps": wraps, "clock resets": resets}


def test_a_clock_that_is_set_to_zero_goes_on():
    once, again = 10**6 + 10 * np.arange(20), 10 * np.arange(40)
    times, counts = continued(np.concatenate([once, again, again]), 32)
    assert counts == found(0, 2)
    assert times.tolist() == np.concatenate([once, once[-1] + again, once[-1] + again[-1] + again]).tolist()
    times, counts = continued(np.array([10**6, 10**6 + 10, 0, 5]), 32)  # near the ends of a recording
    assert times.tolist() == [10**6, 10**6 + 10, 10**6 + 10, 10**6 + 15] and counts == found(0, 1)


@pytest.mark.parametrize("bits", [24, 32, 34])
def test_a_clock_that_has_wrapped_before_it_is_set_to_zero_goes_on(bits):
    whole = 2**bits
    before, after = whole // 2 + whole // 32 * np.arange(40), 10 * np.arange(40)
    times, counts = continued(np.concatenate([before % whole, after]), bits)
    assert counts == found(1, 1)
    assert times.tolist() == np.concatenate([before, before[-1] + after]).tolist()


def test_a_damaged_file_whose_times_fall_again_and_again_takes_no_time():
    damaged = np.random.default_rng(0).integers(0, 2**32, 1_000_000)
    times, counts = continued(np.tile(np.repeat([10**6, 0], 16), 30_000), 32)
    assert counts == found(0, 29_999 + 1) and (np.diff(times) >= 0).sum() >= 30_000 - 1
    assert len(continued(damaged, 32)[0]) == len(damaged)


@pytest.mark.parametrize("at", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("time", [0, 10**9])
def test_a_single_wrong_time_is_not_a_reset(at, time):
    times = np.insert(1000 + 10 * np.arange(20), at, time)
    gone_on, counts = continued(times, 64)
    assert gone_on is times and counts == found(0, 0)


@pytest.mark.parametrize("burst", [2, 5, 15])
@pytest.mark.parametrize("first", [3, 2**31 - 100])
def test_some_wrong_times_are_no_reset(burst, first):
    times = np.insert(10**6 + 10 * np.arange(200), 50, first + np.arange(burst))
    gone_on, counts = continued(times, 32)
    assert gone_on is times and counts == found(0, 0)
    assert np.count_nonzero(~ascending(gone_on)) == burst


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
