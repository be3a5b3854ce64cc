"""Spikes of a cochlea: the Heidelberg spoken digits, and made-up ones to try networks on.

A channel is a column of a sensor with one row; all events are ON.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from tools.errors import UserError
from tools.io.cache import stamp

from . import EVENT
from .hdf5 import at_path
from .reading import EventFormatError, PathLike, Reading
from .recordings import Streams

CHANNELS = 700
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS += ("null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun")
DATASETS = ("spikes/times", "spikes/units", "labels")  # in the file
MOST_SPIKES = 2**24  # of a recording; none has more


def read_spikes(path: PathLike, row: int) -> Reading:
    """Read one recording of an HDF5 file of spikes/times, in seconds, and spikes/units, the channels.

    Note: Cramer, Stradmann, Schemmel and Zenke, "The Heidelberg spiking data sets for the systematic evaluation of
    spiking neural networks", IEEE Transactions on Neural Networks and Learning Systems 33, 2022, and
    https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/.
    """
    times, units, _ = _opened(path, stamp(Path(path)))
    problem = f"recording {row}: expected times and units of one length"
    try:
        time, unit = np.asarray(times[row]), np.asarray(units[row])
    except Exception as error:  # h5py raises many kinds for damaged files
        raise EventFormatError(path, 0, f"{problem}: {error}") from error
    are_numbers = time.dtype.kind == "f" and unit.dtype.kind in "iu"
    if not are_numbers or time.ndim != 1 or time.shape != unit.shape or len(time) > MOST_SPIKES:
        raise EventFormatError(path, 0, f"{problem}, got {time.dtype} {time.shape} and {unit.dtype} {unit.shape}")
    microseconds = np.rint(1e6 * time.astype(np.float64))
    possible = (unit >= 0) & (unit < 2**16) & (microseconds >= 0) & (microseconds < 2**62)
    if not possible.all():
        wrong = int(possible.argmin())
        problem = f"spike {wrong}: expected a channel and a time from 0, got {unit[wrong]} and {time[wrong]} s"
        raise EventFormatError(path, 0, f"recording {row}, {problem}")
    order = np.argsort(microseconds, kind="stable")  # times of 16 bits are often equal, and in no promised order
    events = np.zeros(len(time), EVENT)
    events["x"], events["t"], events["p"] = unit[order], microseconds[order], True
    return Reading(path, events, format="HDF5 of spikes", sensor=(CHANNELS, 1))


def read_labels(path: Path) -> list[int]:
    """The label of each recording in such a file; EventFormatError if it is damaged, or of another data set."""
    times, units, labels = _opened(path, stamp(path))
    try:
        if len(labels) > Path(path).stat().st_size:
            raise ValueError(f"{len(labels)} of them do not fit into the file")
        found = np.asarray(labels[()])
        sizes = {len(times), len(units), len(found)}
    except Exception as error:  # h5py raises many kinds for damaged files
        raise EventFormatError(path, 0, f"expected labels: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(sizes) != 1:
        raise EventFormatError(path, 0, f"expected a whole number for each recording, got {found.dtype} {found.shape}")
    if len(found) and not (found.min() >= 0 and found.max() < len(DIGITS)):
        problem = f"expected labels from 0 to {len(DIGITS) - 1}, got {found.min()} to {found.max()}: another data set?"
        raise EventFormatError(path, 0, problem)
    return found.tolist()


@functools.lru_cache(maxsize=2)  # a training and a test part, whose recordings follow each other
def _opened(path: PathLike, stamp: str) -> list[Any]:
    """The `DATASETS` of a file, which stays open."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: h5py is needed to read it: pip install h5py") from error
    try:
        file = h5py.File(path, "r")
        found = [_inside(file, name) for name in DATASETS]
    except Exception as error:  # h5py raises many kinds for damaged files
        names = ", ".join(DATASETS)
        raise EventFormatError(path, 0, f"expected an HDF5 file with {names}: {error}") from error
    return found


def _inside(file: Any, name: str) -> Any:
    """A dataset whose data are in this file; a ValueError for links to, and data in, others."""
    import h5py

    place = at_path(h5py, file, *name.split("/"))
    if place is None:
        raise ValueError(f"{name} is missing, or a link to another place")
    if not isinstance(place, h5py.Dataset) or place.external or place.is_virtual or len(place.shape) != 1:
        raise ValueError(f"{name} is not a list in this file")
    return place


def make_chirps(per_class: int, seed: int) -> Streams:
    """Made-up spikes of 20 classes: ten chirps from one channel to another, and the same ones backwards.

    The sum over time of a chirp and of its reverse are alike, so that a network has to use the order. Chirps differ in
    speed, pitch and loudness; a tenth of the spikes is noise.
    """
    random = np.random.default_rng(seed)
    streams, labels = [], []
    for label in np.arange(len(DIGITS) * per_class) % len(DIGITS):
        kind, is_backwards = label % 10, label >= 10
        count, duration = int(random.integers(400, 800)), random.uniform(0.4, 0.8)
        share = np.sort(random.random(count))
        way = 1 - share if is_backwards else share
        first, last = 50 + 30 * kind, 650 - 25 * kind
        channel = first + (last - first) * way**2 + random.normal(0, 15) + random.normal(0, 12, count)
        noise = random.random(count) < 0.1
        channel[noise] = random.uniform(0, CHANNELS, np.count_nonzero(noise))
        events = np.zeros(count, EVENT)
        events["x"] = channel.round().clip(0, CHANNELS - 1)
        events["t"] = np.rint(1e6 * duration * share)
        events["p"] = True
        streams.append(events)
        labels.append(label)
    ends = np.cumsum([len(events) for events in streams])
    return np.concatenate(streams), ends, np.array(labels)
