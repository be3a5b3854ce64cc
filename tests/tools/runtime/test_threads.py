"""Tasks in threads: results, errors, interruption, and what threads do not share."""

import threading

import pytest
import torch

from tools.runtime.threads import Stopped, side_by_side


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_tasks_run_at_once_in_the_settings_of_their_caller():
    both_are_there = threading.Barrier(2, timeout=60)

    def task(number):
        both_are_there.wait()
        return number, torch.is_grad_enabled(), torch.get_num_threads()

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = side_by_side([lambda stop: task(0), lambda stop: task(1)])
        assert found == [(0, enabled, 1), (1, enabled, 1)]


def test_tasks_run_one_after_the_other_where_they_must():
    running = []

    def task(stop):
        running.append(threading.current_thread())
        return len(running)

    assert side_by_side([task] * 3, at_once=False) == [1, 2, 3]
    torch.set_num_threads(1)
    assert side_by_side([task] * 2) == [4, 5]
    torch.set_num_threads(2)
    assert set(running) == {threading.current_thread()}


def test_the_generator_of_the_caller_is_not_disturbed():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    side_by_side([lambda stop: torch.rand(5)] * 2)
    assert torch.equal(torch.rand(2), expected)


def test_an_error_ends_the_other_tasks_and_is_raised():
    def wait(stop):
        assert stop.wait(60)
        raise Stopped

    def fail(stop):
        raise ValueError("of a task")

    for tasks in ([wait, fail], [fail, wait, wait]):
        with pytest.raises(ValueError, match="of a task"):
            side_by_side(tasks)


def test_an_interruption_ends_all_tasks(monkeypatch):
    ended = []

    def wait(stop):
        ended.append(stop.wait(60))
        raise Stopped

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.runtime.threads.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side([wait, wait])
    assert ended == [True, True]
