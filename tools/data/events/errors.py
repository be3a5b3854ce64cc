"""What a file of events holds, and what is wrong with it."""

from collections.abc import Callable
from typing import NamedTuple

from tools.io.files import is_folder_or_device

MAX_FILE_BYTES = 2**32  # more is no recording of these data sets, and would not fit into memory


class EventFormatError(ValueError):
    """A file is not what it should be: which file, where in it, what was expected, and what came."""

    def __init__(self, path, offset, problem):
        super().__init__(path, offset, problem)  # all three, so that it can be pickled: workers raise it too

    def __str__(self):
        path, offset, problem = self.args
        return f"{path}, byte {offset}: {problem}"


class Reading(NamedTuple):
    """The events of a file, [N] of the dtype `EVENT`, and a function: index of an event -> its first byte."""

    events: object
    byte_of: Callable


def open_file(path):
    """A file, open for reading its bytes; an `EventFormatError` if it is none but a folder, pipe or device."""
    if is_folder_or_device(path):
        raise EventFormatError(path, 0, "expected a file, got a folder, pipe or device")
    return open(path, "rb")


def read_bytes(path, most=MAX_FILE_BYTES):
    """The content of a file; an `EventFormatError` if it is empty or huge, or none."""
    with open_file(path) as file:
        size = file.seek(0, 2)
        if not 0 < size <= most:
            came = "an empty file" if size == 0 else f"{size} bytes"
            raise EventFormatError(path, 0, f"expected events or labels, at most {most} bytes, got {came}")
        file.seek(0)
        return file.read(size)


def some(path, offset, found):
    """What was found in a file up to a byte; an `EventFormatError` if that is nothing."""
    if len(found) == 0:
        raise EventFormatError(path, offset, "expected events or labels, got none")
    return found
