"""Requests to stop a run: signals and a time limit."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator

TIME_IS_OVER = 1  # a request; the others are numbers of signals


class Interrupted(Exception):
    """The run was asked to stop; `request`: the number of a signal, or `TIME_IS_OVER`."""

    def __init__(self, request: int):
        super().__init__("the time limit was reached" if request == TIME_IS_OVER else signal.Signals(request).name)
        # The exit code of a shell for a process ended by a signal; reaching the time limit is not a failure.
        self.exit_code = 0 if request == TIME_IS_OVER else 128 + request


class Interruption:
    """Context manager that notes SIGTERM, SIGINT and the end of `max_minutes` (0: no limit); the run reads `request`.

    A second signal of the same kind has its usual effect.
    """

    def __init__(self, max_minutes: float = 0.0):
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        self._received = 0
        self._before: dict = {}
        self._may_raise = False

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def request(self) -> int:
        """0, `TIME_IS_OVER`, or the number of the signal received."""
        return self._received or (TIME_IS_OVER if time.monotonic() > self.deadline else 0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context manager for work that can be repeated: a request raises `Interrupted` immediately."""
        if self.request:
            raise Interrupted(self.request)
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def _note(self, number, frame):
        self._received = number
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)
        if self._may_raise:
            raise Interrupted(number)
