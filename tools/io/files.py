"""Files that appear whole or not at all, locked folders, and reading with limits."""

import contextlib
import fcntl
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tools.errors import UserError

MOST_TEXT = 2**30  # bytes of a text file that is read


def is_folder_or_device(path: str | Path) -> bool:
    """Whether a folder, pipe or device is at `path`; reading a pipe may wait forever."""
    return Path(path).exists() and not Path(path).is_file()


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file; UserError if it has more than `most` bytes, or is a folder, pipe or device."""
    if is_folder_or_device(path):
        raise UserError(f"{path} is not a file")
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > most:
            raise UserError(f"{path} has more than {most} bytes")
        file.seek(0)
        return file.read(size)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Write a file so that other processes see all of it or nothing; its folder is made if necessary.

    `write` is called with the open binary file; the replaced file gets the name `previous`. If anything fails, `path`
    is unchanged, and an OSError names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        with open(part, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # otherwise, after a power failure, the new name may be there without the content
        if previous is not None and path.exists():
            _also_named(path, previous)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # for example a full disk
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
        raise


def _part(path):
    """A name beside `path` that no other process uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # unlike tempfile's, readable by other users


def _also_named(path, name):
    """Hard-link `path` to `name`, replacing `name`; `path` exists throughout."""
    link = _part(path)
    try:
        os.link(path, link)
    except OSError:  # on file systems without hard links, `path` is missing for a moment
        os.replace(path, name)
    else:
        os.replace(link, name)
        link.unlink(missing_ok=True)  # os.replace leaves it if `name` is the same file already


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Context manager that locks a folder; UserError if another process has locked it."""
    with open(Path(folder, ".lock"), "a") as file:  # the lock ends with the process, however that ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is using {folder}") from error
        yield


def make_folder_of_now(parent: Path, ending: str = "") -> Path:
    """Make a new folder <parent>/<time><ending>, with a number if another process has made it already."""
    parent.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}{ending}"
    for attempt in itertools.count(1):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):  # made by another process in the same second
            folder.mkdir()
            return folder


def check_writable(folder: str | Path) -> None:
    """Raise PermissionError if no file can be created in a folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{Path(folder).resolve()} is not writable")


def remove_parts(folder: str | Path) -> None:
    """Remove half-written files of killed processes from a folder that nobody else writes to."""
    for part in Path(folder).glob(f"*.{'[0-9a-f]' * 32}.part"):
        part.unlink(missing_ok=True)
