"""Readers of events in arrays of NumPy (`.npy`, `.npz`) and MATLAB (`.mat`), as other libraries write them."""

import io
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

from tools.errors import UserError
from tools.io import npy

from . import EVENT
from .reading import Counts, EventFormatError, PathLike, Reading, Source, add_found
from .times import unwrapped

MAX_ARRAY_BYTES = 2**31  # of all arrays in a compressed file; no recording has more
MOST_DEFLATED = 1100  # deflate packs at most 1032 to 1
_SPELLINGS = {
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "t": ("t", "ts", "timestamp", "timestamps", "time", "times"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}


def columns_named(names: Iterable[str]) -> dict[str, str]:
    """Which of some names are those of x, y, t and p, in any of the spellings of libraries: {"x": name, ...}."""
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(name.lower(), name)
        known[name] = name  # an exact spelling counts more
    found = {column: [known[one] for one in spellings if one in known] for column, spellings in _SPELLINGS.items()}
    return {column: same[0] for column, same in found.items() if same}


def read_npy(source: Source) -> Reading:
    """Read an array, as tonic writes it; see `_from_table`."""
    return _read_numpy(source, "NumPy array", _load_npy)


def read_npz(source: Source) -> Reading:
    """Read an archive of arrays t, x, y, p, as SpikingJelly writes it, or of one array (see `_from_table`).

    The names may be spelt as in `columns_named`; other arrays beside them are left out, and numbers or objects beside
    one array.
    """
    return _read_numpy(source, "NumPy archive", _load_npz)


Table = np.ndarray | dict[str, np.ndarray]


def _read_numpy(source: Source, name: str, load: Callable[[bytes], Table]) -> Reading:
    try:
        table = load(source.raw)
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged files
        raise source.error(0, f"expected an array, or an archive of t, x, y, p: {error}") from error
    return _from_table(source, name, table)


def _from_table(source: Source, name: str, table: Table) -> Reading:
    """Events of arrays or fields x, y, t, p, with the time in microseconds; or of four columns.

    Those, as in tonic's DVS-Gesture, are x, y, p and the time in milliseconds.
    """
    names = table.keys() if isinstance(table, dict) else table.dtype.names
    if names:
        found = columns_named(names)
        if len(found) < 4:
            raise source.error(0, f"expected arrays or fields x, y, t, p, or one array, got {sorted(names)}")
        return from_columns(source, **{column: table[one] for column, one in found.items()}, format=name)
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise source.error(0, f"expected numbers [N, 4] of x, y, p, t, got {table.dtype} {table.shape}")
    x, y, p, milliseconds = table.T
    microseconds = milliseconds.astype(np.float64) * 1000  # the array's own type may be too narrow for them
    time = np.rint(microseconds)
    rounding = np.finfo(table.dtype if table.dtype.kind == "f" else np.float64).eps
    is_whole = np.isclose(microseconds, time, rtol=2 * rounding, atol=1e-3)
    return from_columns(source, x, y, np.where(is_whole, time, microseconds), p, format=name)


def _load_npy(raw: bytes) -> np.ndarray:
    npy.check_npy(io.BytesIO(raw), len(raw))
    return np.load(io.BytesIO(raw), allow_pickle=False)


def _load_npz(raw: bytes) -> Table:
    """The arrays of one recording; UserError unless the headers in the archive describe one of a sensible size."""
    shapes = npy.check_npz(io.BytesIO(raw), min(MAX_ARRAY_BYTES, MOST_DEFLATED * len(raw)), skip_objects=True)
    names = list(columns_named(shapes).values())
    if len(names) < 4:  # then it should be one array
        names = [name for name, shape in shapes.items() if len(shapes) == 1 or math.prod(shape) != 1] or list(shapes)
        if len(names) > 1:
            return dict.fromkeys(shapes, np.empty(0))
    lengths = {shapes[name][:1] for name in names}
    if len(lengths) != 1:
        raise UserError(f"arrays of one length are needed, got {lengths}")
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        loaded = {name: archive[name] for name in names}
    return loaded if len(loaded) == 4 else loaded[names[0]]


def read_mat(source: Source) -> Reading:
    """Read a MATLAB 5 file of DVS-CIFAR10, made by the data set's dat2mat.m: the variable `out1`.

    Its six columns are the time in microseconds, two unused ones, x, y and polarity; if there are four, t, x, y, p.

    Note: "MAT-File Format" of The MathWorks, chapter 1. SciPy's reader is not used: a damaged file can crash Python.
    """
    path, raw, others = source.path, memoryview(source.raw), []  # a view, as parts of bytes would be copies
    if raw[:6] != b"MATLAB" or raw[126:128] != b"IM":
        raise EventFormatError(path, 0, f"expected a little-endian MATLAB 5 file, got {source.raw[:6]!r}")
    at = 128
    while at < len(raw):
        kind, body, following = _mat_element(path, raw, at)
        if kind == _MAT_COMPRESSED:
            kind, body, _ = _mat_element(path, memoryview(_inflated(path, at, body)), 0)
        if kind == _MAT_MATRIX:
            name, table = _mat_table(path, body)
            if table is not None:
                return from_out1(source, table)
            others.append(name)
        at = following
    raise EventFormatError(path, len(raw), f"expected the variable out1, got {', '.join(others[:20]) or 'none'}")


def from_out1(source: Source, table: np.ndarray) -> Reading:
    """Events of the variable out1 [N, 4] or [N, 6]; see `read_mat`."""
    return from_columns(source, table[:, -3], table[:, -2], table[:, 0], table[:, -1], format="MATLAB")


def _inflated(path: PathLike, at: int, body: memoryview) -> bytes:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(body, min(MAX_ARRAY_BYTES, MOST_DEFLATED * len(body)))
    except zlib.error as error:
        raise EventFormatError(path, at, f"expected compressed data: {error}") from error
    if not inflater.eof:
        raise EventFormatError(path, at, "expected the end of the compressed data: truncated")
    return content


def _mat_element(path: PathLike, raw: memoryview, at: int) -> tuple[int, memoryview, int]:
    """The data element at byte `at`: its type, content, and where the next one starts.

    A small element has its type and size in one word.
    """
    if len(raw) - at < 8:
        raise EventFormatError(path, at, "expected a data element, got the end of the file: truncated")
    kind, size = (int(word) for word in np.frombuffer(raw, "<u4", 2, at))
    start = at + 8
    if kind >> 16:
        kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
    if size > len(raw) - start:
        raise EventFormatError(path, at, f"expected {size} bytes, got {len(raw) - start}: truncated")
    end = start + size
    return kind, raw[start:end], end if kind == _MAT_COMPRESSED else end + (at - end) % 8


def _mat_table(path: PathLike, body: memoryview) -> tuple[str, np.ndarray | None]:
    """The name of a matrix element, and its content as [N, 4] or [N, 6] if it is the variable out1."""
    _, _, at = _mat_element(path, body, 0)  # flags
    _, dims, at = _mat_element(path, body, at)
    _, name, at = _mat_element(path, body, at)
    kind, content, _ = _mat_element(path, body, at)  # real part
    if name != b"out1":
        return bytes(name[:63]).decode(errors="replace"), None
    shape = tuple(np.frombuffer(dims[: len(dims) // 4 * 4], "<i4").tolist())
    numbers = np.dtype(_MAT_NUMBERS.get(kind, "V1"))
    fits = len(shape) == 2 and shape[1] in (4, 6) and numbers.kind != "V"
    if not fits or shape[0] * shape[1] * numbers.itemsize != len(content):
        raise EventFormatError(path, 0, f"expected out1 [N, 6] or [N, 4], got {shape}, {len(content)} bytes")
    return "out1", np.frombuffer(content, numbers).reshape(shape, order="F")


def from_columns(
    source: Source,
    x: np.ndarray,
    y: np.ndarray,
    t: np.ndarray,
    p: np.ndarray,
    byte_of: Callable[[int], int] = lambda index: 0,
    counts: Counts | None = None,
    **about: Any,
) -> Reading:
    """Join four arrays [N] of any numeric types; p is 1 for ON, 0 or -1 for OFF; `about` as in `Reading`.

    Whole times below 0 are those of a counter of 32 bits that was read as signed. An event with a value that the
    conversion to `EVENT` would change is impossible: see `Source.leave_out`.
    """
    given = {"x": x, "y": y, "t": t, "p": p}
    shapes = {column.shape for column in given.values()}
    if len(shapes) != 1 or x.ndim != 1:
        raise source.error(0, f"expected x, y, t, p of one length, got {shapes}")
    for name, column in given.items():
        if column.dtype.kind not in "iufb":
            raise source.error(0, f"expected numbers for {name}, got {column.dtype}")
    if p.dtype.kind == "b":
        given["p"] = p.view(np.uint8)  # a file may have other bytes than 0 and 1
    if p.dtype.kind in "if":
        given["p"] = np.where(p == -1, 0, p)
    counts = Counts() if counts is None else counts
    is_signed = t.dtype.kind in "if" and len(t) > 0 and -(2**31) <= t.min() < 0 and t.max() < 2**31
    if (is_signed and (t == np.floor(t)).all()) or t.dtype == np.uint32:
        given["t"], wraps = unwrapped(t.astype(np.int64) % 2**32, 32)
        add_found(counts, {"clock wraps": wraps})
    past = {"x": 2**16, "y": 2**16, "t": 2**53 if t.dtype.kind == "f" else 2**62, "p": 2}  # floats skip numbers there
    fits = {name: _is_whole(column, past[name]) for name, column in given.items()}

    def error_of(index: int) -> EventFormatError:
        name = next(name for name, of_these in fits.items() if not of_these[index])
        unit = " in microseconds" if name == "t" else ""
        expected = f"a whole {name} from 0 to {past[name] - 1}{unit}"
        return source.error(byte_of(index), f"event {index}: expected {expected}, got {given[name][index]}")

    kept: Sequence[int] = range(len(x))
    if not all(of_these.all() for of_these in fits.values()):
        possible = np.logical_and.reduce([*fits.values()])
        source.leave_out(~possible, counts, error_of)
        kept = np.flatnonzero(possible).tolist()
        given = {name: column[possible] for name, column in given.items()}
    events = np.empty(len(given["x"]), EVENT)
    for name, column in given.items():
        events[name] = column
    return Reading(source.path, events, lambda index: byte_of(kept[index]), counts=counts, **about)


def _is_whole(column: np.ndarray, past: int) -> np.ndarray:
    """Which numbers are whole, and from 0 to less than `past`."""
    fits = (column >= 0) & (column < past)
    return fits & (column == np.floor(column)) if column.dtype.kind == "f" else fits


def write_npy(file: BinaryIO, events: np.ndarray) -> None:
    """Write an array with the fields x, y, t and p."""
    np.save(file, events)


def write_npz(file: BinaryIO, events: np.ndarray) -> None:
    """Write an archive of the arrays t, x, y and p, as SpikingJelly does."""
    np.savez(file, **{name: events[name] for name in "txyp"})
