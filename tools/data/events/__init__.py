"""Event-camera recordings: files, frames, caches, and the simulated recordings of `motions`.

Events are structured arrays of the dtype `EVENT`, in the order of time.
"""

import os

import numpy as np

# x, y: pixels from the upper left; t: microseconds; p: whether it became brighter (ON).
EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "?")])
POLARITIES = 2  # channels of frames: 0 OFF, 1 ON


def read(path: str | os.PathLike, lenient: bool = False, columns: str = "") -> np.ndarray:
    """The events of a recording in any format that is known here: an array [N] of dtype `EVENT`.

    Its times are not checked. If `lenient`, a damaged end of the file costs the events in it, not the recording.
    `columns` are those of a text that does not name them, such as "x,y,t,p".
    """
    from .formats import read_recording  # the readers import this module

    return read_recording(path, lenient, columns).events
