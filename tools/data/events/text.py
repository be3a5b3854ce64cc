"""Reader and writer of events in text: a line for each, as in the event-camera data set of RPG, "t x y p".

Note: https://rpg.ifi.uzh.ch/davis_data.html
"""

import io
import itertools
import math
import re
from array import array
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from .arrays import columns_named, from_columns
from .reading import Counts, EventFormatError, Reading, Source

_BLANKS = bytes.maketrans(b',;\t\r"', b"     ")
_WORDS = {b"true": b"1", b"false": b"0"}  # polarities as pandas and others write them
_NUMBER = re.compile(rb"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SIDE = re.compile(rb"[1-9][0-9]{0,4}")  # of a sensor, in pixels
_USUAL = {3: ("t", "x", "y"), 4: ("t", "x", "y", "p")}  # columns of a file that does not name them
_LONGEST_LINE = 4096  # bytes of a line that are looked at
_WHOLE = re.compile(rb"[-+]?[0-9]+\.0{0,5}|[-+]?[0-9.]+[eE].*")  # as pandas and NumPy write whole floats
_DIGITS = 18  # of a number that int64 holds in any case
_ROWS_WRITTEN = 2**16  # at once
_HINT = "name them with --columns of python -m tools.data.events {info,convert}"


class _Head(NamedTuple):
    """What is before the first event."""

    end: int
    line: int  # the number of the first event's line, from 1
    fields: list[bytes]  # of the first event
    names: tuple[str, ...]  # of the columns; () if the file does not name them
    sensor: tuple[int, int] | None


def is_text(head: bytes) -> bool:
    """Whether a file that begins with these bytes is printable, and its first line of data has events."""
    if re.search(rb"[^\t\r\n\x20-\x7e]", head):
        return False
    found = _head(head)
    return bool(found.names) or (len(found.fields) in _USUAL and all(map(_NUMBER.fullmatch, found.fields)))


def _fields(line: bytes) -> list[bytes]:
    return [_WORDS.get(field.lower(), field) for field in line.translate(_BLANKS).split()]


def _names(fields: list[bytes], is_comment: bool) -> tuple[str, ...]:
    """The names of columns, if these are such, in a comment nothing else; otherwise ()."""
    names = tuple(field.decode(errors="replace") for field in fields)
    known = columns_named(names)
    return names if {"t", "x", "y"} <= known.keys() and (len(known) == len(names) or not is_comment) else ()


def _head(raw: bytes, columns: tuple[str, ...] = ()) -> _Head:
    """Find the first event, after comments, names of the columns, and a line with the width and height.

    With `columns`, a line of other names is left out.
    """
    names, sensor, at = (), None, 0
    for number in itertools.count(1):
        end = raw.find(b"\n", at) + 1 or len(raw)
        line = raw[at : min(end, at + _LONGEST_LINE)].strip()
        is_comment = line.startswith((b"#", b"%"))
        fields = _fields(line.lstrip(b"#%").partition(b"#")[0])
        numbers = [field for field in fields if _NUMBER.fullmatch(field)]
        if not names and (found := _names(fields, is_comment)):
            names = ("",) * line.startswith((b",", b";")) + found  # pandas numbers the lines in a column without a name
        elif fields and not is_comment and (numbers or not columns):
            is_size = len(fields) == 2 and all(map(_SIDE.fullmatch, fields))
            if sensor or not is_size:
                return _Head(at, number, fields, columns or names, sensor)
            sensor = (int(fields[0]), int(fields[1]))
        if end == len(raw):
            return _Head(end, number, [], columns or names, sensor)
        at = end


def read_text(source: Source) -> Reading:
    """Read events of a line each, separated by blanks, tabs, commas or semicolons; what follows "#" is a comment.

    The columns are those of `source.columns`, or of a line of names, or t, x, y and p; others than these are left out,
    and without p all events are ON. Times with a decimal point are in seconds, whole ones in microseconds; if there are
    both, all are in the unit of most. A line of two whole numbers before all events is the width and height of the
    sensor.

    Times such as 100.0 or 1.0e+02 are refused if all are whole: they are microseconds that were kept as floating-point
    numbers.
    """
    if source.raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise source.error(0, "expected text in ASCII or UTF-8, got UTF-16: save it in the other encoding")
    head = _head(source.raw, source.columns)
    names, told = head.names, ", ".join(head.names)
    if not names and all(map(_NUMBER.fullmatch, head.fields)):
        names = _USUAL.get(len(head.fields), ())
    place = {name: names.index(found) for name, found in columns_named(names).items()}
    if not {"t", "x", "y"} <= place.keys():
        got = f"columns {told}" if told else repr(b" ".join(head.fields)[:60].decode(errors="replace"))
        hint = "" if source.columns else f"; if there are others, {_HINT}"
        raise source.error(head.end, f"line {head.line}: expected columns t, x, y, p, or their names, got {got}{hint}")
    counts = Counts()
    table = _regular(source.raw[head.end :], len(names), place["t"])
    if table is None:
        table = _any(source, head, names, place["t"], counts)
    columns = {name: table[:, at] for name, at in place.items()}
    seconds = columns["t"] / 1e6
    if seconds.any() and _WHOLE.fullmatch(head.fields[place["t"]]) and (seconds == np.floor(seconds)).all():
        problem = "expected times in seconds, or in microseconds as integers, got whole numbers with a decimal point"
        raise source.error(head.end, f"line {head.line}: {problem}")
    columns.setdefault("p", np.ones(len(table), np.uint8))

    def byte_of(index: int) -> int:
        return next(itertools.islice(_lines(source.raw, head), index, None))[1]

    try:
        return from_columns(source, **columns, byte_of=byte_of, format="text", sensor=head.sensor, counts=counts)
    except EventFormatError as error:
        if head.names:
            raise
        path, offset, problem = error.args
        hint = f"if the columns are not {', '.join(names)}, {_HINT}"
        raise EventFormatError(path, offset, f"{problem}; {hint}") from error


def _regular(body: bytes, width: int, t: int) -> np.ndarray | None:
    """Whole numbers [N, `width`] of lines that all look alike, with the time, column `t`, in microseconds.

    Their numbers are separated by one character, and times have equally many decimals or none; None for others.
    """
    body = body.replace(b"\r\n", b"\n") if b"\r" in body else body
    body = body.translate(_BLANKS) + b"\n" * (not body.endswith(b"\n"))
    if body.translate(None, b"0123456789.- \n"):
        return None
    chars = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(chars <= ord(" "))
    if len(ends) % width or body.count(b"\n") * width != len(ends) or (chars[ends[width - 1 :: width]] != 10).any():
        return None
    lengths, t_ends = np.diff(ends, prepend=-1) - 1, ends[t::width]
    minus, dots = np.flatnonzero(chars == ord("-")), np.flatnonzero(chars == ord("."))
    is_sign = (chars[minus - 1] <= ord(" ")) & (chars[minus + 1] >= ord("0"))
    if lengths.min() < 1 or lengths.max() > _DIGITS or not is_sign.all():
        return None
    decimals = 6  # of microseconds
    if len(dots):
        decimals = int(t_ends[0] - dots[0]) - 1
        if len(dots) != len(t_ends) or (dots != t_ends - decimals - 1).any() or (chars[dots - 1] < ord("0")).any():
            return None
        if lengths[t::width].max() + 6 - decimals > _DIGITS:
            return None
        body = body.translate(None, b".")
    table = np.fromstring(body, np.int64, sep=" ").reshape(-1, width)
    if decimals > 6:
        unit = 10 ** (decimals - 6)
        table[:, t] = (table[:, t] + unit // 2) // unit
    elif decimals < 6:
        table[:, t] *= 10 ** (6 - decimals)
    return table


def _lines(raw: bytes, head: _Head) -> Iterator[tuple[int, int, bytes, list[bytes]]]:
    """Number, first byte, content and fields of each line that has any."""
    at = head.end
    for number, line in enumerate(io.BytesIO(raw[at:]), head.line):
        if fields := _fields(line[:_LONGEST_LINE].partition(b"#")[0]):
            yield number, at, line, fields
        at += len(line)


def _any(source: Source, head: _Head, names: tuple[str, ...], t: int, counts: Counts) -> np.ndarray:
    """Numbers [N, columns] of lines of any kind, with the time, column `t`, in microseconds."""
    values, decimal, whole = array("d"), 0, 0
    for number, at, line, fields in _lines(source.raw, head):
        if len(fields) != len(names) or not all(map(_NUMBER.fullmatch, fields)):
            if source.lenient and not line.endswith(b"\n"):
                counts["truncated"] += 1
                break
            if not source.lenient:
                expected = f"expected {len(names)} numbers ({', '.join(names)})"
                raise source.error(at, f"line {number}: {expected}, got {line[:60].strip().decode(errors='replace')!r}")
            values.extend([math.nan] * len(names))  # an impossible event
            continue
        values.extend(map(float, fields))
        if fields[t].lstrip(b"+-").isdigit():
            whole += 1
        else:
            decimal += 1
    table = np.frombuffer(values).reshape(-1, len(names)) if values else np.empty((0, len(names)))
    if decimal and decimal >= whole:  # one that is damaged must not change the unit of all
        table[:, t] = np.rint(table[:, t] * 1e6)
    return table


def write_text(file: BinaryIO, events: np.ndarray) -> None:
    """Write lines "t x y p", with the time in seconds."""
    _write(file, "%d.%06d %d %d %d\n", [*np.divmod(events["t"], 10**6), events["x"], events["y"], events["p"]])


def write_csv(file: BinaryIO, events: np.ndarray) -> None:
    """Write a line "t,x,y,p", and lines of these, with the time in microseconds."""
    file.write(b"t,x,y,p\n")
    _write(file, "%d,%d,%d,%d\n", [events[name] for name in "txyp"])


def _write(file: BinaryIO, line: str, columns: list[np.ndarray]) -> None:
    for start in range(0, len(columns[0]), _ROWS_WRITTEN):
        rows = zip(*(column[start : start + _ROWS_WRITTEN].tolist() for column in columns))
        file.write("".join(map(line.__mod__, rows)).encode())
