"""Recordings: where their events are, and the labelled sets of them that networks are trained and tested on."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch

from tools.data.batches import Batches
from tools.io.cache import stamp
from tools.io.npy import open_npy

from .errors import EventFormatError
from .formats import check_events, read_events, read_recording
from .frames import cell_area, count_frames, frame_values


@dataclasses.dataclass(frozen=True)
class Recording:
    """The events of one recording, in a file.

    Args:
        path: of the file.
        label: index of the class.
        window_us: (start, end) of the part of the file that is meant, in microseconds, the end not included; None: all.
        slice: (first, last) index of events in a `.npy` file of ours; None: all of the file, of any format.
        problem: why it cannot be read, where that is known already; loading raises it.
    """

    path: Path
    label: int
    window_us: tuple = None
    slice: tuple = None
    problem: str = None

    def load(self, sensor, lenient=False):
        """Read the events.

        Args:
            sensor: (width, height) of the camera.
            lenient: drop events out of range or order, instead of raising.

        Returns:
            events [N] of dtype `EVENT`, and {reason: number of events dropped}.

        Raises:
            EventFormatError: for a damaged file, or one without events in the window.
            OSError: for a file that cannot be opened.
        """
        if self.problem is not None:
            raise EventFormatError(self.path, 0, self.problem)
        if self.slice is not None:
            first, last = self.slice
            return check_events(np.array(open_npy(self.path)[first:last]), *sensor, self.path, lenient)
        if self.window_us is None:
            return read_events(self.path, *sensor, lenient)
        whole = _read_whole(self.path, stamp(self.path))
        start, end = self.window_us
        chosen = np.flatnonzero((whole.events["t"] >= start) & (whole.events["t"] < end))
        if len(chosen) == 0:
            raise EventFormatError(self.path, 0, f"expected events from {start} to {end} us, as its labels say")
        events = whole.events[chosen]
        return check_events(events, *sensor, self.path, lenient, lambda index: whole.byte_of(chosen[index]))


@functools.lru_cache(maxsize=1)  # the parts of one file follow each other
def _read_whole(path, stamp):
    return read_recording(path)


@dataclasses.dataclass
class LabelledRecordings:
    """Recordings with their frames.

    Args:
        recordings: list of `Recording`.
        counts: frames, indexable by an array of rows: [..., T, 2, H, W], unsigned; may lie on disk.
        rows: the row of each recording in `counts`, int64 [N].
        labels: int64 [N].
        framing: `Framing`.
        values, cells: what the network sees, see `frame_values`.
        lenient: see `Recording.load`.
    """

    recordings: list
    counts: object
    rows: np.ndarray
    labels: torch.Tensor
    framing: object
    values: str
    cells: str = "sum"
    lenient: bool = False

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        indices = np.asarray(indices)
        return dataclasses.replace(
            self,
            recordings=[self.recordings[index] for index in indices],
            rows=self.rows[indices],
            labels=self.labels[torch.from_numpy(indices)],
        )

    def batches(self, batch_size, device, **options):
        return FrameBatches(self, batch_size, device, **options)

    def events(self, index):
        """The events of one recording, of dtype `EVENT`."""
        return self.recordings[index].load(self.framing.sensor, self.lenient)[0]

    def perturbed(self, perturb, strength, seed):
        """The same recordings with perturbed events, framed anew; in memory.

        Args:
            perturb: one of `tools.perturb.events`.
            strength: its strength.
            seed: each recording has a generator of its own, from this and its index.
        """
        frames = []
        for index in range(len(self)):
            random = np.random.default_rng([seed, index])
            events = perturb(self.events(index), strength, random, self.framing.sensor)
            frames.append(count_frames(events, self.framing))
        return dataclasses.replace(self, counts=np.stack(frames), rows=np.arange(len(self)))


class FrameBatches(Batches):
    """Batches of frames [T, B, 2, H, W], float32, with their labels [B].

    Args:
        data: `LabelledRecordings`.
        augment: function of counts [B, T, 2, H, W] on the device and labels to such counts, or None.
        batch_size, device, shuffle, memory_format, limit: see `Batches`.
    """

    def __init__(self, data, batch_size, device, **options):
        super().__init__(data, batch_size, device, **options)
        self.area = cell_area(data.framing).to(device) if data.cells == "average" else None

    def _batch(self, chosen):
        labels = self.data.labels[chosen].to(self.device)
        counts = self.data.counts[self.data.rows[chosen.numpy()]].astype(np.int32)  # torch has no unsigned ones
        counts = torch.from_numpy(counts).to(self.device)
        if self.augment is not None:
            counts = self.augment(counts, labels)
        frames = frame_values(counts, self.data.values, self.area).transpose(0, 1)  # [T, B, 2, H, W]
        folded = frames.flatten(0, 1).contiguous(memory_format=self.memory_format)
        return folded.unflatten(0, frames.shape[:2]), labels
