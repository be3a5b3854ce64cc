"""Recordings of cells that saw a movie, from files: .npz or NWB."""

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np

from tools.errors import UserError
from tools.io.files import is_folder_or_device
from tools.io.npy import read_npz

MOST_BYTES = 2**34  # of a recording in memory; as spikes are sparse, a compressed file may have a hundredth of that
# What the content of a damaged NWB file raises: its arrays are read only when they are used.
DAMAGED = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Repeated presentations of a movie, and the responses of the cells.

    Raises:
        UserError: for arrays that do not fit together, or values that are not counts or not finite.
    """

    movie: np.ndarray  # [T, H, W]; becomes float32 of mean 0 and variance 1
    spikes: np.ndarray  # counts in each frame, [R, T, N]; becomes uint8
    frame_s: float | None = None  # seconds from one frame to the next; None: unknown

    def __post_init__(self):
        movie, spikes = self.movie, self.spikes
        if movie.ndim != 3 or spikes.ndim != 3 or len(movie) != spikes.shape[1] or 0 in (*movie.shape, *spikes.shape):
            shapes = f"{list(movie.shape)} and {list(spikes.shape)}"
            raise UserError(f"expected movie [frames, H, W] and spikes [trials, frames, cells], got {shapes}")
        if movie.dtype.kind not in "biuf" or spikes.dtype.kind not in "biuf":
            raise UserError(f"movie and spikes must be numbers, got {movie.dtype} and {spikes.dtype}")
        constant = movie.min() == movie.max()
        with np.errstate(all="ignore"):  # overflow is found below
            movie = movie.astype(np.float32)
            movie = (movie - movie.mean()) / movie.std()
        if constant or not np.isfinite(movie).all():
            raise UserError("the movie must be finite and not constant")
        if not ((spikes >= 0) & (spikes <= 255) & (spikes == np.floor(spikes))).all():
            raise UserError("spikes must be counts from 0 to 255")
        if self.frame_s is not None and not 0 < self.frame_s < np.inf:
            raise UserError(f"frame_s must be positive, got {self.frame_s}")
        object.__setattr__(self, "movie", movie)
        object.__setattr__(self, "spikes", spikes.astype(np.uint8))


def read_recording(path: str | Path) -> Recording:
    """Read a `Recording` from a file: .npz (see `_read_arrays`), else NWB (see `_read_nwb`).

    Raises:
        OSError: if the file cannot be opened.
        UserError: if it lacks what is expected, or is NWB and pynwb is not installed; it names the file.
    """
    try:
        if is_folder_or_device(path):
            raise UserError("it is not a file")
        with open(path, "rb"):  # an absent file is an OSError, not a damaged one
            pass
        return _read_arrays(path) if Path(path).suffix.lower() == ".npz" else _read_nwb(path)
    except UserError as error:
        raise UserError(f"{path} cannot be read as a recording: {error}") from error


def _read_arrays(path):
    """Read a .npz of `movie` [frames, H, W], `spikes` [trials, frames, cells] and, if known, `frame_s` in seconds."""
    arrays = read_npz(path, MOST_BYTES)
    if missing := {"movie", "spikes"} - arrays.keys():
        raise UserError(f"it lacks {' and '.join(sorted(missing))}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    frame_s = arrays.get("frame_s")
    if frame_s is not None and (frame_s.size != 1 or frame_s.dtype.kind not in "iuf"):
        raise UserError(f"frame_s must be one number, got {frame_s.dtype} {list(frame_s.shape)}")
    return Recording(arrays["movie"], arrays["spikes"], None if frame_s is None else frame_s.item())


def _read_nwb(path):
    """Read a file of Neurodata Without Borders.

    The movie is the only image series [frames, H, W] among the stimuli (a last axis of colours is averaged), timed by
    its rate or timestamps; `trials` has the presentations, which begin at `start_time`; `units` has the spike times.
    Only trials count that show the whole movie and, where they have a column "stimulus", name this one there.
    Note: NWB 2.x, https://nwb-schema.readthedocs.io.
    """
    try:
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise UserError("reading NWB needs the package pynwb (pip install pynwb)") from error
    with contextlib.ExitStack() as stack:
        try:
            content = stack.enter_context(NWBHDF5IO(str(path), "r", load_namespaces=True)).read()
        except Exception as error:  # pynwb, hdmf and h5py raise many kinds
            raise UserError(str(error) or repr(error)) from error
        try:
            return _from_nwb(content)
        except DAMAGED as error:
            raise UserError(str(error) or repr(error)) from error


def _from_nwb(content):
    movies = {}
    for name, series in content.stimulus.items():
        if getattr(series, "data", None) is not None and len(series.data.shape) in (3, 4):
            movies[name] = series
    if len(movies) != 1:
        raise UserError(f"expected one movie among the stimuli, got {', '.join(sorted(movies)) or 'none'}")
    name, series = movies.popitem()
    if content.units is None or content.trials is None or "spike_times" not in content.units.colnames:
        raise UserError("expected trials, and units that have spike_times")
    if series.rate is not None and not 0 < series.rate < math.inf:
        raise UserError(f"the rate of the movie must be positive, got {series.rate}")
    if (size := 8 * math.prod(series.data.shape)) > MOST_BYTES:
        raise UserError(f"the movie has {size} bytes, more than {MOST_BYTES}")
    movie = np.asarray(series.data[:], float)
    movie = movie.mean(-1) if movie.ndim == 4 else movie
    frame_s = 1 / series.rate if series.rate else _interval(series.timestamps, len(movie))
    trials = content.trials.to_dataframe()
    shown = trials["stop_time"] - trials["start_time"] >= frame_s * (len(movie) - 0.5)
    if "stimulus" in trials:
        shown &= trials["stimulus"] == name
    starts = trials["start_time"][shown].to_numpy()
    if len(starts) == 0:
        raise UserError(f"no trial shows the whole movie of {frame_s * len(movie):.3g} s")
    edges = starts[:, None] + frame_s * np.arange(len(movie) + 1)
    units = [np.sort(np.asarray(content.units["spike_times"][unit])) for unit in range(len(content.units))]
    counts = [np.diff(np.searchsorted(times, edges, side="left"), axis=1) for times in units]
    return Recording(movie, np.stack(counts, axis=2), frame_s)


def _interval(timestamps, frames):
    """Seconds from one frame to the next; UserError unless they are about the same for all frames."""
    times = np.asarray(timestamps if timestamps is not None else (), float)
    if len(times) != frames or frames < 2:
        raise UserError(f"a movie without a rate needs a timestamp for each of its {frames} frames, got {len(times)}")
    frame_s = float((times[-1] - times[0]) / (frames - 1))
    # Each frame is compared with the time that it should have: small errors of intervals matter only if they add up.
    if not frame_s > 0 or np.abs(times - times[0] - frame_s * np.arange(frames)).max() > 0.5 * frame_s:
        raise UserError("the frames of the movie are not at regular intervals")
    return frame_s
