"""Frames of many recordings on disk: counted once, by several processes, then mapped into memory.

A store is a folder of shards; shard `00003` holds the frames of consecutive recordings (`00003.npy`) and what became
of each (`00003.json`, written last, with checksums). Files appear whole or not at all, so that a store which was
interrupted, or is being made by several processes, is completed; a damaged shard is made anew.

This module and those it imports from its package run in worker processes: none imports torch.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.data.fingerprint import code_fingerprint
from tools.io.cache import cache_folder, stamp
from tools.io.files import write_atomically, write_text_atomically
from tools.io.npy import open_npy

from . import POLARITIES
from .errors import EventFormatError
from .frames import Framing, count_frames
from .recordings import Recording, Streams

logger = logging.getLogger(__name__)
SHARD = 64  # recordings
BYTES_PER_PROCESS = 2**28  # to be read: for less, starting one more process costs more than it saves


class FrameStore:
    """The frames of recordings; `store[indices]` are counts [N, T, 2, H, W], unsigned.

    Recordings that cannot be read, and events out of range or order, are an EventFormatError, unless `lenient`: then
    they are left out, and `skipped` says {index of a recording: why}, `dropped` {reason: number of events}.

    Args:
        name: of the data set and its part, for the folder's name and the progress bar.
        workers: most processes that read; few recordings are read by fewer.
        folder: where stores are; None: `cache_folder()`. The attribute is the folder of this store, whose name has a
            hash of the files, the framing, and the code that reads and frames.
    """

    def __init__(
        self,
        name: str,
        recordings: Sequence[Recording],
        framing: Framing,
        lenient: bool = False,
        workers: int = 4,
        folder: Path | None = None,
    ):
        self.folder = Path(folder or cache_folder()) / f"frames-{name}-{_key(recordings, framing)}"
        self._length = len(recordings)
        parts = [recordings[start : start + SHARD] for start in range(0, len(recordings), SHARD)]
        paths = [self.folder / f"{shard:05d}.npy" for shard in range(len(parts))]
        missing = {path: part for path, part in zip(paths, parts) if not _is_made(path, lenient)}
        if missing:
            _make_shards(missing, framing, lenient, workers, f"framing {name}")
        self._frames = [open_npy(path) for path in paths]
        self.skipped: dict[int, str] = {}
        self.dropped: collections.Counter[str] = collections.Counter()
        for shard, path in enumerate(paths):
            report = json.loads(path.with_suffix(".json").read_bytes())["report"]
            self.skipped.update({SHARD * shard + int(row): why for row, why in report["skipped"].items()})
            self.dropped.update(report["dropped"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.stack([self._frames[index // SHARD][index % SHARD] for index in np.asarray(indices)])


def _is_made(path: Path, lenient: bool) -> bool:
    """Whether a shard is there and whole; a strict store makes one with omissions anew, to meet the error."""
    report = _checked_report(path)
    return report is not None and (lenient or not (report["skipped"] or any(report["dropped"].values())))


def _make_shards(
    missing: dict[Path, Sequence[Recording]], framing: Framing, lenient: bool, workers: int, description: str
) -> None:
    """Make shards, {path: recordings}, in as many processes as the work deserves."""
    files = {recording.path for recordings in missing.values() for recording in recordings}
    size = sum(path.stat().st_size for path in files if path.exists())
    processes = min(workers, os.cpu_count() or 1, len(missing), 1 + size // BYTES_PER_PROCESS)
    shards = missing.values(), itertools.repeat(framing), itertools.repeat(lenient), missing
    with contextlib.ExitStack() as stack:
        run = map
        if processes > 1:
            context = multiprocessing.get_context("spawn")  # a fork copies locks that other threads may hold
            run = stack.enter_context(concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)).map
        for _ in tqdm(run(make_shard, *shards), description, len(missing), unit="shard", disable=None, leave=False):
            pass  # an error cancels what is not yet begun


def make_shard(recordings: Sequence[Recording], framing: Framing, lenient: bool, path: Path) -> None:
    """Frame some recordings and write the frames to `path`, with a report of omissions beside it."""
    width, height = framing.size
    counts = np.zeros((len(recordings), framing.timesteps, POLARITIES, height, width), dtype=np.uint32)
    skipped, dropped = {}, collections.Counter()
    for row, recording in enumerate(recordings):
        try:
            checked = recording.load(framing.sensor, lenient)
        except (EventFormatError, FileNotFoundError) as error:  # not what passes, such as too many open files
            if not lenient:
                raise
            skipped[str(row)] = str(error)  # a key as JSON has it
            continue
        dropped.update(checked.dropped)
        counts[row] = count_frames(checked.events, framing)
    _write(path, counts.astype(np.min_scalar_type(counts.max())), {"skipped": skipped, "dropped": dict(dropped)})


def _key(recordings: Sequence[Recording], framing: Framing) -> str:
    """Hash of the code, the framing, the files (place, size, time of change), and the parts that are recordings."""
    key, stamps = hashlib.sha256(f"{code_fingerprint(__name__)} {framing}\n".encode()), {}
    for recording in recordings:
        if recording.path not in stamps:
            try:
                stamps[recording.path] = stamp(recording.path)
            except OSError:  # reading it will fail, and say so
                stamps[recording.path] = f"{recording.path.resolve()} absent"
        key.update(f"{stamps[recording.path]} {recording.window_us} {recording.slice} {recording.problem}\n".encode())
    return key.hexdigest()[:24]


def stored_streams(name: str, make: Callable[[], Streams], folder: Path | None = None) -> list[Recording]:
    """Simulated recordings: made once, then read from `folder`, by default `cache_folder()`.

    The `name` of the files must differ where what is made differs, the code included (`code_fingerprint`).
    """
    path = Path(folder or cache_folder()) / f"{name}.npy"
    report = _checked_report(path)
    if report is None:
        events, ends, labels = make()
        report = {"ends": ends.tolist(), "labels": labels.tolist()}
        _write(path, events, report)
    slices = itertools.pairwise([0, *report["ends"]])
    return [Recording(path, label, slice=part) for label, part in zip(report["labels"], slices)]


def _checked_report(path: Path) -> dict | None:
    """The report beside the array `path`; None if either is missing or damaged."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return None
    try:
        content = json.loads(beside.read_bytes())
        sums = {"array": zlib.crc32(path.read_bytes()), "report": _checksum(content["report"])}
        if content["crc32"] == sums:
            return content["report"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    logger.warning("%s in the cache is damaged; it is made anew", path)
    return None


def _write(path: Path, array: np.ndarray, report: dict) -> None:
    """Write an array, then beside it a report with checksums of both, which vouches for the array."""
    write_atomically(path, lambda file: np.save(file, array))
    content = {"crc32": {"array": zlib.crc32(path.read_bytes()), "report": _checksum(report)}, "report": report}
    write_text_atomically(path.with_suffix(".json"), json.dumps(content))


def _checksum(report: dict) -> int:
    return zlib.crc32(json.dumps(report, sort_keys=True).encode())
