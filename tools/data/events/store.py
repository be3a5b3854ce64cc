"""Frames of many recordings on disk: counted once, by several processes, then mapped into memory.

A store is a folder of shards; shard `00003` holds the frames of a fixed run of recordings (`00003.npy`) and what
became of each (`00003.json`, written last, with a checksum). Files appear whole or not at all, so that a store which
was interrupted, or is being made by several processes, is completed; a damaged shard is made anew.
"""

import collections
import concurrent.futures
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.io.cache import cache_folder, stamp
from tools.io.files import write_atomically, write_text_atomically
from tools.io.npy import open_npy

from . import EVENT, POLARITIES
from .errors import EventFormatError
from .frames import count_frames
from .recordings import Recording

logger = logging.getLogger(__name__)
SHARD = 64  # recordings
BYTES_PER_PROCESS = 2**28  # to be read: for less, starting one more process costs more than it saves
VERSION = 3  # of what is stored: a new one makes all stores anew


class FrameStore:
    """The frames of recordings; `store[indices]` are counts [N, T, 2, H, W], unsigned.

    Args:
        name: of the data set and its part, for the folder's name and the progress bar.
        recordings: list of `Recording`.
        framing: `Framing`.
        lenient: skip recordings that cannot be read and events out of range or order, and count them; otherwise
            they are errors.
        workers: largest number of processes that read; few recordings are read by fewer.
        folder: where stores are; None: `cache_folder()`.

    Raises:
        EventFormatError: for a recording that cannot be read, unless `lenient`.
    """

    def __init__(self, name, recordings, framing, lenient=False, workers=4, folder=None):
        self.folder = Path(folder or cache_folder()) / f"frames-{name}-{_key(recordings, framing)}"
        self._fill(name, recordings, framing, lenient, workers)
        self._length = len(recordings)
        shards = range(-(-len(recordings) // SHARD))
        self._frames = [open_npy(self._path(shard, "npy")) for shard in shards]
        reports = [json.loads(self._path(shard, "json").read_bytes())["report"] for shard in shards]
        self.skipped = {}  # index of a recording: why it could not be read
        for shard, report in enumerate(reports):
            self.skipped.update({SHARD * shard + int(row): why for row, why in report["skipped"].items()})
        self.dropped = collections.Counter()
        for report in reports:
            self.dropped.update(report["dropped"])

    def __len__(self):
        return self._length

    def __getitem__(self, indices):
        rows = [self._frames[index // SHARD][index % SHARD] for index in np.asarray(indices)]
        return np.stack(rows)

    def _path(self, shard, suffix):
        return self.folder / f"{shard:05d}.{suffix}"

    def _fill(self, name, recordings, framing, lenient, workers):
        """Make the shards that are not there, or damaged."""
        shards = [recordings[start : start + SHARD] for start in range(0, len(recordings), SHARD)]
        (width, height), todo = framing.size, []
        for shard, part in enumerate(shards):
            shape = (len(part), framing.timesteps, POLARITIES, height, width)
            report = _checked_report(self._path(shard, "npy"), functools.partial(_is_shard, shape))
            if report is None or not (lenient or _is_complete(report)):
                todo.append(shard)
        if not todo:
            return
        files = {recording.path for shard in todo for recording in shards[shard]}
        size = sum(path.stat().st_size for path in files if path.exists())
        processes = min(workers, os.cpu_count() or 1, len(todo), 1 + size // BYTES_PER_PROCESS)
        jobs = [(shards[shard], framing, lenient, self._path(shard, "npy")) for shard in todo]
        progress = tqdm(total=len(jobs), desc=f"framing {name}", unit="shard", disable=None, leave=False)
        with progress:
            if processes == 1:
                for job in jobs:
                    make_shard(*job)
                    progress.update()
                return
            # Not forked: a fork copies locks that other threads of this process may hold.
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
                try:
                    for done in concurrent.futures.as_completed([pool.submit(make_shard, *job) for job in jobs]):
                        done.result()
                        progress.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # else the others would be made first
                    raise


def _is_complete(report):
    """Whether nothing was left out: where a strict store finds a lenient one's omissions, it shall meet the error."""
    return not (report["skipped"] or any(report["dropped"].values()))


def _is_shard(shape, frames, report):
    """Whether an array and the report beside it can be a shard of frames."""
    skipped, dropped = report["skipped"], report["dropped"]
    rows = {str(row) for row in range(shape[0])}
    return (
        (frames.dtype.kind, frames.shape) == ("u", shape)
        and (isinstance(skipped, dict) and skipped.keys() <= rows)
        and (isinstance(dropped, dict) and all(type(count) is int for count in dropped.values()))
    )


def stored_streams(name, make, folder=None):
    """Simulated recordings: made once, then read from the cache.

    Args:
        name: of the files; it must change where what is made changes.
        make: function without arguments -> events of all streams, ends int64 [S], labels int64 [S].
        folder: where the files are; None: `cache_folder()`.

    Returns:
        List of `Recording`, one for each stream.
    """
    path = Path(folder or cache_folder()) / f"{name}.npy"
    report = _checked_report(path, _are_streams)
    if report is None:
        events, ends, labels = make()
        report = {"ends": ends.tolist(), "labels": labels.tolist()}
        _write(path, events, report)
    starts = [0, *report["ends"][:-1]]
    return [Recording(path, label, slice=tuple(part)) for label, *part in zip(report["labels"], starts, report["ends"])]


def _are_streams(events, report):
    """Whether an array and the report beside it can be streams of events."""
    ends, labels = report["ends"], report["labels"]
    return (
        (events.dtype, events.ndim) == (EVENT, 1)
        and all(type(number) is int and number >= 0 for number in (*ends, *labels))
        and len(ends) == len(labels)
        and ends == sorted(ends)
        and ends[-1:] == [len(events)]
    )


def _checked_report(path, fit):
    """The report beside the array `path`; None if it is not there, or one of the two is damaged.

    Args:
        fit: function of both: whether they can be what is looked for.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        return None
    try:
        content = json.loads(beside.read_bytes())
        sums = {"array": zlib.crc32(path.read_bytes()), "report": _checksum(content["report"])}
        if content["crc32"] == sums and fit(open_npy(path), content["report"]):
            return content["report"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    logger.warning("%s in the cache is damaged; it is made anew", path)
    return None


def _write(path, array, report):
    """Write an array, and a report beside it, with checksums of both: last, so that it vouches for the array."""
    write_atomically(path, lambda file: np.save(file, array))
    content = {"crc32": {"array": zlib.crc32(path.read_bytes()), "report": _checksum(report)}, "report": report}
    write_text_atomically(path.with_suffix(".json"), json.dumps(content))


def _checksum(report):
    return zlib.crc32(json.dumps(report, sort_keys=True).encode())


def make_shard(recordings, framing, lenient, path):
    """Frame some recordings and write them to `path`, and what became of them beside it."""
    width, height = framing.size
    counts = np.zeros((len(recordings), framing.timesteps, POLARITIES, height, width), dtype=np.uint32)
    skipped, dropped = {}, collections.Counter()
    for row, recording in enumerate(recordings):
        try:
            events, lost = recording.load(framing.sensor, lenient)
        except (EventFormatError, FileNotFoundError) as error:  # what passes, as too many open files, is no reason
            if not lenient:
                raise
            skipped[str(row)] = str(error)  # as JSON has it
            continue
        dropped.update(lost)
        counts[row] = count_frames(events, framing)
    _write(path, counts.astype(np.min_scalar_type(counts.max())), {"skipped": skipped, "dropped": dict(dropped)})


def _key(recordings, framing):
    """Of the files (name, size, time of change), the parts of them that are recordings, and the framing."""
    key, stamps = hashlib.sha256(f"{VERSION} {framing}\n".encode()), {}
    for recording in recordings:
        if recording.path not in stamps:
            try:
                stamps[recording.path] = stamp(recording.path)
            except OSError:  # reading it will fail, and say so
                stamps[recording.path] = f"{recording.path.resolve()} absent"
        key.update(f"{stamps[recording.path]} {recording.window_us} {recording.slice} {recording.problem}\n".encode())
    return key.hexdigest()[:24]
