"""The labels of DVS-Gesture's recordings."""

import csv
import io

from tools.io.files import read_bytes

from .reading import EventFormatError, PathLike

GESTURES = 11
MAX_LABEL_BYTES = 2**20


def read_gesture_labels(path: PathLike) -> list[tuple[int, int, int]]:
    """Read the gestures of a recording of DVS-Gesture from its `_labels.csv`: (class from 0, start, end), in us."""
    raw = read_bytes(path, MAX_LABEL_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))  # perhaps with a byte-order mark
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
