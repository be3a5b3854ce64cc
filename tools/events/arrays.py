"""Readers of events in arrays of NumPy (`.npy`, `.npz`) and MATLAB (`.mat`), as other libraries write them."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from . import EVENT
from .errors import EventFormatError, read_bytes, some

MAX_ARRAY_BYTES = 2**31  # of one array in a compressed file: more is no recording
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}


def read_array(path):
    """Arrays as SpikingJelly (`.npz` with t, x, y, p) and tonic (`.npy`) write them.

    A `.npy` file is a structured array with the fields x, y, t, p, or has the columns x, y, p and the time in
    milliseconds, as in tonic's DVS-Gesture.
    """
    raw = read_bytes(path)
    if Path(path).suffix.lower() == ".npz":
        return from_columns(path, **{name: _npy(path, _member(path, raw, f"{name}.npy")) for name in "xytp"})
    array = _npy(path, raw)
    if array.dtype.names:
        if not set("xytp") <= set(array.dtype.names):
            raise EventFormatError(path, 0, f"expected the fields x, y, t, p, got {array.dtype.names}")
        return from_columns(path, **{name: array[name] for name in "xytp"})
    if array.ndim != 2 or array.shape[1] != 4:
        raise EventFormatError(path, 0, f"expected [N, 4] of x, y, p, t, got {array.shape}")
    if array.dtype.kind not in "iuf":
        raise EventFormatError(path, 0, f"expected numbers, got {array.dtype}")
    x, y, p, milliseconds = array.T
    # Not in the array's own type, which may be too narrow for microseconds.
    return from_columns(path, x, y, np.rint(milliseconds.astype(np.float64) * 1000), p)


def _member(path, raw, name):
    """The content of one file in a zip archive; an error if it would unpack to more than any recording has."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entry = archive.getinfo(name)
            size = entry.file_size
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # numpy writes no others
                raise EventFormatError(path, 0, f"expected {name} stored or deflated")
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
    raw = read_bytes(path)
    if raw[:6] != b"MATLAB" or raw[126:128] != b"IM":
        raise EventFormatError(path, 0, f"expected a little-endian MATLAB 5 file, got {raw[:6]!r}")
    at = 128
    while at < len(raw):
        kind, body, following = _mat_element(path, raw, at)
        if kind == _MAT_COMPRESSED:
            kind, body, _ = _mat_element(path, _inflated(path, at, body), 0)
        if kind == _MAT_MATRIX and (table := _mat_table(path, body)) is not None:
            p = table[:, -1]
            return from_columns(path, table[:, -3], table[:, -2], table[:, 0], np.where(p == -1, 0, p))
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


def from_columns(path, x, y, t, p):
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
    return some(path, 0, events)
