"""Reader of AEDAT 3.1, the format of cAER."""

import math
import re
import struct

import numpy as np

from .aedat_header import header_line, sensor_of
from .reading import Counts, EventFormatError, Reading, Source, camera_events

_HEADER = struct.Struct("<2h6i")  # of a packet
_FIELDS = ("type", "source", "size", "ts_offset", "ts_overflow", "capacity", "number", "valid")
_TYPES = ("special", "polarity", "frame", "IMU6", "IMU9", "sample", "ear", "config")  # of packets, by number
_TYPES += ("point1D", "point2D", "point3D", "point4D", "spike", "matrix")
_POLARITY_TYPE, _POLARITY_BYTES, _POLARITY_TIME_OFFSET = 1, 8, 4
CLOCK_BITS = 31


def read_aedat3(source: Source) -> Reading:
    """Read AEDAT 3.1, the format of DVS-Gesture.

    A text header from "#!AER-DAT3.1" to the line "#!END-HEADER"; then little-endian packets, each with a header of
    28 bytes. A polarity event has 8 bytes: bit 0 valid, bit 1 polarity (1 is ON), bits 2 to 16 y, bits 17 to 31 x, from
    the upper left; and the lower 31 bits of the time, whose upper bits are the packet's overflow counter. Events marked
    invalid, and those in packets of other types, are left out and counted, the latter by type.

    A packet has room for as many events as its capacity says. In a file that is their number, says the specification;
    if it is more, the next packet begins after the room, or else after the events.

    Bit 31 of a time is a sign, and a valid event is never before 0; a counter of 32 bits is never written, so such a
    time is damage. A time that begins at 0 again within a packet, before the counter counts it, goes on.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    raw, counts = source.raw, Counts()
    end = re.search(rb"^#!END-HEADER\r?\n", raw, re.MULTILINE)
    if end is None:
        raise source.error(len(raw), "expected a line #!END-HEADER, got the end of the file")
    header = raw[: end.end()]
    if (form := header_line(header, rb"#Format:")) not in ("", "RAW"):
        raise source.error(raw.index(b"#Format:"), f"expected the format RAW, got {form[:80]}")
    starts, numbers, overflows = _polarity_packets(source, end.end(), counts)
    # Packets may be tiny, so all are joined and their events converted at once.
    view, stops = memoryview(raw), starts + _POLARITY_BYTES * numbers
    joined = b"".join([view[start:stop] for start, stop in zip(starts.tolist(), stops.tolist())])
    data, time = np.frombuffer(joined, "<u4").reshape(-1, 2).T
    valid = (data & 1).astype(bool)
    high = np.repeat(overflows << CLOCK_BITS, numbers)

    def joined_byte(index: int) -> int:
        ends = numbers.cumsum()
        packet = np.searchsorted(ends, index, side="right")
        return int(stops[packet] - _POLARITY_BYTES * (ends[packet] - index))

    if not valid.all():
        counts["invalid"] = len(valid) - int(np.count_nonzero(valid))
    negative = (time >> CLOCK_BITS).astype(bool) & valid
    if negative.any():
        problem = "expected a time of 31 bits, got a negative one"

        def error_of(index: int) -> EventFormatError:
            return source.error(joined_byte(index) + _POLARITY_TIME_OFFSET, problem)

        source.leave_out(negative, counts, error_of, np.count_nonzero(valid))
        valid &= ~negative
    if not valid.all():
        data, time, high = data[valid], time[valid], high[valid]
    events = camera_events(data >> 17, (data >> 2) & 0x7FFF, time + high, (data >> 1) & 1, CLOCK_BITS, counts)
    camera = header_line(header, rb"# ?Source \d+:")
    return Reading(
        source.path,
        events,
        lambda index: joined_byte(np.flatnonzero(valid)[index]),
        "AEDAT 3.1",
        camera,
        sensor_of(camera),
        counts,
    )


def _polarity_packets(source: Source, at: int, counts: Counts) -> np.ndarray:
    """Check all packets from byte `at` on.

    Returns int64 [3, P]: of each polarity packet the place of its first event, number of events, overflow counter.
    """
    packets, raw = [], source.raw
    while at < len(raw):
        start = at + _HEADER.size
        if start > len(raw):
            if source.lenient:
                counts["truncated"] += 1
                break
            raise source.error(at, f"expected a packet header of 28 bytes, got {len(raw) - at}: truncated")
        header = _HEADER.unpack_from(raw, at)
        kind, _, size, _, overflow, capacity, number, _ = header
        if expected := _problem(header, math.inf if source.lenient else len(raw) - start):
            raise source.error(at, f"expected {expected}, got a packet of {dict(zip(_FIELDS, header))}")
        kept = min(number, (len(raw) - start) // size)
        if kept < number:
            counts["truncated"] += number - kept
        if kind == _POLARITY_TYPE:
            packets.append((start, kept, overflow))
        elif kept:
            counts[_TYPES[kind]] += kept
        at, room = start + number * size, start + capacity * size
        is_cut = source.lenient and room > len(raw) and not _is_packet(raw, at)
        if capacity > number and (_is_packet(raw, room) or is_cut):
            at = room
    return np.array(packets, np.int64).reshape(-1, 3).T


def _problem(header: tuple[int, ...], room: float) -> str:
    """What is expected instead of this header of a packet, which `room` bytes follow; "" if it fits."""
    kind, _, size, time_offset, overflow, _, number, valid = header
    if not 0 <= kind < len(_TYPES):
        return f"an event type from 0 to {len(_TYPES) - 1}"
    if size <= 0 or not 0 <= valid <= number:
        return "sizes and numbers of events that agree"
    if number * size > room:
        return "the whole packet, not one truncated"
    if kind == _POLARITY_TYPE and (size, time_offset) != (_POLARITY_BYTES, _POLARITY_TIME_OFFSET):
        return "polarity events of 8 bytes with the time at 4"
    if overflow < 0:
        return "an overflow counter from 0"
    return ""


def _is_packet(raw: bytes, at: int) -> bool:
    """Whether a packet may begin at byte `at`, or the file ends there."""
    if at + _HEADER.size > len(raw):
        return at == len(raw)
    return not _problem(_HEADER.unpack_from(raw, at), math.inf)
