"""What a reader of a format takes and gives: a `Source`, a `Reading`, or an error that says what is wrong."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping

import numpy as np

from tools.errors import UserError

from . import EVENT
from .times import continued

PathLike = str | os.PathLike
MOST_DROPPED = 0.5  # of the events; a recording is damaged if more are impossible, off the sensor or out of order
LEFT_OUT = ("truncated", "impossible")  # those of `Reading.counts` that only a lenient reader has


class EventFormatError(UserError):
    """A file differs from its format: which file, at which byte, what was expected, and what was found."""

    def __init__(self, path: PathLike, offset: int, problem: str):
        super().__init__(path, offset, problem)  # all three as `args`, so that worker processes can pickle it

    def __str__(self) -> str:
        path, offset, problem = self.args
        return f"{path}, byte {offset}: {problem}"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to be read.

    If `lenient`, a reader leaves out and counts a damaged end and events that cannot be. `columns` are the names of the
    columns of a text.
    """

    path: PathLike
    raw: bytes
    lenient: bool = False
    start: int = 0  # bytes of the file before `raw`, such as a byte-order mark
    columns: tuple[str, ...] = ()

    def error(self, offset: int, problem: str) -> EventFormatError:
        """The error that says what is wrong at a byte of `raw`."""
        return EventFormatError(self.path, self.start + offset, problem)

    def whole(self, start: int, size: int, counts: "Counts") -> int:
        """Where the last whole event of `size` bytes ends, the first of them beginning at `start`."""
        rest = (len(self.raw) - start) % size
        if rest and not self.lenient:
            problem = f"expected events of {size} bytes each, got a part of one: truncated"
            raise self.error(len(self.raw), problem)
        if rest:
            counts["truncated"] += 1
        return len(self.raw) - rest

    def leave_out(
        self,
        wrong: np.ndarray,
        counts: "Counts",
        error_of: Callable[[int], EventFormatError],
        among: int | None = None,
    ) -> None:
        """Count impossible events, bool [N]; unless lenient, or if most events are, raise the error of the first.

        `among`: the number of events, if N counts other words as well.
        """
        number = int(np.count_nonzero(wrong))
        if number and (not self.lenient or number > MOST_DROPPED * (len(wrong) if among is None else among)):
            raise error_of(int(wrong.argmax()))
        add_found(counts, {"impossible": number})


Counts = collections.Counter  # {what: how often}; see `Reading`


@dataclasses.dataclass(frozen=True)
class Reading:
    """The events of a file, of which there is at least one, on their sensor or not, in the order of the file.

    `counts` says what else was found, by name: "special", "external", "invalid", ... words that are not events;
    "truncated" ends and "impossible" events that a lenient reader left out; "clock wraps" and "clock resets", after
    which times go on.
    """

    path: PathLike
    events: np.ndarray  # [N] of dtype `EVENT`
    byte_of: Callable[[int], int] = lambda index: 0  # the first byte of an event; 0 where the format does not say
    format: str = "array"
    camera: str = ""  # as the file names it, if it does
    sensor: tuple[int, int] | None = None  # (width, height) of the camera, if the format or the file says
    counts: Counts = dataclasses.field(default_factory=Counts)

    def __post_init__(self):
        if len(self.events) == 0:
            others = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if count)
            raise EventFormatError(self.path, 0, f"expected events, got {others or 'none'}")


def add_found(counts: Counts, found: Mapping[str, int]) -> None:
    """Add what was found to the counts, without what was not."""
    counts.update({what: int(count) for what, count in found.items() if count})


def camera_events(
    x: np.ndarray, y: np.ndarray, t: np.ndarray, p: np.ndarray, clock_bits: int | None, counts: Counts
) -> np.ndarray:
    """Events [N] of dtype `EVENT`, whose times go on where the clock of `clock_bits` bits wraps or is set to zero.

    Both are counted in `counts`; None: times go on already. Shape: x, y, t (int64, in microseconds), p [N].
    """
    if clock_bits is not None:
        t, found = continued(t, clock_bits)
        add_found(counts, found)
    events = np.empty(len(t), EVENT)
    events["x"], events["y"], events["t"], events["p"] = x, y, t, p
    return events
