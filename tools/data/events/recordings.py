"""Recordings: where their events are, and how they are read."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.io.cache import stamp
from tools.io.npy import open_npy

from .formats import CheckedEvents, check_events, read_recording
from .reading import EventFormatError, Reading

UPSIDE_DOWN, TRANSPOSED = "upside down", "transposed"


def _upright(events: np.ndarray, height: int) -> np.ndarray:
    turned = events.copy()
    turned["y"] = height - 1 - events["y"]
    return turned


def _swapped(events: np.ndarray, height: int) -> np.ndarray:
    turned = events.copy()
    turned["x"], turned["y"] = events["y"], events["x"]
    return turned


TURNS = {UPSIDE_DOWN: _upright, TRANSPOSED: _swapped}  # (events, height of the sensor) -> upright events


@dataclasses.dataclass(frozen=True)
class Recording:
    """The events of one recording: a file of any format, or a part of one."""

    path: Path
    label: int | None = None  # index of the class; None: unknown
    window_us: tuple[int, int] | None = None  # (start, end) of the part in microseconds, without the end
    slice: tuple[int, int] | None = None  # the part of a `.npy` file of `stored_streams`: its first event, its end
    row: int | None = None  # the part of an HDF5 file of `spikes`
    problem: str | None = None  # why the file cannot be used, if that is known already; loading raises it
    turned: str = ""  # one of `TURNS`: how the image in the file is turned; loading turns it back

    @property
    def name(self) -> str:
        """The file, and which part of it this is, if it is not the whole."""
        parts = [part for part in (self.window_us, self.slice, self.row) if part is not None]
        return f"{self.path} {parts[0]}" if parts else str(self.path)

    def load(self, sensor: tuple[int, int], lenient: bool = False) -> CheckedEvents:
        """Read the events and check them with `check_events`.

        UserError if the file is damaged, or has no events in the window.
        """
        if self.problem is not None:
            raise EventFormatError(self.path, 0, self.problem)
        if self.slice is not None:
            first, last = self.slice
            reading = Reading(self.path, np.array(_opened(self.path, stamp(self.path))[first:last]))
        elif self.row is not None:
            from .spikes import read_spikes  # which imports this module

            reading = read_spikes(self.path, self.row)
        elif self.window_us is not None:
            reading = self._window(lenient)
        else:
            reading = read_recording(self.path, lenient)
        if not self.turned:
            return check_events(reading, sensor, lenient)
        width, height = sensor
        checked = check_events(reading, (height, width) if self.turned == TRANSPOSED else sensor, lenient)
        return checked._replace(events=TURNS[self.turned](checked.events, height))

    def _window(self, lenient: bool) -> Reading:
        start, end = self.window_us
        whole = _read_whole(self.path, stamp(self.path), lenient)
        chosen = np.flatnonzero((whole.events["t"] >= start) & (whole.events["t"] < end))
        if len(chosen) == 0:
            raise EventFormatError(self.path, 0, f"expected events from {start} to {end} us, as its labels say")
        return dataclasses.replace(
            whole, events=whole.events[chosen], byte_of=lambda index: whole.byte_of(chosen[index])
        )


# Both keep one file, because its parts follow each other.
@functools.lru_cache(maxsize=1)
def _read_whole(path: Path, stamp: str, lenient: bool) -> Reading:
    return read_recording(path, lenient)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, stamp: str) -> np.ndarray:
    return open_npy(path)


class Parts(NamedTuple):
    """The recordings of a data set."""

    train: list[Recording]
    test: list[Recording]


# Recordings in memory: their events, one after the other; where each ends, int64 [S]; their labels, int64 [S].
Streams = tuple[np.ndarray, np.ndarray, np.ndarray]
