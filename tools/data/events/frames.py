"""Frames [T, 2, H, W] made from events: split in time, then counted per polarity and cell."""

import dataclasses

import numpy as np

from tools.errors import UserError

from . import POLARITIES

VALUES = ("normalised", "count", "binary")  # what networks see of the counts; see `labelled.frame_values`
CELLS = ("sum", "average")


@dataclasses.dataclass(frozen=True)
class Framing:
    """How frames are made from a recording; UserError for impossible settings."""

    timesteps: int  # number of frames T
    split: str  # one of `SPLITS`; "count" is the published preprocessing
    sensor: tuple[int, int]  # (width, height) of the camera, in pixels
    size: tuple[int, int]  # (width, height) of the frames, in cells; not larger than the sensor

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f"frames are split by {' or '.join(map(repr, SPLITS))}, got {self.split!r}")
        if self.timesteps < 1:
            raise UserError(f"there must be at least one frame, got {self.timesteps}")
        if not all(1 <= small <= large for small, large in zip(self.size, self.sensor)):
            raise UserError(f"frames must be from 1x1 to the sensor's {self.sensor}, got {self.size}")


def edges_by_count(events: np.ndarray, timesteps: int) -> np.ndarray:
    """Indices [T + 1] that cut events into T parts of the same number of events, or one more."""
    return np.arange(timesteps + 1) * len(events) // timesteps


def edges_by_time(events: np.ndarray, timesteps: int) -> np.ndarray:
    """Indices [T + 1] that cut events into T parts of the same duration."""
    if len(events) == 0:
        return np.zeros(timesteps + 1, dtype=np.int64)
    start, duration = int(events["t"][0]), int(events["t"][-1] - events["t"][0]) + 1
    cuts = [start + -(-duration * step // timesteps) for step in range(1, timesteps)]
    return np.concatenate([[0], np.searchsorted(events["t"], cuts), [len(events)]])


SPLITS = {"count": edges_by_count, "time": edges_by_time}


def count_frames(events: np.ndarray, framing: Framing) -> np.ndarray:
    """Count the events per frame, polarity and cell; cells are the sensor's pixels, or blocks of them.

    No event is lost: the counts sum to the number of events. Shape: `EVENT` [N], in the order of time and on the
    sensor -> uint32 [T, 2, H, W]; channel 0 is OFF, 1 is ON.
    """
    width, height = framing.size
    columns, rows = cell_index(framing.sensor[0], width), cell_index(framing.sensor[1], height) * width
    cells = rows[events["y"]] + columns[events["x"]]
    cells += events["p"] * np.int32(width * height)
    edges = SPLITS[framing.split](events, framing.timesteps)
    frames = np.empty((framing.timesteps, POLARITIES * height * width), dtype=np.uint32)
    for frame, start, stop in zip(frames, edges[:-1], edges[1:]):
        frame[:] = np.bincount(cells[start:stop], minlength=len(frame))
    return frames.reshape(framing.timesteps, POLARITIES, height, width)


def cell_index(pixels: int, cells: int) -> np.ndarray:
    """The cell of each pixel along one axis, int32 [pixels]: floor(pixel * cells / pixels)."""
    return np.arange(pixels, dtype=np.int32) * cells // pixels


def cell_area(framing: Framing) -> np.ndarray:
    """Sensor pixels in each cell, float32 [H, W]: counts divided by it are averages instead of sums."""
    (width, height), (columns, rows) = framing.sensor, framing.size
    wide = np.bincount(cell_index(width, columns), minlength=columns)
    high = np.bincount(cell_index(height, rows), minlength=rows)
    return np.outer(high, wide).astype(np.float32)
