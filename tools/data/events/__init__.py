"""Event-camera recordings: files, frames, caches, and the simulated recordings of `motions`.

Events are structured arrays of the dtype `EVENT`, in the order of time.
"""

import numpy as np

# x, y: pixels from the upper left; t: microseconds; p: whether it became brighter (ON).
EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "?")])
POLARITIES = 2  # channels of frames: 0 OFF, 1 ON
