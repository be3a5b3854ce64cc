"""Frames of many recordings on disk: counted once, by several processes, then mapped into memory.

A store is a folder of shards. Shard 3 holds the frames of `SHARD` consecutive recordings in `00003.npy`, and a report
of what was left out in `00003.json`, which is written last and has checksums of both. Files appear whole or not at
all: an interrupted store is completed, several processes may make one at once, and a damaged shard is rebuilt.

This module and those it imports from its package run in worker processes, so none of them imports torch.
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
from tools.errors import UserError
from tools.io.cache import cache_folder, stamp
from tools.io.files import write_atomically, write_text_atomically
from tools.io.npy import open_npy

from .frames import Framing, count_frames, stacked
from .reading import LEFT_OUT
from .recordings import Recording, Streams

logger = logging.getLogger(__name__)
SHARD = 64  # recordings
BYTES_PER_PROCESS = 2**28  # bytes to read for which one more process pays off


class FrameStore:
    """The frames of recordings; `store[indices]` are counts [N, T, 2, H, W], unsigned.

    Frames by duration are as many as the longest of these recordings has, zeros after the end of others; `lengths` has
    the true numbers, int64 [all recordings], and is None for other frames.

    A recording that cannot be read, or has events outside the sensor or out of order, is a UserError. If `lenient`,
    such recordings and events are left out, and reported in `skipped` ({index of a recording: why}) and `dropped`
    ({reason: number of events}). `dropped_of` has what each lost, {name of a recording, or file: {reason: number}}, as
    what a reader leaves out (`reading.LEFT_OUT`) is known of the file, not of its parts; and `counts` what else was
    found in the files (see `reading.Reading`).

    Args:
        name: of the data set and its part, for the name of the folder and the progress bar.
        workers: most processes that read; little data is read by fewer.
        folder: the parent of the store's folder; None: `cache_folder()`.
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
        parts = [recordings[start : start + SHARD] for start in range(0, len(recordings), SHARD)]
        paths = [self.folder / f"{shard:05d}.npy" for shard in range(len(parts))]
        missing = {path: part for path, part in zip(paths, parts) if not _is_made(path, lenient)}
        if missing:
            _make_shards(missing, framing, lenient, workers, f"framing {name}")
        self._frames = [open_npy(path) for path in paths]
        self.skipped: dict[int, str] = {}
        self.dropped_of: dict[str, dict[str, int]] = {}
        lengths = []
        found: dict[str, dict[str, int]] = {}  # by file, as parts of one find the same
        for shard, path in enumerate(paths):
            report = json.loads(path.with_suffix(".json").read_bytes())["report"]
            for row, why in report["skipped"].items():
                self.skipped[SHARD * shard + int(row)] = why
            for name, dropped in report["dropped"].items():
                self.dropped_of.setdefault(name, {}).update(dropped)
            found |= report["counts"]
            lengths += report["lengths"]
        self.dropped = sum(map(collections.Counter, self.dropped_of.values()), collections.Counter())
        self.counts = sum(map(collections.Counter, found.values()), collections.Counter())
        self.lengths = np.array(lengths, np.int64) if framing.varies else None

    def __len__(self) -> int:
        return sum(map(len, self._frames))

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        found = [self._frames[index // SHARD][index % SHARD] for index in indices]
        if self.lengths is None:
            return np.stack(found)
        return stacked([frames[:length] for frames, length in zip(found, self.lengths[indices])])


def _is_made(path: Path, lenient: bool) -> bool:
    """Whether a shard is usable.

    Unless `lenient`, a shard with omissions is made again, so that their error is raised.
    """
    report = _checked_report(path)
    if report is None:
        return False
    return lenient or not (report["skipped"] or report["dropped"])


def _make_shards(
    missing: dict[Path, Sequence[Recording]], framing: Framing, lenient: bool, workers: int, description: str
) -> None:
    """Make shards, {path: recordings}, in up to `workers` processes."""
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
            pass  # an error cancels the shards that are not yet begun


def make_shard(recordings: Sequence[Recording], framing: Framing, lenient: bool, path: Path) -> None:
    """Frame some recordings and write the frames to `path`, with a report of omissions beside it."""
    width, height = framing.size
    none = np.zeros((1 if framing.varies else framing.timesteps, framing.channels, height, width), np.uint8)
    counts, skipped, dropped, found = [], {}, {}, {}
    for row, recording in enumerate(recordings):
        counts.append(none)
        try:
            checked = recording.load(framing.sensor, lenient)
            frames = _framed(recording, checked.events, framing)
        except (UserError, FileNotFoundError) as error:  # other errors may be temporary, such as too many open files
            if not lenient:
                raise
            skipped[str(row)] = str(error)  # keys of JSON are strings
            continue
        if checked.counts:
            found[str(recording.path)] = checked.counts
        for what, count in checked.dropped.items():
            if count:
                name = str(recording.path) if what in LEFT_OUT else recording.name
                dropped.setdefault(name, {})[what] = count
        counts[row] = frames.astype(np.min_scalar_type(frames.max()))
    lengths = [len(frames) for frames in counts]
    report = {"skipped": skipped, "dropped": dropped, "counts": found, "lengths": lengths}
    _write(path, stacked(counts), report)


def _framed(recording: Recording, events: np.ndarray, framing: Framing) -> np.ndarray:
    try:
        return count_frames(events, framing)
    except UserError as error:
        raise UserError(f"{recording.path}: {error}") from error


def _key(recordings: Sequence[Recording], framing: Framing) -> str:
    """Hash of the code that reads and frames, the framing, the files (`stamp`), and which parts of them are used."""
    key = hashlib.sha256(f"{code_fingerprint(__name__)} {framing}\n".encode())
    for recording in recordings:
        try:
            file = stamp(recording.path)
        except OSError:  # reading it will fail, and say so
            file = f"{str(recording.path.resolve())!a} absent"
        part = f"{recording.window_us} {recording.slice} {recording.row} {recording.turned} {recording.problem}"
        key.update(f"{file} {part}\n".encode(errors="surrogateescape"))
    return key.hexdigest()[:24]


def stored_streams(name: str, make: Callable[[], Streams], folder: Path) -> list[Recording]:
    """Simulated recordings: made once, then read from `folder`.

    Streams that differ, or are made by other code (`code_fingerprint`), need another `name`.
    """
    path = folder / f"{name}.npy"
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
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(beside.read_bytes())
        if content["crc32"] == _checksums(path, content["report"]):
            return content["report"]
    logger.warning("%s in the cache is damaged; it will be rebuilt", path)
    return None


def _write(path: Path, array: np.ndarray, report: dict) -> None:
    """Write an array, then a report beside it, with checksums of both."""
    write_atomically(path, lambda file: np.save(file, array))
    content = {"crc32": _checksums(path, report), "report": report}
    write_text_atomically(path.with_suffix(".json"), json.dumps(content))


def _checksums(path: Path, report: dict) -> dict[str, int]:
    encoded = json.dumps(report, sort_keys=True).encode()
    return {"array": zlib.crc32(path.read_bytes()), "report": zlib.crc32(encoded)}
