"""Files of NumPy arrays from anyone: nothing in them is run, and no memory is taken on the word of a header."""

import math
import zipfile
from pathlib import Path

import numpy as np

from .files import is_no_file


def read_header(file):
    """What a .npy file says that it holds: (shape, whether in Fortran's order, dtype), and leave it at its data.

    Args:
        file: open at the start of the array.

    Raises:
        ValueError: for a header that is none, or one of Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python text, and raises many kinds
        raise ValueError(f"expected the header of a .npy array: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=1) < 0:
        raise ValueError(f"expected an array of numbers, got {dtype} {shape}")
    return shape, fortran, dtype


def check_header(file, size):
    """Raise ValueError where a .npy file of `size` bytes is not just as long as its header says."""
    shape, _, dtype = read_header(file)
    wanted, came = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != came:
        raise ValueError(f"expected {wanted} bytes of {dtype} {shape}, got {came}")


def open_npy(path):
    """A read-only memory map of a .npy file.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming the file, if it is broken, or no file but a pipe or a device.
    """
    if is_no_file(path):
        raise ValueError(f"{path} is no file")
    size = Path(path).stat().st_size
    try:
        with open(path, "rb") as file:
            check_header(file, size)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, OverflowError) as error:  # of types and sizes that memory cannot be mapped to
        raise ValueError(f"{path} is no readable .npy file: {error}") from error


def read_npz(path, most_unpacked=0):
    """{name: array} of a file that `np.savez` or `np.savez_compressed` wrote.

    Args:
        path: of the file.
        most_unpacked: bytes that its arrays may take although the file has fewer; 0: no more than the file has.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming the file, if it is broken, or its arrays would take more memory than they may.
    """
    if is_no_file(path):
        raise ValueError(f"{path} is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if claimed > max(Path(path).stat().st_size, most_unpacked):
                raise ValueError(f"it claims to hold {claimed} bytes")
            for entry in entries:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{entry.filename} is compressed in a way that NumPy does not use")
                with archive.open(entry) as file:
                    check_header(file, entry.file_size)
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise ValueError(f"{path} is no readable .npz file: {error}") from error
