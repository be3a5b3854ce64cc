"""The result of reading a file of events: a `Reading`, or an error that says what is wrong with the file."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from tools.errors import UserError

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
    byte_of: Callable[[int], int] = lambda index: 0  # the first byte of an event; 0 where the format does not tell

    def __post_init__(self):
        if len(self.events) == 0:
            raise EventFormatError(self.path, 0, "expected events, got none")
