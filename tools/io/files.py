"""The cache folder, files from anyone, and files that appear whole or not at all."""

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path

from tools.errors import UserError

MOST_TEXT = 2**30  # bytes of a file of results


def is_no_file(path):
    """Whether something else is at a path: a folder, or a pipe or device, for which a reader may wait without end."""
    path = Path(path)
    return path.exists() and not path.is_file()


def read_bytes(path, most):
    """The content of a file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be read.
        ValueError: naming it, if it has more, or is no file but a folder, pipe or device.
    """
    if is_no_file(path):
        raise UserError(f"{path} is not a file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most} bytes")
    return content


def write_text_atomically(path, text):
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path, write, previous=None):
    """Write a file so that other processes see the whole of it or nothing; its folder is made if need be.

    Args:
        path: `Path` of the file.
        write: function that is given the open binary file.
        previous: None, or the name that the file that was there gets.

    Raises:
        OSError: naming the file, if it cannot be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # not tempfile, which would hide it from other users
    try:
        with open(part, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # else a machine that loses power may keep the new name and not the content
        if previous is not None and path.exists():
            _also_named(path, previous)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as for a full disk
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
        raise


def _also_named(path, name):
    """Give a file a second name, which a file that has it loses; there is no moment without the first one."""
    link = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        os.link(path, link)
    except OSError:  # some file systems have no such links: there, for a moment, there is the second name alone
        os.replace(path, name)
    else:
        os.replace(link, name)


@contextlib.contextmanager
def alone_in(folder):
    """Context manager: no other process is in such a block for the same folder.

    Raises:
        ValueError: if one is.
    """
    with open(Path(folder, ".lock"), "a") as file:  # the lock ends with the process, however that ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is at work in {folder}") from error
        yield


def make_folder_of_now(parent, ending=""):
    """Make and return <parent>/<time><ending>, or with a number behind it: a folder that no other process is given."""
    parent.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}{ending}"
    for attempt in range(1, 1000):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # made by another process in the same second
            continue
    raise FileExistsError(f"{parent} has 999 folders named {name}")


def check_writable(folder):
    """Raise PermissionError if no file can be made in a folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{Path(folder).resolve()} cannot be written into")


def remove_parts(folder):
    """Remove what processes that were killed while they wrote have left in a folder that nobody else writes into."""
    for part in Path(folder).glob(f"*.{'[0-9a-f]' * 32}.part"):
        part.unlink(missing_ok=True)
