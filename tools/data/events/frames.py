"""Frames [T, 2, H, W] made from events: split in time, then counted per polarity and cell."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tools.errors import UserError

from . import POLARITIES

VALUES = ("normalised", "count", "binary")  # what networks see of the counts; see `labelled.frame_values`
CELLS = ("sum", "average")
SPLITS = ("count", "even", "time", "duration")
DURATION = "duration"


@dataclasses.dataclass(frozen=True)
class Framing:
    """How frames are made from a recording; UserError for impossible settings."""

    timesteps: int  # number of frames T; of "duration", the most that a recording may have
    split: str  # one of `SPLITS`; "count" is the published preprocessing
    sensor: tuple[int, int]  # (width, height) of the camera, in pixels
    size: tuple[int, int]  # (width, height) of the frames, in cells; not larger than the sensor
    frame_us: int = 0  # of "duration": that of a frame, in microseconds
    channels: int = POLARITIES  # 1: of all events, whatever their polarity

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f"frames are split by {' or '.join(map(repr, SPLITS))}, got {self.split!r}")
        if self.timesteps < 1:
            raise UserError(f"there must be at least one frame, got {self.timesteps}")
        if not all(1 <= small <= large for small, large in zip(self.size, self.sensor)):
            raise UserError(f"frames must be from 1x1 to the sensor's {self.sensor}, got {self.size}")
        if self.varies != (self.frame_us > 0):
            raise UserError(f"frames by duration must last at least 1 us, others have no duration; got {self.frame_us}")

    @property
    def varies(self) -> bool:
        """Whether recordings differ in their numbers of frames."""
        return self.split == DURATION


def framing_of(
    frames_by: str,
    sensor: tuple[int, int],
    size: tuple[int, int],
    *,
    timesteps: int,
    frame_ms: float,
    most_frames: int,
    channels: int = POLARITIES,
) -> Framing:
    """The framing that these flags ask for; frames by duration need no `timesteps`, others no more than that."""
    if frames_by == DURATION:
        timesteps, frame_us = most_frames, round(1000 * frame_ms)
    else:
        frame_us = 0
    return Framing(timesteps, frames_by, sensor, size, frame_us, channels)


def edges_by_count(events: np.ndarray, timesteps: int) -> np.ndarray:
    """Indices [T + 1] that cut events into T parts of equally many events; what is left over is in the last part.

    Note: so do SpikingJelly and the published preprocessing.
    """
    edges = np.arange(timesteps + 1) * (len(events) // timesteps)
    edges[-1] = len(events)
    return edges


def edges_evenly(events: np.ndarray, timesteps: int) -> np.ndarray:
    """Indices [T + 1] that cut events into T parts of the same number of events, or one more.

    The measured recipes of N-MNIST and motions use it.
    """
    return np.arange(timesteps + 1) * len(events) // timesteps


def edges_by_time(events: np.ndarray, timesteps: int) -> np.ndarray:
    """Indices [T + 1] that cut events into T parts of the same duration."""
    if len(events) == 0:
        return np.zeros(timesteps + 1, dtype=np.int64)
    start, duration = int(events["t"][0]), int(events["t"][-1] - events["t"][0]) + 1
    cuts = [start + -(-duration * step // timesteps) for step in range(1, timesteps)]
    return np.concatenate([[0], np.searchsorted(events["t"], cuts), [len(events)]])


def edges_by_duration(events: np.ndarray, frame_us: int, most: int) -> np.ndarray:
    """Indices that cut events into parts of `frame_us` microseconds, of which the last one may be shorter.

    An event at the very end of a whole number of frames is in the last of them, as in SpikingJelly. UserError if there
    would be more than `most`.
    """
    if len(events) == 0:
        return np.zeros(2, dtype=np.int64)
    start, duration = int(events["t"][0]), int(events["t"][-1] - events["t"][0])
    frames = max(1, -(-duration // frame_us))
    if frames > most:
        raise UserError(
            f"expected at most {most} frames, got {frames:,} of {frame_us / 1000:g} ms in {duration / 1e6:g} s: "
            "lengthen --frame_ms or raise --most_frames"
        )
    cuts = start + frame_us * np.arange(1, frames)
    return np.concatenate([[0], np.searchsorted(events["t"], cuts), [len(events)]])


def _edges(events: np.ndarray, framing: Framing) -> np.ndarray:
    if framing.split == DURATION:
        return edges_by_duration(events, framing.frame_us, framing.timesteps)
    cut = {"count": edges_by_count, "even": edges_evenly, "time": edges_by_time}[framing.split]
    return cut(events, framing.timesteps)


def count_frames(events: np.ndarray, framing: Framing) -> np.ndarray:
    """Count the events per frame, polarity and cell; cells are the sensor's pixels, or blocks of them.

    No event is lost: the counts sum to the number of events. Shape: `EVENT` [N], in the order of time and on the
    sensor -> uint32 [T, 2, H, W]; channel 0 is OFF, 1 is ON (or [T, 1, H, W] of both, see `Framing.channels`).

    UserError for too many frames.
    """
    edges = _edges(events, framing)
    width, height = framing.size
    columns, rows = cell_index(framing.sensor[0], width), cell_index(framing.sensor[1], height) * width
    cells = rows[events["y"]] + columns[events["x"]]
    if framing.channels == POLARITIES:
        cells += events["p"] * np.int32(width * height)
    frames = np.empty((len(edges) - 1, framing.channels * height * width), dtype=np.uint32)
    for frame, start, stop in zip(frames, edges[:-1], edges[1:]):
        frame[:] = np.bincount(cells[start:stop], minlength=len(frame))
    return frames.reshape(-1, framing.channels, height, width)


def stacked(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Stack the frames of recordings, the shorter ones followed by zeros: N of [T_n, 2, H, W] -> [N, max T_n, 2, H, W].

    They have the smallest type that holds all of them.
    """
    longest, dtype = max(map(len, frames)), np.result_type(*frames)
    together = np.zeros((len(frames), longest, *frames[0].shape[1:]), dtype)
    for place, one in zip(together, frames):
        place[: len(one)] = one
    return together


def cell_index(pixels: int, cells: int) -> np.ndarray:
    """The cell of each pixel along one axis, int32 [pixels]: floor(pixel * cells / pixels)."""
    return np.arange(pixels, dtype=np.int32) * cells // pixels


def cell_area(framing: Framing) -> np.ndarray:
    """Sensor pixels in each cell, float32 [H, W]: counts divided by it are averages instead of sums."""
    (width, height), (columns, rows) = framing.sensor, framing.size
    wide = np.bincount(cell_index(width, columns), minlength=columns)
    high = np.bincount(cell_index(height, rows), minlength=rows)
    return np.outer(high, wide).astype(np.float32)
