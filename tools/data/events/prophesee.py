"""Readers and writers of the formats of Prophesee's cameras: RAW (EVT 2.0 and EVT 3.0) and DAT.

All begin with lines "% keyword value". Coordinates are counted from the upper left, and polarity 1 is ON.

Note: https://docs.prophesee.ai/stable/data/file_formats and https://docs.prophesee.ai/stable/data/encoding_formats.
Where they leave it open, times are as OpenEB, the manufacturer's decoder, has them.
"""

import re
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from tools.errors import UserError

from .reading import Counts, Reading, Source, add_found, camera_events
from .times import continued

Sensor = tuple[int, int] | None  # (width, height)

_LINE = re.compile(rb"%[^\x00-\x08\x0a-\x1f\x7f]*\r?\n")
_MOST_HEADER = 2**20  # bytes
_RAW_KEYWORDS = {"evt", "format", "integrator_name", "camera_integrator_name", "plugin_name", "system_id"}
_CAMERA_KEYWORDS = ("integrator_name", "camera_integrator_name", "plugin_name", "sensor_generation", "generation")
_DAT_HEADS = (b"\x00\x08", b"\x0c\x08")  # after the header: a type of events, of which 14 is a trigger, and their size
_DAT_CLOCK_BITS, _EVT2_CLOCK_BITS, _EVT3_CLOCK_BITS = 32, 34, 24


def _header(raw: bytes) -> tuple[dict[str, str], int]:
    """The lines of a header, {keyword in lower case: value}, and where it ends."""
    lines: dict[str, str] = {}
    at = 0
    while at < _MOST_HEADER and (found := _LINE.match(raw, at)):
        at = found.end()
        keyword, _, value = found[0][1:].decode(errors="replace").strip().partition(" ")
        if keyword == "end":
            break
        lines.setdefault(keyword.lower(), value.strip())
    return lines, at


def is_dat(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a DAT file."""
    lines, at = _header(head)
    return lines.get("data", "").startswith("file containing") or (at > 0 and head[at : at + 2] in _DAT_HEADS)


def is_raw(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a RAW file."""
    return not _RAW_KEYWORDS.isdisjoint(_header(head)[0])


def _sensor(lines: dict[str, str]) -> Sensor:
    """The size that a header gives, as "geometry", or as "width" and "height" by themselves or in "format"."""
    fields = dict(field.partition("=")[::2] for field in lines.get("format", "").split(";")) | lines
    geometry = fields.get("geometry", f"{fields.get('width')}x{fields.get('height')}")
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", geometry)
    return (int(found[1]), int(found[2])) if found else None


def read_raw(source: Source) -> Reading:
    """Read a RAW file of EVT 2.0 or 3.0, whichever the header names; the oldest files name none, and are of EVT 2.0."""
    lines, at = _header(source.raw)
    if at == 0:
        raise source.error(0, f"expected a header of lines such as % evt 3.0, got {source.raw[:16]!r}")
    name = lines.get("format", "").split(";")[0] or f"EVT{lines.get('evt', '2.0').removesuffix('.0')}"
    if name not in _DECODERS:
        raise source.error(0, f"expected a header that names {' or '.join(_DECODERS)}, got {name[:40]}")
    counts = Counts()
    events, byte_of = _DECODERS[name](source, at, counts)
    camera = " ".join(dict.fromkeys(lines[keyword] for keyword in _CAMERA_KEYWORDS if keyword in lines))
    return Reading(source.path, events, byte_of, f"Prophesee {name}", camera, _sensor(lines), counts)


def _decode_evt2(source: Source, at: int, counts: Counts) -> tuple[np.ndarray, Callable[[int], int]]:
    """Decode EVT 2.0: little-endian words of 32 bits, of which the upper 4 say what it is.

    Events (0 OFF, 1 ON) have the lower 6 bits of the time, 11 bits x and 11 bits y; a word of type 8 has the upper 28
    bits of the time in microseconds. Triggers (10) and others are counted, as are events before the first time.
    """
    stop = source.whole(at, 4, counts)
    words = np.frombuffer(source.raw, "<u4", (stop - at) // 4, at)
    kinds = (words >> 28).astype(np.uint8)
    event_at, high_at = np.flatnonzero(kinds <= 1), np.flatnonzero(kinds == 8)
    triggers = np.count_nonzero(kinds == 10)
    others = len(words) - len(event_at) - len(high_at) - triggers
    high = (words[high_at] & 0xFFFFFFF).astype(np.int64) << 6
    first = np.append(np.searchsorted(event_at, high_at), len(event_at))  # event after each of these words
    add_found(counts, {"external": triggers, "other words": others, "without a time": first[0]})
    event_at = event_at[first[0] :]
    words = words[event_at]
    time = np.repeat(high, np.diff(first))
    time += (words >> 22) & 63
    events = camera_events((words >> 11) & 0x7FF, words & 0x7FF, time, words >> 28, _EVT2_CLOCK_BITS, counts)
    return events, lambda index: at + 4 * int(event_at[index])


_ADDR_Y, _ADDR_X, _BASE_X, _VECT_12, _VECT_8, _TIME_LOW, _TIME_HIGH, _TRIGGER = 0, 2, 3, 4, 5, 6, 8, 10
_OTHERS = [1, 7, 9, *range(11, 16)]
_IS_EVENT = np.isin(np.arange(16), (_ADDR_X, _VECT_12, _VECT_8))
_WIDTH = np.array([{_VECT_12: 12, _VECT_8: 8}.get(kind, 0) for kind in range(16)], np.uint8)  # pixels of a vector
_MASK = (1 << _WIDTH.astype(np.uint16)) - 1  # their bits
_FURTHEST = 2**16 - 16  # where a vector may begin, off every sensor
_IS_SET = (np.arange(2**12)[:, None] >> np.arange(16) & 1).astype(bool)  # for each mask of 12 pixels, and four more
_NUMBER = _IS_SET.sum(1, dtype=np.uint8)
_AT_ONCE = 2**16  # events that are spread; more would take more memory, and time


def _decode_evt3(source: Source, at: int, counts: Counts) -> tuple[np.ndarray, Callable[[int], int]]:
    """Decode EVT 3.0: little-endian words of 16 bits, of which the upper 4 say what it is.

    Words set a state: y (0), the lower 12 bits of the time (6), its upper 12 bits (8), or a polarity and base of x (3).
    Words of events take the rest from the state: one event with polarity and x (2), or a vector of pixels from the base
    on, 12 (4) or 8 (5), one bit each, after which the base is as many pixels further. Triggers (10) and others are
    counted, as are words of events before the first time, y or base.
    """
    stop = source.whole(at, 2, counts)
    words = np.frombuffer(source.raw, "<u2", (stop - at) // 2, at)
    kinds = (words >> 12).astype(np.uint8)
    time_at, time, clock = _evt3_times(words, kinds)
    y_at, base_at = np.flatnonzero(kinds == _ADDR_Y), np.flatnonzero(kinds == _BASE_X)
    is_event = _IS_EVENT[kinds]
    event_at = np.flatnonzero(is_event)
    before = np.cumsum(is_event, dtype=np.uint32)  # words of events up to here

    def held(values: np.ndarray, set_at: np.ndarray) -> np.ndarray:
        """For each word of an event, the value that was set last; 0 before the first one."""
        ends = np.concatenate([[0], before[set_at], [len(event_at)]])
        return np.repeat(np.append(values.dtype.type(0), values), np.diff(ends))

    def first(set_at: np.ndarray) -> int:
        """The first word of an event after something was set."""
        return int(before[set_at[0]]) if len(set_at) else len(event_at)

    content, kind = words[event_at] & 0xFFF, kinds[event_at]
    column, is_vector = content, kind != _ADDR_X
    if is_vector.any():
        column = np.where(is_vector, held(words[base_at] & 0xFFF, base_at), content)
    x, y, time = column & 0x7FF, held(words[y_at] & 0x7FF, y_at), held(time, time_at)
    if is_vector.any():
        passed = np.append(np.uint8(0), _WIDTH[kind]).cumsum(dtype=np.int64)  # pixels of the vectors before each word
        offset = passed[:-1] - held(passed[before[base_at]], base_at)
        x = np.minimum(x + offset * is_vector, _FURTHEST).astype(np.uint16)
    start = max(first(time_at), first(y_at))
    events = camera_events(x[start:], y[start:], time[start:], column[start:] >> 11, None, counts)
    no_base = np.flatnonzero(is_vector[start : first(base_at)])
    triggers, others = np.count_nonzero(kinds == _TRIGGER), sum(np.count_nonzero(kinds == kind) for kind in _OTHERS)
    early = start + len(no_base)
    add_found(counts, {"external": triggers, "other words": others, "without a time": early} | clock)
    event_at = event_at[start:]
    if not is_vector.any():
        return events, lambda index: at + 2 * int(event_at[index])

    mask = np.where(is_vector, content & _MASK[kind], 1)[start:]
    mask[no_base] = 0

    def byte_of(index: int) -> int:
        return at + 2 * int(event_at[_NUMBER[mask].cumsum(dtype=np.int64).searchsorted(index, side="right")])

    return _spread(events, mask), byte_of


def _spread(events: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Repeat each event for each pixel that is set in its mask, as many columns further."""
    spread = np.empty(_NUMBER[mask].sum(dtype=np.int64), events.dtype)
    filled = 0
    for start in range(0, len(events), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        pixel = np.flatnonzero(_IS_SET.take(mask[part], axis=0))  # of 16 for each event
        found = spread[filled : filled + len(pixel)]
        events[part].take(pixel >> 4, out=found, mode="clip")  # all are inside; other modes would copy once more
        found["x"] += (pixel & 15).astype(np.uint16)
        filled += len(pixel)
    return spread


def _evt3_times(words: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Where the time is set from the first upper bits on, the times in microseconds, and what `continued` found.

    Upper bits that change set the lower ones to 0; the same ones again leave them.
    """
    time_at = np.flatnonzero((kinds == _TIME_LOW) | (kinds == _TIME_HIGH))
    is_high = kinds[time_at] == _TIME_HIGH
    start = int(is_high.argmax()) if is_high.any() else len(is_high)
    time_at, is_high = time_at[start:], is_high[start:]
    if len(time_at) == 0:
        return time_at, time_at, {}
    bits = (words[time_at] & 0xFFF).astype(np.int64)
    high_at = np.flatnonzero(is_high)
    high = np.repeat(bits[high_at], np.diff(high_at, append=len(bits)))
    low_at = np.flatnonzero(~is_high | (np.diff(high, prepend=-1) != 0))
    low = np.repeat(np.where(is_high, 0, bits)[low_at], np.diff(low_at, append=len(bits)))
    return time_at, *continued(high << 12 | low, _EVT3_CLOCK_BITS)


_DECODERS = {"EVT2": _decode_evt2, "EVT3": _decode_evt3}


def read_dat(source: Source) -> Reading:
    """Read a DAT file: after the header a byte with the type of events, one with their size, 8, and the events.

    An event has 32 bits of time in microseconds, which wrap, and a word: 14 bits x, 14 bits y, 4 bits polarity; before
    version 2, 9 bits x, 8 bits y, 1 bit polarity. Both are little-endian. A header that names no version is of an old
    file if no word has more than these 18 bits.
    """
    raw, counts = source.raw, Counts()
    lines, at = _header(raw)
    if at == 0:
        raise source.error(0, f"expected a header of lines such as % Version 2, got {raw[:16]!r}")
    if gray := re.search(r"\b(EM|APS)\b", lines.get("data", "")):
        raise source.error(0, f"expected CD events, got a header that names {gray[0]} events")
    if raw[at : at + 2] not in _DAT_HEADS:
        got = raw[at : at + 2].hex(" ") or "the end of the file"
        raise source.error(at, f"expected events of type 0 or 12 and of 8 bytes, got {got}")
    at += 2
    stop = source.whole(at, 8, counts)
    time, word = np.frombuffer(raw, "<u4", (stop - at) // 4, at).reshape(-1, 2).T
    version = lines.get("version", "")
    is_old = version.startswith(("0", "1")) or not version and not (word >> 18).any()
    x_bits, y_bits = (9, 8) if is_old else (14, 14)
    y, p = word >> x_bits & (1 << y_bits) - 1, word >> x_bits + y_bits & 1
    events = camera_events(word & (1 << x_bits) - 1, y, time.astype(np.int64), p, _DAT_CLOCK_BITS, counts)
    return Reading(source.path, events, lambda index: at + 8 * index, "Prophesee DAT", "", _sensor(lines), counts)


def write_dat(file: BinaryIO, events: np.ndarray, sensor: Sensor = None) -> None:
    """Write a DAT file of version 2; UserError for events that it cannot hold."""
    _check_fit(events, "DAT", 14, _DAT_CLOCK_BITS)
    size = f"% Width {sensor[0]}\n% Height {sensor[1]}\n" if sensor else ""
    file.write(f"% Data file containing CD events\n% Version 2\n{size}".encode() + _DAT_HEADS[1])
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = events["t"]
    words[:, 1] = (
        events["x"].astype(np.uint32) | events["y"].astype(np.uint32) << 14 | events["p"].astype(np.uint32) << 28
    )
    file.write(words.data)


def write_evt2(file: BinaryIO, events: np.ndarray, sensor: Sensor = None) -> None:
    """Write a RAW file of EVT 2.0; UserError for events that it cannot hold."""
    _check_fit(events, "EVT 2.0", 11, _EVT2_CLOCK_BITS)
    width, height = sensor or (int(events["x"].max()) + 1, int(events["y"].max()) + 1)
    size = f"% format EVT2;height={height};width={width}\n% geometry {width}x{height}\n"
    file.write(f"% evt 2.0\n{size}% end\n".encode())
    high, low = events["t"] >> 6, (events["t"] & 63).astype(np.uint32)
    is_new = np.diff(high, prepend=-1) != 0  # a word with the upper bits comes before such an event
    at = np.arange(len(events)) + np.cumsum(is_new)
    words = np.empty(len(events) + np.count_nonzero(is_new), "<u4")
    words[at] = events["p"].astype(np.uint32) << 28 | low << 22 | events["x"].astype(np.uint32) << 11 | events["y"]
    words[at[is_new] - 1] = 8 << 28 | high[is_new]
    file.write(words.data)


def _check_fit(events: np.ndarray, name: str, bits: int, clock_bits: int) -> None:
    """Raise UserError unless pixels fit into `bits`, and times ascend in a range that is read without wraps."""
    most, time = 2**clock_bits - 2 ** (clock_bits - 3), events["t"]
    for axis in "xy":
        if (highest := int(events[axis].max())) >= 2**bits:
            raise UserError(f"{name} has {axis} from 0 to {2**bits - 1}, got {highest}")
    if (np.diff(time) < 0).any() or time[0] < 0 or time[-1] >= most:
        found = f"from {time.min()} to {time.max()}"
        raise UserError(f"{name} needs times in ascending order, from 0 to {most - 1} us, got times {found}")
