"""What reading a file of events gives: a `Reading`, or an error that says what is wrong with the file."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from tools.errors import UserError
from tools.io.files import is_folder_or_device

MAX_FILE_BYTES = 2**32  # no recording of these data sets is larger, and it would not fit into memory
PathLike = str | os.PathLike


class EventFormatError(UserError):
    """A file differs from its format: which file, at which byte, what was expected, and what was found."""

    def __init__(self, path: PathLike, offset: int, problem: str):
        super().__init__(path, offset, problem)  # all three as `args`, so that worker processes can pickle it

    def __str__(self) -> str:
        path, offset, problem = self.args
        return f"{path}, byte {offset}: {problem}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """The events of a file, of which there is at least one."""

    path: PathLike
    events: np.ndarray  # [N] of dtype `EVENT`
    byte_of: Callable[[int], int] = lambda index: 0  # of an event, its first; 0 where the format has no such place

    def __post_init__(self):
        if len(self.events) == 0:
            raise EventFormatError(self.path, 0, "expected events, got none")


def read_bytes(path: PathLike, most: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file; EventFormatError if it is a folder or device, is empty, or has more than `most` bytes."""
    if is_folder_or_device(path):
        raise EventFormatError(path, 0, "expected a file, got a folder, pipe or device")
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if not 0 < size <= most:
            found = "an empty file" if size == 0 else f"{size} bytes"
            raise EventFormatError(path, 0, f"expected events or labels, at most {most} bytes, got {found}")
        file.seek(0)
        return file.read(size)
