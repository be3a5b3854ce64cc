"""Read untrusted NumPy files: no code in them is run, and no memory is allocated just because a header claims it."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from tools.errors import UserError

from .files import is_folder_or_device


class PythonObjects(UserError):
    """An array is of Python objects, which loading would unpickle."""


def check_npy(file: IO[bytes], size: int) -> tuple[int, ...]:
    """Check the header of an open .npy file of `size` bytes, and return the shape of its array.

    UserError if it is damaged, describes Python objects (`PythonObjects`), or does not match the length of the file.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy parses the header as Python text, and raises many kinds
        raise UserError(f"expected the header of a .npy array: {error}") from error
    if dtype.hasobject:
        raise PythonObjects(f"expected an array of numbers, got {dtype} {shape}")
    if dtype.itemsize == 0 or min(shape, default=1) < 0:
        raise UserError(f"expected an array of numbers, got {dtype} {shape}")
    wanted, came = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != came:
        raise UserError(f"expected {wanted} bytes of {dtype} {shape}, got {came}")
    return shape


def check_npz(file: IO[bytes], most: int, skip_objects: bool = False) -> dict[str, tuple[int, ...]]:
    """Check an open .npz file before NumPy unpacks it, and return the shapes of its arrays, by name.

    UserError if it claims to hold more than `most` bytes, or not what `np.savez` and `np.savez_compressed` write; or
    Python objects, unless those are to be skipped.
    """
    with zipfile.ZipFile(file) as archive:
        shapes, entries = {}, archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > most:
            raise UserError(f"it claims to hold {claimed} bytes, more than {most}")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{entry.filename} is not stored or deflated, as NumPy packs arrays")
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as array:
                try:
                    shapes[name] = check_npy(array, entry.file_size)
                except PythonObjects as error:
                    if not skip_objects:
                        raise PythonObjects(f"{name}: {error}") from error
    return shapes


def open_npy(path: str | Path) -> np.ndarray:
    """A read-only memory map of a .npy file; UserError, naming it, if it is damaged, or a folder, pipe or device."""
    if is_folder_or_device(path):
        raise UserError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            check_npy(file, Path(path).stat().st_size)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, OverflowError) as error:  # types and sizes that memory cannot be mapped to
        raise UserError(f"{path} cannot be read as a .npy file: {error}") from error


def read_npz(path: str | Path, most_unpacked: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name.

    UserError, naming it, if it is damaged or would take more memory than its size and `most_unpacked` bytes.
    """
    if is_folder_or_device(path):
        raise UserError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            check_npz(file, max(Path(path).stat().st_size, most_unpacked))
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise UserError(f"{path} cannot be read as a .npz file: {error}") from error
