"""Recordings of cells that saw a movie, in files: arrays in a .npz, or NWB."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from tools.io.files import is_folder_or_device
from tools.io.npy import read_npz

MOST_BYTES = 2**34  # of a recording in memory: spikes are so sparse that compressed files are a hundredth of it


@dataclasses.dataclass(frozen=True)
class Recording:
    """Repeated presentations of a movie and what the cells did.

    Args:
        movie: float32 [T, H, W], of mean 0 and variance 1.
        spikes: counts in the time of each frame, uint8 [R, T, N].
        frame_s: seconds from one frame to the next; None: unknown.

    Raises:
        ValueError: for arrays that do not go together, or values that are no counts or not finite.
    """

    movie: np.ndarray
    spikes: np.ndarray
    frame_s: float | None = None

    def __post_init__(self):
        movie, spikes = self.movie, self.spikes
        if movie.ndim != 3 or spikes.ndim != 3 or len(movie) != spikes.shape[1] or 0 in (*movie.shape, *spikes.shape):
            raise ValueError(
                f"expected movie [frames, H, W] and spikes [trials, frames, cells], got {list(movie.shape)} and "
                f"{list(spikes.shape)}"
            )
        if movie.dtype.kind not in "biuf" or spikes.dtype.kind not in "biuf":
            raise ValueError(f"movie and spikes are numbers, got {movie.dtype} and {spikes.dtype}")
        constant = movie.min() == movie.max()
        with np.errstate(all="ignore"):  # what overflows is found below
            movie = movie.astype(np.float32)
            movie = (movie - movie.mean()) / movie.std()
        if constant or not np.isfinite(movie).all():
            raise ValueError("the movie must be finite, and not the same everywhere")
        if not ((spikes >= 0) & (spikes <= 255) & (spikes == np.floor(spikes))).all():
            raise ValueError("spikes are counts from 0 to 255")
        if self.frame_s is not None and not 0 < self.frame_s < np.inf:
            raise ValueError(f"frame_s must be positive, got {self.frame_s}")
        object.__setattr__(self, "movie", movie)
        object.__setattr__(self, "spikes", spikes.astype(np.uint8))


def read_recording(path):
    """A `Recording` from a file: .npz (see `read_arrays`), else NWB (see `read_nwb`).

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming the file, if it is none, or does not have what is expected; and for NWB without pynwb.
    """
    path = Path(path)
    if is_folder_or_device(path):
        raise ValueError(f"{path} is no file")
    reader = read_arrays if path.suffix.lower() == ".npz" else read_nwb
    try:
        return reader(path)
    except ValueError as error:
        raise ValueError(f"{path} is no recording that can be read: {error}") from error


def read_arrays(path):
    """A .npz: `movie` [frames, H, W], `spikes` [trials, frames, cells] and, where it is known, `frame_s` in seconds."""
    arrays = read_npz(path, MOST_BYTES)
    if missing := {"movie", "spikes"} - arrays.keys():
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}, but {', '.join(sorted(arrays)) or 'nothing'}")
    frame_s = arrays.get("frame_s")
    if frame_s is not None and (frame_s.size != 1 or frame_s.dtype.kind not in "iuf"):
        raise ValueError(f"frame_s is one number, got {frame_s.dtype} {list(frame_s.shape)}")
    return Recording(arrays["movie"], arrays["spikes"], None if frame_s is None else float(frame_s.reshape(())))


def read_nwb(path, stimulus=None):
    """A file of Neurodata Without Borders.

    The movie is an image series [frames, H, W] (or with a last axis of colours, which are averaged) among the stimuli;
    `trials` has the presentations, each from its `start_time`; `units` the spike times. Frames follow each other by
    the rate of the series, or its first timestamps. Where the trials have a column "stimulus" or a trial is shorter
    than the movie, only those that show the whole of this movie count.

    Args:
        path: of the file.
        stimulus: name of the series; None: the only one.

    Note:
        NWB 2.x, https://nwb-schema.readthedocs.io; read by pynwb (BSD).
    """
    try:
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise ValueError("it is taken for NWB, which needs the package pynwb (pip install pynwb)") from error
    with open(path, "rb"):  # so that an absent file is told apart from a damaged one
        pass
    try:
        with NWBHDF5IO(str(path), "r", load_namespaces=True) as io:
            return _from_nwb(io.read(), stimulus)
    except Exception as error:  # pynwb, hdmf and h5py raise many kinds
        raise ValueError(str(error) or repr(error)) from error


def _from_nwb(content, stimulus):
    series = {name: one for name, one in content.stimulus.items() if getattr(one, "data", None) is not None}
    series = {name: one for name, one in series.items() if len(one.data.shape) in (3, 4)}
    if stimulus is None and len(series) != 1:
        raise ValueError(f"expected one movie among the stimuli, got {', '.join(sorted(series)) or 'none'}")
    name = stimulus or next(iter(series))
    if name not in series:
        raise ValueError(f"no movie {name!r} among the stimuli, but {', '.join(sorted(series)) or 'none'}")
    one = series[name]
    if content.units is None or content.trials is None or "spike_times" not in content.units.colnames:
        raise ValueError("expected trials, and units that have spike_times")
    if one.rate is not None and not 0 < one.rate < math.inf:
        raise ValueError(f"the rate of its movie must be positive, got {one.rate}")
    size = math.prod(one.data.shape) * np.dtype(float).itemsize
    if size > MOST_BYTES:
        raise ValueError(f"its movie has {size} bytes, more than {MOST_BYTES}")
    movie = np.asarray(one.data[:], float)
    movie = movie.mean(-1) if movie.ndim == 4 else movie
    frame_s = 1 / one.rate if one.rate else _interval(one.timestamps, len(movie))
    trials = content.trials.to_dataframe()
    shown = trials["stop_time"] - trials["start_time"] >= frame_s * (len(movie) - 0.5)
    if "stimulus" in trials:
        shown &= trials["stimulus"] == name
    starts = trials["start_time"][shown].to_numpy()
    if len(starts) == 0:
        raise ValueError(f"no trial shows the whole movie of {frame_s * len(movie):.3g} s")
    edges = starts[:, None] + frame_s * np.arange(len(movie) + 1)
    units = [np.sort(np.asarray(content.units["spike_times"][unit])) for unit in range(len(content.units))]
    counts = [np.diff(np.searchsorted(times, edges, side="left"), axis=1) for times in units]
    return Recording(movie, np.stack(counts, axis=2), frame_s)


def _interval(timestamps, frames):
    """Seconds from one frame to the next, which must be the same throughout."""
    times = np.asarray(timestamps if timestamps is not None else (), float)
    if len(times) != frames or frames < 2:
        raise ValueError(f"a movie without a rate needs a timestamp for each of its {frames} frames, got {len(times)}")
    frame_s = float((times[-1] - times[0]) / (frames - 1))
    # Of where each frame should be: small errors of each interval do not matter, their sum does.
    if not frame_s > 0 or np.abs(times - times[0] - frame_s * np.arange(frames)).max() > 0.5 * frame_s:
        raise ValueError("the frames of the movie do not follow each other regularly")
    return frame_s
