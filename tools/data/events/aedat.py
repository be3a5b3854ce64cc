"""Readers of AEDAT, the formats of iniVation's cameras."""

import re
import struct
from collections.abc import Callable

import numpy as np

from .reading import Counts, Reading, Source, camera_events

_HEADER = struct.Struct("<2h6i")  # of a packet of AEDAT 3.1
_FIELDS = ("type", "source", "size", "ts_offset", "ts_overflow", "capacity", "number", "valid")
_SPECIAL = 1 << 31 | 1 << 15  # bits of an address of AEDAT 2.0 that mark what is not an event of a DVS128
_PACKET_TYPES = 14  # special, polarity, frame, IMU6, ... matrix
_POLARITY_TYPE, _POLARITY_BYTES, _POLARITY_TIME_OFFSET = 1, 8, 4


def read_aedat(source: Source) -> Reading:
    """Read AEDAT of any version that is known here, by the version in its first line."""
    version = re.match(rb"#!AER-DAT([0-9.]+)", source.raw)
    found = version[1].decode() if version else ""
    if found not in VERSIONS:
        raise source.error(0, f"expected AEDAT {', '.join(VERSIONS)}, got {source.raw[:14]!r}")
    return VERSIONS[found](source)


def read_aedat3(source: Source) -> Reading:
    """Read AEDAT 3.1, the format of DVS-Gesture.

    A text header from "#!AER-DAT3.1" to the line "#!END-HEADER"; then little-endian packets, each with a header of
    28 bytes. A polarity event has 8 bytes: bit 0 valid, bit 1 polarity, bits 2 to 16 y, bits 17 to 31 x; and the
    lower 31 bits of the time, whose upper bits are the packet's overflow counter. Events marked invalid, and packets
    of other types, are left out.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    raw, counts = source.raw, Counts()
    end = re.search(rb"^#!END-HEADER\r?\n", raw, re.MULTILINE)
    if end is None:
        raise source.error(len(raw), "expected a line #!END-HEADER, got the end of the file")
    starts, numbers, overflows = _polarity_packets(source, end.end(), counts)
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
        raise source.error(offset, "expected a time of 31 bits, got a negative one")
    if not valid.all():
        counts["invalid"] = len(valid) - int(np.count_nonzero(valid))
        data, time, high = data[valid], time[valid], high[valid]
    events = camera_events(data >> 17, (data >> 2) & 0x7FFF, time + high, (data >> 1) & 1, 31, counts)
    camera = _line(raw[: end.end()], rb"#\s*Source \d+:")
    return Reading(
        source.path, events, lambda index: joined_byte(np.flatnonzero(valid)[index]), "AEDAT 3.1", camera, None, counts
    )


def _polarity_packets(source: Source, at: int, counts: Counts) -> np.ndarray:
    """Check all packets from byte `at` on.

    Returns int64 [3, P]: of each polarity packet the place of its first event, number of events, overflow counter.
    """
    packets, raw = [], source.raw
    while at < len(raw):
        start = at + _HEADER.size
        if start > len(raw):
            raise source.error(at, f"expected a packet header of 28 bytes, got {len(raw) - at}: truncated")
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
            raise source.error(at, f"expected {expected}, got a packet of {dict(zip(_FIELDS, header))}")
        if kind == _POLARITY_TYPE:
            packets.append((start, number, overflow))
        at = start + number * size
    return np.array(packets, np.int64).reshape(-1, 3).T


def read_aedat2(source: Source) -> Reading:
    """Read AEDAT 2.0 with the addresses of a DVS128, the format of DVS-CIFAR10.

    Header lines that start with "#"; then big-endian pairs of a 32-bit address and a 32-bit time in microseconds.
    Address: bit 0 polarity, bits 1 to 7 x, bits 8 to 14 y; bits 15 and 31 mark other events (left out). The camera
    counts x from the right and y from below, so both are reversed here; its polarity bit is 0 for ON.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-2.0.html, except the polarity:
    there 1 is ON, while jAER, which recorded DVS-CIFAR10, and the data set's dat2mat.m read 0 as ON. The first byte of
    an address is 0, so that it cannot be mistaken for a header line.
    """
    raw, counts, at = source.raw, Counts(), 0
    while raw[at : at + 1] == b"#":
        line_end = raw.find(b"\n", at)
        if line_end < 0:
            raise source.error(at, "expected the end of a header line, got the end of the file")
        at = line_end + 1
    stop = source.whole(at, 8, counts)
    words = np.frombuffer(raw, ">u4", (stop - at) // 4, at).reshape(-1, 2)
    address, time = words[:, 0].astype(np.uint32), words[:, 1].astype(np.int64)
    inner = (address & _SPECIAL) == 0
    if len(wide := np.flatnonzero((address >> 16).astype(bool) & inner)):
        raise source.error(at + 8 * wide[0], f"expected an address of 16 bits, got {address[wide[0]]:#x}")
    if not inner.all():
        counts["special"] = len(inner) - int(np.count_nonzero(inner))
        address, time = address[inner], time[inner]
    x, y = 127 - ((address >> 1) & 127), 127 - ((address >> 8) & 127)
    events = camera_events(x, y, time, 1 - (address & 1), 32, counts)
    camera = _line(raw[:at], rb"#\s*AEChip:")
    return Reading(
        source.path, events, lambda index: at + 8 * int(np.flatnonzero(inner)[index]), "AEDAT 2.0", camera, None, counts
    )


def _line(header: bytes, name: bytes) -> str:
    """What a line of a header says after its name; "" without such a line."""
    found = re.search(rb"^" + name + rb"\s*(.*?)\s*$", header, re.MULTILINE)
    return found[1].decode(errors="replace") if found else ""


VERSIONS: dict[str, Callable[[Source], Reading]] = {"2.0": read_aedat2, "3.1": read_aedat3}
