"""What is wrong with a file of events."""

from pathlib import Path


class EventFormatError(ValueError):
    """A file is not what it should be: which file, where in it, what was expected, and what came."""

    def __init__(self, path, offset, problem):
        super().__init__(path, offset, problem)  # all three, so that it can be pickled: workers raise it too

    def __str__(self):
        path, offset, problem = self.args
        return f"{path}, byte {offset}: {problem}"


def read_bytes(path):
    """The content of a file; an `EventFormatError` if it is empty."""
    raw = Path(path).read_bytes()
    if not raw:
        raise EventFormatError(path, 0, "expected events, got an empty file")
    return raw


def some(path, offset, found):
    """What was found in a file up to a byte; an `EventFormatError` if that is nothing."""
    if len(found) == 0:
        raise EventFormatError(path, offset, "expected events or labels, got none")
    return found
