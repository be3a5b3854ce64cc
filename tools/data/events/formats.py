"""All formats of event-camera recordings that can be read, recognised by the content of the file.

All readers take a `Source`, return a `Reading` with the origin of x and y in the upper left, and raise
`EventFormatError` for a file that is truncated, damaged or of another format. To add one, write such a reader and an
entry in `FORMATS`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.io.files import read_bytes

from .aedat import read_aedat
from .arrays import read_mat, read_npy, read_npz
from .atis import read_atis
from .hdf5 import is_hdf5, read_hdf5
from .prophesee import is_dat, is_raw, read_dat, read_raw
from .reading import LEFT_OUT, MOST_DROPPED, EventFormatError, PathLike, Reading, Source
from .text import is_text, read_text
from .times import ascending

MAX_FILE_BYTES = 2**32  # no recording of these data sets is larger, and it would not fit into memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Format(NamedTuple):
    """A format: how it is recognised, and read."""

    name: str
    is_at: Callable[[bytes], bool]  # whether a file that begins with these bytes is of this format
    read: Callable[[Source], Reading]
    suffixes: tuple[str, ...]  # of its files, for messages; where the content does not tell, for recognition


def _begins_with(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _never(head: bytes) -> bool:
    """For a format whose files begin with any bytes."""
    return False


TEXT = Format("text", is_text, read_text, (".txt", ".csv"))
FORMATS = (
    Format("AEDAT", _begins_with(b"#!AER-DAT"), read_aedat, (".aedat", ".aedat4")),
    Format("NumPy array", _begins_with(b"\x93NUMPY"), read_npy, (".npy",)),
    Format("NumPy archive", _begins_with(b"PK\3\4"), read_npz, (".npz",)),
    Format("HDF5", is_hdf5, read_hdf5, (".h5", ".hdf5")),  # MATLAB 7.3 too
    Format("MATLAB", _begins_with(b"MATLAB"), read_mat, (".mat",)),
    Format("Prophesee DAT", is_dat, read_dat, (".dat",)),
    Format("Prophesee RAW", is_raw, read_raw, (".raw",)),
    TEXT,
    Format("ATIS", _never, read_atis, (".bin",)),
)


def format_of(path: PathLike, head: bytes) -> Format:
    """The format of a file that begins with these bytes; EventFormatError if it is none of `FORMATS`."""
    for one in FORMATS:
        if one.is_at(head):
            return one
    suffix = Path(path).suffix.lower()
    for one in FORMATS:
        if suffix in one.suffixes:
            return one
    known = ", ".join(f"{one.name} ({', '.join(one.suffixes)})" for one in FORMATS)
    raise EventFormatError(path, 0, f"expected {known}; got {head[:16]!r}")


def read_recording(path: PathLike, lenient: bool = False, columns: str = "") -> Reading:
    """Read a file of any format, without checking where and when its events are.

    If `lenient`, a damaged end and events that cannot be cost these events, not the recording. `columns` are those of a
    text, with commas between.
    """
    whole = read_bytes(path, MAX_FILE_BYTES)
    raw = whole.removeprefix(BYTE_ORDER_MARK)
    if not raw:
        raise EventFormatError(path, len(whole), "expected events, got an empty file")
    start = len(whole) - len(raw)
    found = TEXT if columns else format_of(path, raw[:4096])
    names = tuple(name.strip() for name in columns.split(",")) if columns else ()
    reading = found.read(Source(path, raw, lenient, start, names))
    if not start:
        return reading
    return dataclasses.replace(reading, byte_of=lambda index: start + reading.byte_of(index))


class CheckedEvents(NamedTuple):
    """Events that are on the sensor and in the order of time."""

    events: np.ndarray  # [N] of dtype `EVENT`
    dropped: dict[str, int]  # {reason: number of events}; with what a lenient reader left out
    counts: dict[str, int]  # what else was in the file; see `Reading`


def check_events(reading: Reading, sensor: tuple[int, int], lenient: bool = False) -> CheckedEvents:
    """Check that events are on the sensor, (width, height) in pixels, and in the order of time.

    If `lenient`, other events are dropped and counted, as few as make times ascend; otherwise the first of them raises
    an EventFormatError, as does a recording that would lose more than `MOST_DROPPED` of its events.
    """
    width, height = sensor
    events = reading.events
    dropped = {"outside": 0, "decreasing": 0}
    outside = (events["x"] >= width) | (events["y"] >= height)
    if outside.any():
        if not lenient:
            index = int(outside.argmax())
            problem = f"event {index}: expected a pixel of {width}x{height}, got {events[index]}"
            raise EventFormatError(reading.path, reading.byte_of(index), problem)
        dropped["outside"] = int(outside.sum())
        events = events[~outside]
    time = events["t"]
    early = time[1:] < time[:-1]
    if early.any():
        if not lenient:
            index = int(early.argmax()) + 1
            problem = f"event {index}: expected a time of at least {time[index - 1]}, got {time[index]}"
            raise EventFormatError(reading.path, reading.byte_of(index), problem)
        in_order = ascending(time)
        dropped["decreasing"] = int((~in_order).sum())
        events = events[in_order]
    lost = sum(dropped.values())
    if lost > MOST_DROPPED * len(reading.events):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        problem = f"expected at most {MOST_DROPPED:.0%} of {len(reading.events):,} events to be dropped, got {reasons}"
        raise EventFormatError(reading.path, 0, problem)
    left_out = {what: reading.counts[what] for what in LEFT_OUT if what in reading.counts}
    others = {what: count for what, count in reading.counts.items() if what not in LEFT_OUT}
    return CheckedEvents(events, dropped | left_out, others)
