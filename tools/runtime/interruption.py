"""Requests to stop a run: signals, and a limit of time. The run chooses the moment."""

import contextlib
import signal
import threading
import time

TIME_IS_OVER = 1  # a request, beside the numbers of signals


class Interrupted(Exception):
    """The run was asked to stop.

    Args:
        request: `TIME_IS_OVER`, or the number of a signal.
    """

    def __init__(self, request):
        super().__init__("the time is over" if request == TIME_IS_OVER else signal.Signals(request).name)
        # As a shell has it for a process that a signal ended; but to keep to the time is no failure.
        self.exit_code = 0 if request == TIME_IS_OVER else 128 + request


class Interruption:
    """Context manager: SIGTERM, SIGINT and the end of the time are noted in the block, for the run to look at.

    A second signal of the same kind does what it would have done without this.

    Args:
        max_minutes: from now on; 0: no limit.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, max_minutes=0.0):
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._received = 0
        self._before = {}
        self._may_raise = False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def request(self):
        """0, `TIME_IS_OVER`, or the number of the signal that came."""
        if self._received:
            return self._received
        return TIME_IS_OVER if self.deadline is not None and time.monotonic() > self.deadline else 0

    @contextlib.contextmanager
    def at_once(self):
        """In the block, a request raises `Interrupted` where it arrives: for work that can be done again."""
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
