"""Write recordings in the formats that others read, by the suffix of the file."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tools.errors import UserError
from tools.io.files import write_atomically

from .arrays import write_npy, write_npz
from .hdf5 import write_hdf5
from .prophesee import Sensor, write_dat, write_evt2
from .text import write_csv, write_text

Writer = Callable[[BinaryIO, np.ndarray, Sensor], None]


def _without_sensor(write: Callable[[BinaryIO, np.ndarray], None]) -> Writer:
    return lambda file, events, sensor: write(file, events)


WRITERS: dict[str, Writer] = {
    ".npz": _without_sensor(write_npz),
    ".npy": _without_sensor(write_npy),
    ".csv": _without_sensor(write_csv),
    ".txt": _without_sensor(write_text),
    ".dat": write_dat,
    ".raw": write_evt2,
    ".h5": write_hdf5,
}


def write_recording(path: Path, events: np.ndarray, sensor: Sensor = None) -> None:
    """Write events [N] of dtype `EVENT` in the format of the suffix, so that they are read again as they are.

    UserError for another suffix, no events, or events that the format cannot hold. Some formats store the size of
    the sensor, (width, height), if it is known.
    """
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise UserError(f"{path}: expected a suffix of {', '.join(WRITERS)}, got {path.suffix or 'none'}")
    if len(events) == 0 or events["t"].min() < 0:
        raise UserError(f"{path}: expected events with times from 0, got {'a negative one' if len(events) else 'none'}")
    try:
        write_atomically(path, lambda file: write(file, events, sensor))
    except UserError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
