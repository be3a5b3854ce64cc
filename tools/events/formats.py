"""Readers of published formats of event-camera recordings, vectorised; see each for its specification.

All return events [N] of the dtype `EVENT` with the origin in the upper left, and raise `EventFormatError` for a
file that is empty, truncated, damaged or of another format.
"""

import csv
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from . import EVENT

GESTURES = 11
MAX_ARRAY_BYTES = 2**31  # of one array in a compressed file: more is no recording
_AEDAT3_HEADER = np.dtype(
    [("type", "<i2"), ("source", "<i2")]
    + [(name, "<i4") for name in ("size", "ts_offset", "ts_overflow", "capacity", "number", "valid")]
)
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_AEDAT3_TYPES = 14  # special, polarity, frame, IMU6, ... matrix
_POLARITY_TYPE, _POLARITY_BYTES, _POLARITY_TS_OFFSET = 1, 8, 4


class EventFormatError(ValueError):
    """A file is not what it should be: which file, where in it, what was expected, and what came."""

    def __init__(self, path, offset, problem):
        super().__init__(path, offset, problem)  # all three, so that it can be pickled: workers raise it too

    def __str__(self):
        path, offset, problem = self.args
        return f"{path}, byte {offset}: {problem}"


def read_aedat3(path):
    """AEDAT 3.1, the format of DVS-Gesture.

    A text header from "#!AER-DAT3.1" to the line "#!END-HEADER"; then little-endian packets, each with a header of
    28 bytes. A polarity event has 8 bytes: bit 0 valid, bit 1 polarity, bits 2 to 16 y, bits 17 to 31 x; and the
    lower 31 bits of the time, whose upper bits are the packet's overflow counter. Events marked invalid, and packets
    of other types, are left out.

    Note:
        https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    raw = _read(path)
    end = b"#!END-HEADER\r\n"
    if not raw.startswith(b"#!AER-DAT3.1"):
        raise EventFormatError(path, 0, f"expected #!AER-DAT3.1, got {raw[:14]!r}")
    at = raw.find(end) + len(end)
    if at < len(end):
        raise EventFormatError(path, len(raw), "expected a line #!END-HEADER, got the end of the file")
    parts = []
    while at < len(raw):
        header = _packet_header(path, raw, at)
        at += _AEDAT3_HEADER.itemsize
        if header["type"] == _POLARITY_TYPE:
            words = np.frombuffer(raw, "<u4", 2 * header["number"], at).reshape(-1, 2)
            parts.append(_polarity_events(path, words, header["ts_overflow"], at))
        at += header["number"] * header["size"]
    return _some(path, len(raw), np.concatenate(parts) if parts else np.empty(0, EVENT))


def _packet_header(path, raw, at):
    """The header of the packet at a byte, as a dictionary of numbers that make sense."""
    left = len(raw) - at - _AEDAT3_HEADER.itemsize
    if left < 0:
        raise EventFormatError(path, at, f"expected a packet header of 28 bytes, got {len(raw) - at}: truncated")
    fields = np.frombuffer(raw, _AEDAT3_HEADER, 1, at)[0]
    header = dict(zip(_AEDAT3_HEADER.names, fields.item()))
    if not 0 <= header["type"] < _AEDAT3_TYPES:
        raise EventFormatError(path, at, f"expected an event type from 0 to {_AEDAT3_TYPES - 1}, got {header['type']}")
    if header["size"] <= 0 or header["number"] < 0 or not 0 <= header["valid"] <= header["number"]:
        raise EventFormatError(path, at, f"expected sizes and numbers of events that agree, got {header}")
    if header["number"] * header["size"] > left:
        wanted = f"{header['number']} events of {header['size']} bytes"
        raise EventFormatError(path, at, f"expected {wanted}, got {left} bytes: truncated")
    layout = (header["size"], header["ts_offset"])
    if header["type"] == _POLARITY_TYPE and layout != (_POLARITY_BYTES, _POLARITY_TS_OFFSET):
        raise EventFormatError(path, at, f"expected polarity events of 8 bytes with the time at 4, got {layout}")
    if header["ts_overflow"] < 0:
        raise EventFormatError(path, at, f"expected an overflow counter from 0, got {header['ts_overflow']}")
    return header


def _polarity_events(path, words, overflow, at):
    data, time = words[:, 0], words[:, 1]
    valid = (data & 1).astype(bool)
    late = np.flatnonzero((time >> 31).astype(bool) & valid)
    if len(late):
        raise EventFormatError(path, at + 8 * late[0] + 4, "expected a time of 31 bits, got a negative one")
    if not valid.all():
        data, time = data[valid], time[valid]
    events = np.empty(len(data), EVENT)
    events["x"] = data >> 17
    events["y"] = (data >> 2) & 0x7FFF
    events["p"] = (data >> 1) & 1
    events["t"] = time
    if overflow:
        events["t"] += overflow << 31
    return events


def read_aedat2(path):
    """AEDAT 2.0 with the addresses of a DVS128, the format of DVS-CIFAR10.

    Header lines that start with "#"; then big-endian pairs of a 32-bit address and a 32-bit time in microseconds.
    Address: bit 0 polarity, bits 1 to 7 x, bits 8 to 14 y, bit 15 external event (left out). The camera counts x from
    the right and y from below, so both are turned round.

    Note:
        https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-2.0.html; the first byte of an
        address is 0, so that it cannot be mistaken for a header line.
    """
    raw = _read(path)
    if not raw.startswith(b"#!AER-DAT2.0"):
        raise EventFormatError(path, 0, f"expected #!AER-DAT2.0, got {raw[:14]!r}")
    at = 0
    while raw[at : at + 1] == b"#":
        line_end = raw.find(b"\n", at)
        if line_end < 0:
            raise EventFormatError(path, at, "expected the end of a header line, got the end of the file")
        at = line_end + 1
    _whole_events(path, raw, at, 8)
    words = np.frombuffer(raw, ">u4", offset=at).reshape(-1, 2)
    address = words[:, 0].astype(np.uint32)
    wide = np.flatnonzero(address >> 16)
    if len(wide):
        raise EventFormatError(path, at + 8 * wide[0], f"expected an address of 16 bits, got {address[wide[0]]:#x}")
    time = words[:, 1].astype(np.int32)
    negative = np.flatnonzero(time < 0)
    if len(negative):
        raise EventFormatError(path, at + 8 * negative[0] + 4, f"expected a time from 0, got {time[negative[0]]}")
    inner = (address >> 15) == 0
    address, time = address[inner], time[inner]
    events = np.empty(len(address), EVENT)
    events["x"] = 127 - ((address >> 1) & 127)
    events["y"] = 127 - ((address >> 8) & 127)
    events["t"] = time
    events["p"] = address & 1
    return _some(path, len(raw), events)


def read_nmnist(path):
    """The .bin format of N-MNIST and N-Caltech101: 40 bits an event.

    Bits from the highest: 8 x, 8 y, 1 polarity, 23 time in microseconds.

    Note:
        Orchard, Jayawant, Cohen and Thakor, Frontiers in Neuroscience 9 (2015) 437, and the data set's readme.
    """
    raw = _read(path)
    _whole_events(path, raw, 0, 5)
    columns = np.frombuffer(raw, np.uint8).reshape(-1, 5)
    events = np.empty(len(columns), EVENT)
    events["x"] = columns[:, 0]
    events["y"] = columns[:, 1]
    events["p"] = columns[:, 2] >> 7
    time = (columns[:, 2] & 127).astype(np.int32)
    for byte in (3, 4):
        time <<= 8
        time |= columns[:, byte]
    events["t"] = time
    return events


def read_array(path):
    """Arrays as SpikingJelly (`.npz` with t, x, y, p) and tonic (`.npy`) write them.

    A `.npy` file is a structured array with the fields x, y, t, p, or has the columns x, y, p and the time in
    milliseconds, as in tonic's DVS-Gesture.
    """
    raw = _read(path)
    if Path(path).suffix == ".npz":
        return _from_columns(path, **{name: _npy(path, _member(path, raw, f"{name}.npy")) for name in "xytp"})
    array = _npy(path, raw)
    if array.dtype.names:
        if not set("xytp") <= set(array.dtype.names):
            raise EventFormatError(path, 0, f"expected the fields x, y, t, p, got {array.dtype.names}")
        return _from_columns(path, **{name: array[name] for name in "xytp"})
    if array.ndim != 2 or array.shape[1] != 4:
        raise EventFormatError(path, 0, f"expected [N, 4] of x, y, p, t, got {array.shape}")
    if array.dtype.kind not in "iuf":
        raise EventFormatError(path, 0, f"expected numbers, got {array.dtype}")
    x, y, p, milliseconds = array.T
    # Not in the array's own type, which may be too narrow for microseconds.
    return _from_columns(path, x, y, np.rint(milliseconds.astype(np.float64) * 1000), p)


def _member(path, raw, name):
    """The content of one file in a zip archive; an error if it would unpack to more than any recording has."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            size = archive.getinfo(name).file_size
            if size > min(MAX_ARRAY_BYTES, 1100 * len(raw)):  # deflate packs at most 1032 to 1
                raise EventFormatError(path, 0, f"expected an array of a recording, got {name} of {size} bytes")
            return archive.read(name)
    except EventFormatError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise EventFormatError(path, 0, f"expected an archive of t, x, y, p: {error}") from error


def _npy(path, raw):
    """The array in the bytes of a .npy file, whose header must agree with their number."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python text, and raises many kinds
        raise EventFormatError(path, 0, f"expected the header of a .npy array: {error}") from error
    count = 1
    for size in shape:
        count *= size
    wanted, came = count * dtype.itemsize, len(raw) - file.tell()
    if dtype.hasobject or min(shape, default=1) < 0 or wanted != came or dtype.itemsize == 0:
        raise EventFormatError(path, file.tell(), f"expected {wanted} bytes of {dtype} {shape}, got {came}")
    try:
        return np.frombuffer(raw, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # more dimensions than numpy has
        raise EventFormatError(path, file.tell(), f"expected an array: {error}") from error


def read_mat(path):
    """MATLAB 5 files of DVS-CIFAR10, made by the data set's dat2mat.m: the variable `out1`.

    Its six columns are the time in microseconds, two more, x, y and polarity; with four, they are t, x, y, p.

    Note:
        "MAT-File Format" of The MathWorks, chapter 1. Read here and not by scipy, which crashes on damaged files.
    """
    raw = _read(path)
    if raw[:6] != b"MATLAB" or raw[126:128] != b"IM":
        raise EventFormatError(path, 0, f"expected a little-endian MATLAB 5 file, got {raw[:6]!r}")
    at = 128
    while at < len(raw):
        kind, body, following = _mat_element(path, raw, at)
        if kind == _MAT_COMPRESSED:
            kind, body, _ = _mat_element(path, _inflated(path, at, body), 0)
        if kind == _MAT_MATRIX and (table := _mat_table(path, body)) is not None:
            p = table[:, -1]
            return _from_columns(path, table[:, -3], table[:, -2], table[:, 0], np.where(p == -1, 0, p))
        at = following
    raise EventFormatError(path, len(raw), "expected the variable out1, got the end of the file")


def _inflated(path, at, body):
    try:
        return zlib.decompressobj().decompress(body, min(MAX_ARRAY_BYTES, 1100 * len(body)))
    except zlib.error as error:
        raise EventFormatError(path, at, f"expected compressed data: {error}") from error


def _mat_element(path, raw, at):
    """(type, content, where the next one starts) of the data element at a byte; small ones have both in one word."""
    if len(raw) - at < 8:
        raise EventFormatError(path, at, "expected a data element, got the end of the file: truncated")
    kind, size = (int(word) for word in np.frombuffer(raw, "<u4", 2, at))
    start = at + 8
    if kind >> 16:
        kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
    if size > len(raw) - start:
        raise EventFormatError(path, at, f"expected {size} bytes, got {len(raw) - start}: truncated")
    end = start + size
    return kind, raw[start:end], end if kind == _MAT_COMPRESSED else max(at + 8, -(-end // 8) * 8)


def _mat_table(path, body):
    """`out1` as [N, 4] or [N, 6], from the content of a matrix element; None for another variable."""
    parts, at = [], 0
    for _ in range(4):  # flags, dimensions, name, real part
        kind, content, at = _mat_element(path, body, at)
        parts.append((kind, content))
    (_, _), (_, dims), (_, name), (kind, content) = parts
    if name != b"out1":
        return None
    shape = tuple(np.frombuffer(dims[: len(dims) // 4 * 4], "<i4").tolist())
    numbers = np.dtype(_MAT_NUMBERS.get(kind, "V1"))
    fits = len(shape) == 2 and shape[0] >= 0 and shape[1] in (4, 6) and numbers.kind != "V"
    if not fits or shape[0] * shape[1] * numbers.itemsize != len(content):
        raise EventFormatError(path, 0, f"expected out1 [N, 6] or [N, 4], got {shape}, {len(content)} bytes")
    return np.frombuffer(content, numbers).reshape(shape, order="F")


def _from_columns(path, x, y, t, p):
    """Events from four arrays of any kind of number, none of which may change by the conversion."""
    shapes = {column.shape for column in (x, y, t, p)}
    if len(shapes) != 1 or x.ndim != 1:
        raise EventFormatError(path, 0, f"expected x, y, t, p of one length, got {shapes}")
    events = np.empty(len(x), EVENT)
    for name, column, low, high in (("x", x, 0, 2**16), ("y", y, 0, 2**16), ("t", t, 0, 2**62), ("p", p, 0, 2)):
        if column.dtype.kind not in "iufb":
            raise EventFormatError(path, 0, f"expected numbers for {name}, got {column.dtype}")
        wrong = np.flatnonzero(~((column >= low) & (column < high)))
        if len(wrong):
            raise EventFormatError(
                path, 0, f"event {wrong[0]}: expected {name} in [{low}, {high}), got {column[wrong[0]]}"
            )
        events[name] = column
        if name != "t" and column.dtype.kind == "f" and (events[name] != column).any():
            raise EventFormatError(path, 0, f"expected whole numbers for {name}")
    return _some(path, 0, events)


def _read(path):
    raw = Path(path).read_bytes()
    if not raw:
        raise EventFormatError(path, 0, "expected events, got an empty file")
    return raw


def _whole_events(path, raw, at, size):
    if (len(raw) - at) % size:
        raise EventFormatError(path, len(raw), f"expected events of {size} bytes each, got a part of one: truncated")


def _some(path, offset, events):
    if len(events) == 0:
        raise EventFormatError(path, offset, "expected events or labels, got none")
    return events


def check_events(events, width, height, path, lenient=False):
    """See that events are on the sensor and in the order of time.

    Args:
        events: [N] of dtype `EVENT`.
        width, height: of the sensor in pixels.
        path: for messages.
        lenient: drop those that are not, instead of raising.

    Returns:
        The events, and {"outside": number dropped, "decreasing": number dropped}.

    Raises:
        EventFormatError: for the first wrong event.
    """
    outside = (events["x"] >= width) | (events["y"] >= height)
    count = int(outside.sum())
    if count and not lenient:
        index = int(outside.argmax())
        raise EventFormatError(path, 0, f"event {index}: expected a pixel of {width}x{height}, got {events[index]}")
    if count:
        events = _some(path, 0, events[~outside])
    time = events["t"]
    early = time[1:] < time[:-1]
    if not early.any():
        return events, {"outside": count, "decreasing": 0}
    if not lenient:
        index = int(early.argmax()) + 1
        raise EventFormatError(
            path, 0, f"event {index}: expected a time of at least {time[index - 1]}, got {time[index]}"
        )
    in_order = time >= np.maximum.accumulate(time)
    return events[in_order], {"outside": count, "decreasing": int((~in_order).sum())}


def _read_aedat(path):
    with open(path, "rb") as file:
        start = file.read(12)
    return read_aedat3(path) if start == b"#!AER-DAT3.1" else read_aedat2(path)


READERS = {".aedat": _read_aedat, ".bin": read_nmnist, ".npy": read_array, ".npz": read_array, ".mat": read_mat}


def read_events(path, width, height, lenient=False):
    """Read a recording in any of the formats, by the suffix of its name, and check its events.

    Args, Returns and Raises are those of `check_events`, and an OSError where the file cannot be opened.
    """
    suffix = Path(path).suffix
    if suffix not in READERS:
        raise EventFormatError(path, 0, f"expected a file {', '.join(READERS)}, got {suffix!r}")
    return check_events(READERS[suffix](path), width, height, path, lenient)


def read_gesture_labels(path):
    """The gestures of a recording of DVS-Gesture, from its `_labels.csv`.

    Returns:
        List of (label from 0, start in microseconds, end in microseconds).
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
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
        if not 1 <= label <= GESTURES or not 0 <= start < end:
            raise EventFormatError(path, 0, f"line {number}: expected class 1 to {GESTURES} and start < end, got {row}")
        gestures.append((label - 1, start, end))
    return _some(path, 0, gestures)
