"""Readers of published formats of event-camera recordings.

All take a file's path and content, return a `Reading` with the origin of x and y in the upper left, and raise
`EventFormatError` for a file that is truncated, damaged or of another format.
"""

import csv
import io
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.io.files import read_bytes

from . import EVENT
from .arrays import read_array, read_mat
from .errors import EventFormatError, PathLike, Reading

GESTURES = 11
MAX_FILE_BYTES = 2**32  # no recording of these data sets is larger, and it would not fit into memory
MAX_LABEL_BYTES = 2**20
_NMNIST_MARKER = 240
_AEDAT3 = re.compile(rb"#!AER-DAT3\.1\r?\n")
_AEDAT2 = re.compile(rb"#!AER-DAT2\.0\r?\n")
_HEADER = struct.Struct("<2h6i")  # of a packet of AEDAT 3.1
_FIELDS = ("type", "source", "size", "ts_offset", "ts_overflow", "capacity", "number", "valid")
_PACKET_TYPES = 14  # special, polarity, frame, IMU6, ... matrix
_POLARITY_TYPE, _POLARITY_BYTES, _POLARITY_TIME_OFFSET = 1, 8, 4


class CheckedEvents(NamedTuple):
    """Events that are on the sensor and in the order of time."""

    events: np.ndarray  # [N] of dtype `EVENT`
    dropped: dict[str, int]  # {reason: number of events}


def read_aedat3(path: PathLike, raw: bytes) -> Reading:
    """Read AEDAT 3.1, the format of DVS-Gesture.

    A text header from "#!AER-DAT3.1" to the line "#!END-HEADER"; then little-endian packets, each with a header of
    28 bytes. A polarity event has 8 bytes: bit 0 valid, bit 1 polarity, bits 2 to 16 y, bits 17 to 31 x; and the
    lower 31 bits of the time, whose upper bits are the packet's overflow counter. Events marked invalid, and packets
    of other types, are left out.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    end = re.search(rb"^#!END-HEADER\r?\n", raw, re.MULTILINE)
    if end is None:
        raise EventFormatError(path, len(raw), "expected a line #!END-HEADER, got the end of the file")
    starts, numbers, overflows = _polarity_packets(path, raw, end.end())
    # Packets may be tiny, so all are joined and their events converted at once.
    view, stops = memoryview(raw), starts + _POLARITY_BYTES * numbers
    joined = b"".join([view[start:stop] for start, stop in zip(starts.tolist(), stops.tolist())])
    data, time = np.frombuffer(joined, "<u4").reshape(-1, 2).T
    valid = (data & 1).astype(bool)
    high = np.repeat(overflows << 31, numbers)

    def joined_byte(index: int) -> int:
        ends = numbers.cumsum()
        packet = np.searchsorted(ends, index, side="right")
        return int(stops[packet] - _POLARITY_BYTES * (ends[packet] - index))

    if len(late := np.flatnonzero((time >> 31).astype(bool) & valid)):
        offset = joined_byte(late[0]) + _POLARITY_TIME_OFFSET
        raise EventFormatError(path, offset, "expected a time of 31 bits, got a negative one")
    if not valid.all():
        data, time, high = data[valid], time[valid], high[valid]
    events = np.empty(len(data), EVENT)
    events["x"], events["y"] = data >> 17, (data >> 2) & 0x7FFF
    events["t"], events["p"] = time + high, (data >> 1) & 1
    return Reading(path, events, lambda index: joined_byte(np.flatnonzero(valid)[index]))


def _polarity_packets(path: PathLike, raw: bytes, at: int) -> np.ndarray:
    """Check all packets from byte `at` on.

    Returns int64 [3, P]: of each polarity packet the place of its first event, number of events, overflow counter.
    """
    packets = []
    while at < len(raw):
        start = at + _HEADER.size
        if start > len(raw):
            raise EventFormatError(path, at, f"expected a packet header of 28 bytes, got {len(raw) - at}: truncated")
        header = _HEADER.unpack_from(raw, at)
        kind, _, size, time_offset, overflow, _, number, valid = header
        expected = ""
        if not 0 <= kind < _PACKET_TYPES:
            expected = f"an event type from 0 to {_PACKET_TYPES - 1}"
        elif size <= 0 or not 0 <= valid <= number:
            expected = "sizes and numbers of events that agree"
        elif number * size > len(raw) - start:
            expected = "the whole packet, not one truncated"
        elif kind == _POLARITY_TYPE and (size, time_offset) != (_POLARITY_BYTES, _POLARITY_TIME_OFFSET):
            expected = "polarity events of 8 bytes with the time at 4"
        elif overflow < 0:
            expected = "an overflow counter from 0"
        if expected:
            raise EventFormatError(path, at, f"expected {expected}, got a packet of {dict(zip(_FIELDS, header))}")
        if kind == _POLARITY_TYPE:
            packets.append((start, number, overflow))
        at = start + number * size
    return np.array(packets, np.int64).reshape(-1, 3).T


def read_aedat2(path: PathLike, raw: bytes) -> Reading:
    """Read AEDAT 2.0 with the addresses of a DVS128, the format of DVS-CIFAR10.

    Header lines that start with "#"; then big-endian pairs of a 32-bit address and a 32-bit time in microseconds.
    Address: bit 0 polarity, bits 1 to 7 x, bits 8 to 14 y, bit 15 external event (left out). The camera counts x from
    the right and y from below, so both are reversed here; its polarity bit is 0 for ON.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-2.0.html, except the polarity:
    there 1 is ON, while jAER, which recorded DVS-CIFAR10, and the data set's dat2mat.m read 0 as ON. The first byte of
    an address is 0, so that it cannot be mistaken for a header line.
    """
    if not _AEDAT2.match(raw):
        raise EventFormatError(path, 0, f"expected a line #!AER-DAT2.0, got {raw[:14]!r}")
    at = 0
    while raw[at : at + 1] == b"#":
        line_end = raw.find(b"\n", at)
        if line_end < 0:
            raise EventFormatError(path, at, "expected the end of a header line, got the end of the file")
        at = line_end + 1
    _check_size(path, raw, at, 8)
    words = np.frombuffer(raw, ">u4", offset=at).reshape(-1, 2)
    address, time = words[:, 0].astype(np.uint32), words[:, 1].astype(np.int32)
    if len(wide := np.flatnonzero(address >> 16)):
        raise EventFormatError(path, at + 8 * wide[0], f"expected an address of 16 bits, got {address[wide[0]]:#x}")
    if len(negative := np.flatnonzero(time < 0)):
        raise EventFormatError(path, at + 8 * negative[0] + 4, f"expected a time from 0, got {time[negative[0]]}")
    inner = (address >> 15) == 0
    address, time = address[inner], time[inner]
    events = np.empty(len(address), EVENT)
    events["x"], events["y"] = 127 - ((address >> 1) & 127), 127 - ((address >> 8) & 127)
    events["t"], events["p"] = time, 1 - (address & 1)
    return Reading(path, events, lambda index: at + 8 * int(np.flatnonzero(inner)[index]))


def read_nmnist(path: PathLike, raw: bytes) -> Reading:
    """Read the .bin format of N-MNIST and N-Caltech101: 40 bits an event.

    Bits from the highest: 8 x, 8 y, 1 polarity, 23 time in microseconds. An event with y = 240, which is below every
    sensor of these data sets, only says that all later times are 2^13 microseconds later.

    Note: Orchard, Jayawant, Cohen and Thakor, Frontiers in Neuroscience 9 (2015) 437, the data set's readme, and its
    authors' event-Python for y = 240.
    """
    _check_size(path, raw, 0, 5)
    columns = np.frombuffer(raw, np.uint8).reshape(-1, 5)
    events = np.empty(len(columns), EVENT)
    events["x"], events["y"], events["p"] = columns[:, 0], columns[:, 1], columns[:, 2] >> 7
    time = (columns[:, 2] & 127).astype(np.int32)
    for byte in (3, 4):
        time <<= 8
        time |= columns[:, byte]
    events["t"] = time
    marker = columns[:, 1] == _NMNIST_MARKER
    if not marker.any():
        return Reading(path, events, lambda index: 5 * index)
    events["t"] += np.cumsum(marker) << 13
    return Reading(path, events[~marker], lambda index: 5 * int(np.flatnonzero(~marker)[index]))


def _check_size(path: PathLike, raw: bytes, start: int, size: int) -> None:
    if (len(raw) - start) % size:
        raise EventFormatError(path, len(raw), f"expected events of {size} bytes each, got a part of one: truncated")


def check_events(reading: Reading, sensor: tuple[int, int], lenient: bool = False) -> CheckedEvents:
    """Check that events are on the sensor, (width, height) in pixels, and in the order of time.

    If `lenient`, other events are dropped and counted; otherwise the first of them raises an EventFormatError, as does
    a recording that has no event left.
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
        events = Reading(reading.path, events[~outside]).events
    time = events["t"]
    early = time[1:] < time[:-1]
    if early.any():
        if not lenient:
            index = int(early.argmax()) + 1
            problem = f"event {index}: expected a time of at least {time[index - 1]}, got {time[index]}"
            raise EventFormatError(reading.path, reading.byte_of(index), problem)
        in_order = time >= np.maximum.accumulate(time)
        dropped["decreasing"] = int((~in_order).sum())
        events = events[in_order]
    return CheckedEvents(events, dropped)


def _read_aedat(path: PathLike, raw: bytes) -> Reading:
    return read_aedat3(path, raw) if _AEDAT3.match(raw) else read_aedat2(path, raw)


READERS = {".aedat": _read_aedat, ".bin": read_nmnist, ".npy": read_array, ".npz": read_array, ".mat": read_mat}


def read_recording(path: PathLike) -> Reading:
    """Read a file in the format that its suffix names, without checking its events."""
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise EventFormatError(path, 0, f"expected a file {', '.join(READERS)}, got {suffix!r}")
    return READERS[suffix](path, read_bytes(path, MAX_FILE_BYTES))


def read_gesture_labels(path: PathLike) -> list[tuple[int, int, int]]:
    """Read the gestures of a recording of DVS-Gesture from its `_labels.csv`: (class from 0, start, end), in us."""
    raw = read_bytes(path, MAX_LABEL_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(raw.decode(), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise EventFormatError(path, 0, f"expected a table of labels: {error}") from error
    if not rows or [name.strip() for name in rows[0]] != ["class", "startTime_usec", "endTime_usec"]:
        raise EventFormatError(path, 0, "expected the line class,startTime_usec,endTime_usec")
    gestures = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        try:
            label, start, end = map(int, row)
        except ValueError as error:
            raise EventFormatError(path, 0, f"line {number}: expected three whole numbers, got {row}") from error
        if not 1 <= label <= GESTURES or not 0 <= start < end < 2**62:
            raise EventFormatError(path, 0, f"line {number}: expected class 1 to {GESTURES} and start < end, got {row}")
        gestures.append((label - 1, start, end))
    if not gestures:
        raise EventFormatError(path, 0, "expected labels, got none")
    return gestures
