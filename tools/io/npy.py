"""NumPy files from anyone: nothing in them is executed, and no memory is allocated on the word of a header."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from tools.errors import UserError

from .files import is_folder_or_device


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an open .npy file up to its data: shape, whether in Fortran order, dtype.

    Raises:
        UserError: if it is damaged, or of an array of Python objects.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy parses the header as Python text, and raises many kinds
        raise UserError(f"expected the header of a .npy array: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=1) < 0:
        raise UserError(f"expected an array of numbers, got {dtype} {shape}")
    return shape, fortran, dtype


def check_header(file: IO[bytes], size: int) -> None:
    """Raise UserError if a .npy file of `size` bytes is not exactly as long as its header says."""
    shape, _, dtype = read_header(file)
    wanted, came = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != came:
        raise UserError(f"expected {wanted} bytes of {dtype} {shape}, got {came}")


def open_npy(path: str | Path) -> np.ndarray:
    """A read-only memory map of a .npy file; UserError, naming it, if it is damaged, or a folder, pipe or device."""
    if is_folder_or_device(path):
        raise UserError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            check_header(file, Path(path).stat().st_size)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, OverflowError) as error:  # types and sizes that memory cannot be mapped to
        raise UserError(f"{path} cannot be read as a .npy file: {error}") from error


def read_npz(path: str | Path, most_unpacked: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a file written by `np.savez` or `np.savez_compressed`, by name.

    Args:
        most_unpacked: bytes that the arrays may take even if the file is smaller; 0: no more than the file.

    Raises:
        UserError: naming the file, if it is damaged, or its arrays would take more memory than allowed.
    """
    if is_folder_or_device(path):
        raise UserError(f"{path} is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if claimed > max(Path(path).stat().st_size, most_unpacked):
                raise UserError(f"it claims to hold {claimed} bytes")
            for entry in entries:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"{entry.filename} is compressed in a way that NumPy does not use")
                with archive.open(entry) as file:
                    check_header(file, entry.file_size)
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise UserError(f"{path} cannot be read as a .npz file: {error}") from error
